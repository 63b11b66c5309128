"""On what machine, with which code and versions something runs."""

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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from myllm.system.errors import RunError, one_line, warn

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, and Windows' Linux
CGROUPS, PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self")


def origin(packages: Iterable[str]) -> dict[str, Any]:
    """When, by which versions of `packages` and on what hardware something begins."""
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
    """Whether there may be a GPU; elsewhere than on Linux that is not known without torch."""
    return sys.platform != "linux" or any(map(os.path.exists, GPU_DRIVERS))


@functools.cache
def gpu_names() -> list[str]:
    """The GPUs that torch can use; torch is asked, which takes seconds, only where there is a driver."""
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
    """The C++ compiler that torch.compile takes for a CPU; None where it is not there."""
    return shutil.which(os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++"))


def peak_memory() -> int:
    """The most bytes of memory that this process has had. On Linux getrusage's begin with those of who started it."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_cpus() -> int:
    """CPU cores that this process may use, by its affinity mask and by its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(PROCESS, CGROUPS)
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(process: Path, usual: Path) -> float | None:
    """Cores' worth of time that a process may use, by cgroup version 2 or 1; None without a limit.

    `process`/cgroup lists its groups, `process`/mountinfo where they are to be seen; `usual` is where they are where that
    does not say. Each group above limits it too. In a container a mount may begin at the own group.
    """
    own = {}
    for fields in (line.split(":", 2) for line in _lines(process / "cgroup")):
        if len(fields) == 3 and (not fields[1] or "cpu" in fields[1].split(",")):
            own["1" if fields[1] else "2"] = fields[2]
    groups = set()
    for version, begin, place in _cgroup_mounts(process) or [("2", "/", usual), ("1", "/", usual / "cpu")]:
        path, begin = own.get(version, ""), begin.rstrip("/")
        inner = path[len(begin) :] if path.startswith(f"{begin}/") and ".." not in path.split("/") else ""
        parts = [part for part in inner.split("/") if part]
        groups |= {place.joinpath(*parts[:count]) for count in range(len(parts) + 1)}
    return min((quota for group in groups if (quota := _quota(group)) is not None), default=None)


def _cgroup_mounts(process: Path) -> list[tuple[str, str, Path]]:
    """(version, the group that is its root, where) of each mount of cgroups that may limit CPU time."""
    found = []
    for fields, rest in mounts(process):
        kind, options = rest[0], rest[-1].split(",")
        if len(fields) > 4 and (kind == "cgroup2" or (kind == "cgroup" and "cpu" in options)):
            found.append(("2" if kind == "cgroup2" else "1", fields[3], Path(fields[4])))
    return found


def mounts(process: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The fields before and behind the dash of each line of `process`/mountinfo, names as they are; none but on Linux."""
    for line in _lines(process / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields = [re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), field) for field in before.split(" ")]
        yield fields, after.split(" ")


def _lines(path: Path) -> list[str]:
    """The lines of a file of the kernel's, in which names are bytes; none where there is no such file."""
    try:
        return os.fsdecode(path.read_bytes()).split("\n")
    except OSError:
        return []


def _quota(group: Path) -> float | None:
    """The limit of one cgroup, of either version."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError, ArithmeticError):  # no cgroups, or "max"
        return None


@functools.cache
def git_commit() -> str | None:
    """The commit of this project's checkout, with '+' where files were changed; None outside one."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).resolve().parent, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return done.stdout.strip() or None
