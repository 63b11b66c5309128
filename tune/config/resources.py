"""The share of the machine that each trial of a search takes."""

from dataclasses import dataclass

from myllm.system.errors import InputError
from tune.config.options import AUTO, SearchOptions


@dataclass(frozen=True)
class Resources:
    """The share of the machine that one trial takes, and the trials that train at once."""

    cpus_per_trial: int
    """CPU cores"""
    gpus_per_trial: float
    """GPUs; a fraction shares one"""
    workers: int
    """trials that train at once"""


def resolve_resources(options: SearchOptions, num_cpus: int, num_gpus: int) -> Resources:
    """The trials' share of `num_cpus` cores and `num_gpus` GPUs. Raises InputError where not one trial fits."""
    gpus, cpus = options.gpus_per_trial, options.cpus_per_trial
    if isinstance(gpus, str) or isinstance(cpus, str):
        raise ValueError(f"{AUTO} is not resolved yet")
    if gpus is None:
        gpus = 1 if num_gpus else 0
    if gpus > num_gpus:
        raise InputError(f"--gpus_per_trial is {gpus:g}, but there are {num_gpus} GPUs")
    by_gpu = (int(1 / gpus + 1e-9) * num_gpus if gpus < 1 else num_gpus // int(gpus)) if gpus else num_cpus
    cpus = cpus or (max(1, num_cpus // by_gpu) if gpus else 1)
    if cpus > num_cpus:
        raise InputError(f"--cpus_per_trial is {cpus}, but there are {num_cpus} CPU cores")
    workers = min(by_gpu, num_cpus // cpus)
    return Resources(cpus, gpus, min(workers, options.max_concurrent or workers))
