"""Joins a Ray cluster that others started: finds out its size, and why it refuses."""

import json
import os
import socket
import subprocess
import sys

from myllm.system.errors import InputError, one_line
from tune.ray_backend import allow_cluster

PROBE = """
import json, signal, sys
signal.alarm(60)
import ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=50)
nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
print(json.dumps({name: [node.get(name, 0) for node in nodes] for name in ("CPU", "GPU")}), flush=True)
"""
"""program that prints the CPU cores and GPUs of each of a cluster's machines; it ends after 60 s"""
REFUSED = ("InvalidAuthToken", "AuthenticationError", "Unauthenticated", "call_op_set")  # the last: it is not ASCII
AUTH_MODE = "RAY_AUTH_MODE"


def join_cluster(address: str) -> tuple[int, tuple[int, ...]]:
    """(CPU cores, GPUs of each machine) of the Ray cluster at `address`.

    From then on a token is sent only where the cluster asks for one: Ray sends it to any, and then a cluster without tokens
    fails. Raises InputError where none answers, or it refuses our token.
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
    given = os.environ.get(AUTH_MODE, "token")
    for mode in ("disabled", "token") if given.lower() == "token" else (given,):
        if size := _ask(address, mode):
            os.environ[AUTH_MODE] = mode
            return size
    path, token = os.environ.get("RAY_AUTH_TOKEN_PATH"), os.environ.get("RAY_AUTH_TOKEN", "").strip()
    place = f"{path}, where RAY_AUTH_TOKEN_PATH points" if path else "this one, or set RAY_AUTH_TOKEN"
    place = "RAY_AUTH_TOKEN, which is set to another" if token else place
    switch = "" if given.lower() == "token" else f", and unset {AUTH_MODE}, which is {given!r}"
    raise InputError(
        f"--address {address}: the cluster refused this machine's token; copy ~/.ray/auth_token of the machine that runs"
        f" its head to {place}{switch}"
    )


def _nobody(address: str, said: str = "") -> InputError:
    return InputError(f"--address {address}: no Ray cluster answers there{said}; start one with `ray start --head`")


def _ask(address: str, mode: str) -> tuple[int, tuple[int, ...]] | None:
    """(CPU cores, GPUs of each machine) of the cluster, or None where it wants a token, another one, or another `mode`.

    A process of its own asks, because Ray tries a refused token again and again and can't be interrupted.
    """
    command = [sys.executable, "-P", "-c", PROBE, address]  # -P: no imports from the working folder
    environment, last = os.environ | {AUTH_MODE: mode}, ""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as probe:
        try:
            for line in probe.stdout or ():
                if any(word in line for word in REFUSED):
                    return None
                if line.startswith("{"):
                    size = json.loads(line)
                    return int(sum(size["CPU"])), tuple(map(int, size["GPU"]))
                last = line if line.strip() else last
        finally:
            probe.kill()
    raise _nobody(address, f" ({one_line(last)[:300]})" if last else "")
