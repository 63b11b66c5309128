"""The machine, the versions and the code that a run has."""

import functools
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from myllm.system.errors import InputError, RunError, one_line, warn

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
"""environment in which processes that share a training, all on one machine, listen to no other machine"""
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Linux on Windows


def processes_in_environment() -> int:
    """Returns the number of processes that torchrun started, 1 without it."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return int(os.environ["WORLD_SIZE"]) if all(os.environ.get(name) for name in names) else 1


def refuse_torchrun(command: str) -> None:
    """Raises InputError in one of several processes that torchrun started; `command` is what one process runs alone."""
    if (processes := processes_in_environment()) > 1:
        raise InputError(f"torchrun starts {processes} processes; {command} is one: run python {command}, without torchrun")


def origin(packages: Iterable[str]) -> dict[str, Any]:
    """Returns the time, the versions of `packages`, the code's commit and the hardware, as plain values for JSON."""
    return {
        "created": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "python": sys.version.split()[0],
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "git_commit": git_commit(),
        "hardware": {
            "machine": platform.machine(),
            "system": platform.platform(),
            "cpus": available_cpus(),
            "gpus": gpu_names(),
        },
    }


def has_gpu_driver() -> bool:
    """Returns True if there may be a GPU. On other systems than Linux only torch can tell."""
    return sys.platform != "linux" or any(map(os.path.exists, GPU_DRIVERS))


@functools.cache
def gpu_names() -> list[str]:
    """Returns the names of the GPUs that torch can use.

    Importing torch takes seconds, so it is asked only where there is a driver. Raises RunError where torch can't use it.
    """
    if not has_gpu_driver():
        return []
    import torch

    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if not names and shown not in (None, "", "-1", "NoDevFiles"):
            warn(f"CUDA_VISIBLE_DEVICES is {shown!r}, which shows no GPU of this machine: the CPU trains")
        return names
    except (RuntimeError, AssertionError, ValueError) as error:  # a driver that does not fit, a variable that is no list
        raise RunError(
            f"there is a GPU driver, but torch can't use it: {one_line(error)[:200]}; mend that, or set"
            " CUDA_VISIBLE_DEVICES= to train on the CPU"
        ) from None


def cpp_compiler() -> str | None:
    """Returns the C++ compiler that torch.compile uses for a CPU, or None where it is missing."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def peak_memory() -> int:
    """Returns the most memory that this process has had, in bytes.

    On Linux it is read from /proc: getrusage counts the memory of the parent process in.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_cpus() -> int:
    """Returns the CPU cores that this process may use, by its affinity mask and by its container's quota, rounded up."""
    import joblib  # here: it takes a tenth of a second, and most commands never ask

    return int(joblib.cpu_count())


@functools.cache
def git_commit() -> str | None:
    """Returns the commit of this project's checkout, with '+' where files were changed, or None outside of one."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).resolve().parent, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None
