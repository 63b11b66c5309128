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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, and Windows' Linux
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


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

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


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
    quota = cpu_quota(CGROUPS, OWN_CGROUPS)
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(root: Path, own: Path) -> float | None:
    """Cores' worth of time that this process may use, by cgroup version 2 or 1 below `root`; None without a limit.

    `own` lists the process's own groups; each group above limits it too. In a container `root` may be the own one, which
    is then known by another path.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except (OSError, ValueError):
        lines = []
    groups = {root, root / "cpu"}
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if not controllers or "cpu" in controllers.split(","):
            base, parts = (
                root / ("cpu" if controllers else ""),
                [part for part in path.split("/") if part not in ("", "..")],
            )
            groups |= {base.joinpath(*parts[:count]) for count in range(len(parts) + 1)}
    return min((quota for group in groups if (quota := _quota(group)) is not None), default=None)


def _quota(group: Path) -> float | None:
    """The limit of one cgroup, of either version."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
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
