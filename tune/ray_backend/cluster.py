"""Joins a Ray cluster that others started: finds out its size, and why it refuses."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import threading

from myllm.system.errors import InputError, one_line
from tune.ray_backend import allow_cluster

ANSWER_SECONDS = 60.0  # within which a cluster tells its size
PROBE = """
import json, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
print(json.dumps(ray.cluster_resources()))
"""
NO_ANSWER = (
    "Failed to connect",
    "ConnectionError",
    "Could not find any running Ray instance",
    "Failed to get cluster ID",
)
REFUSED = ("InvalidAuthToken", "AuthenticationError", "Unauthenticated", "call_op_set")  # the last: it is not ASCII
AUTH_MODE = "RAY_AUTH_MODE"
MODES = ("disabled", "token")


class Refused(Exception):
    """The cluster asks for a token, or for another one."""


def use_own_token() -> None:
    """Gives a Ray of this machine alone a token of its own, unless the user has set RAY_AUTH_MODE.

    Ray would leave a token in the user's home, which may be read-only. The next `ray start --head` would then ask every
    machine for that token.
    """
    if os.environ.get(AUTH_MODE) is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def join_cluster(address: str) -> tuple[int, int]:
    """(CPU cores, GPUs) of the Ray cluster at `address`. Raises InputError where none answers, or it refuses our token.

    From then on this process sends its user's token only where the cluster asks for one. Ray 2.60 sends a token that lies
    in the user's home to any cluster. It then refuses the requests of a cluster without tokens, which cancels each trial
    before it runs.
    """
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal()) or "/" in host:
            raise InputError(f"--address {address!r}: it must be auto, or HOST:PORT as `ray start --head` says")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself tries for minutes
        except (OSError, OverflowError, UnicodeError):
            raise _nobody(address) from None
    allow_cluster()
    said = os.environ.get(AUTH_MODE, "token")
    for mode in MODES if said.lower() == "token" else (said,):
        with contextlib.suppress(Refused):
            found = _ask(address, mode)
            os.environ[AUTH_MODE] = mode
            return found
    raise InputError(
        f"--address {address}: the cluster refused this machine's token; copy ~/.ray/auth_token of the machine that runs"
        f" its head to {_where_tokens_are_read()}"
    )


def _where_tokens_are_read() -> str:
    """Where Ray finds the token that it sends: the first place of its list that is set."""
    mode, path = os.environ.get(AUTH_MODE), os.environ.get("RAY_AUTH_TOKEN_PATH")
    switch = "" if mode is None or mode.lower() == "token" else f", and unset {AUTH_MODE}, which is {mode!r}"
    if os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return f"RAY_AUTH_TOKEN, which is set to another{switch}"
    return (f"{path}, where RAY_AUTH_TOKEN_PATH points" if path else "this one, or set RAY_AUTH_TOKEN") + switch


def _nobody(address: str) -> InputError:
    return InputError(f"--address {address}: no Ray cluster answers there; start one with `ray start --head`")


def _ask(address: str, mode: str) -> tuple[int, int]:
    """(CPU cores, GPUs) of the cluster. Raises Refused where it wants another `mode` of authentication.

    A process of its own asks, because Ray tries a refused token again and again and can't be interrupted.
    """
    command = [sys.executable, "-P", "-c", PROBE, address]  # -P: no imports from the working folder
    environment = os.environ | {AUTH_MODE: mode}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None  # pipes
    timer = threading.Timer(ANSWER_SECONDS, process.kill)
    timer.start()
    last = ""
    try:
        for line in process.stderr:
            if any(word in line for word in REFUSED):
                raise Refused
            last = line if line.strip() else last
        found = process.stdout.read()
        if process.wait() == 0:
            resources = json.loads(found.splitlines()[-1])
            return int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    finally:
        timer.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    if any(word in last for word in NO_ANSWER) or not last:
        raise _nobody(address)
    raise InputError(f"--address {address}: {one_line(last)[:300]}")
