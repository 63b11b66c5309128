"""On what machine, with which code and versions something runs."""

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of NVIDIA, AMD, and Windows' Linux
CGROUPS = Path("/sys/fs/cgroup")


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


def available_cpus() -> int:
    """CPU cores that this process may use, by its affinity mask and by its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(CGROUPS)
    return cores if quota is None else max(1, min(cores, int(quota)))


def cpu_quota(root: Path) -> float | None:
    """Cores' worth of time that a container may use, by cgroup version 2 or 1 below `root`; None without a limit."""
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError):  # no cgroups, or "max"
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
