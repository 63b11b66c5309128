"""Joins a Ray cluster that others started: what it has, and why it refuses."""

import json
import os
import secrets
import socket
import subprocess
import sys
import threading

from myllm.errors import InputError, one_line
from tune.commands import ROOT

ANSWER_SECONDS = 60.0  # within which a cluster says what it has
PROBE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tune.cluster import use_token
use_token(sys.argv[2])
import ray
ray.init(address=sys.argv[2], log_to_driver=False, logging_level=50)
print(json.dumps(ray.cluster_resources()))
"""
SILENT = (
    "Failed to connect",
    "ConnectionError",
    "Could not find any running Ray instance",
    "Failed to get cluster ID",
)
REFUSED = ("InvalidAuthToken", "AuthenticationError", "Unauthenticated")


def use_token(address: str | None) -> None:
    """Sends this user's Ray token where there is one, as Ray 2.60 itself does for the address `auto` alone.

    Ray on this machine alone gets a token of its own, or it would leave one in the user's home: that may be read-only, and
    the next `ray start --head` would ask every machine for it.
    """
    if os.environ.get("RAY_AUTH_MODE") is not None:
        return  # the user has said what to do
    if address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    else:
        from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def cluster_resources(address: str) -> tuple[int, int]:
    """(CPU cores, GPUs) of the Ray cluster at `address`. Raises InputError where none answers, or it refuses our token.

    A process of its own asks: Ray tries a refused token again and again, says so on stderr, and can't be interrupted.
    """
    nobody = InputError(f"--address {address}: no Ray cluster answers there; start one with `ray start --head`")
    if address != "auto":
        host, _, port = address.rpartition(":")
        if not (host and port.isdecimal()) or "/" in host:
            raise InputError(f"--address {address!r}: it must be auto, or HOST:PORT as `ray start --head` says")
        try:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself tries for minutes
        except (OSError, OverflowError, UnicodeError):
            raise nobody from None
    command = [sys.executable, "-P", "-c", PROBE, str(ROOT), address]  # -P: not what lies in the working folder
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    timer = threading.Timer(ANSWER_SECONDS, process.kill)
    timer.start()
    last = ""
    try:
        for line in process.stderr:
            if any(word in line for word in REFUSED):
                raise InputError(
                    f"--address {address}: the cluster refused this machine's token; copy ~/.ray/auth_token of the machine"
                    " that runs its head to this one, or set RAY_AUTH_TOKEN"
                )
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
    if any(word in last for word in SILENT) or not last:
        raise nobody
    raise InputError(f"--address {address}: {one_line(last)[:300]}")
