"""--cpus_per_trial auto and --gpus_per_trial auto: times how many trials at once train most."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil

from myllm.system.errors import InputError
from tune.config.options import AUTO
from tune.config.resources import Resources
from tune.config.spec import SearchSpec
from tune.estimate.benchmark import DRIVER_BYTES, time_steps

TIMED_SECONDS = 0.5  # for each batch size
MIN_SPEEDUP = 1.1  # of more trials at once over fewer: fewer at once know more when the next begins
MOST_ON_A_GPU = 8  # trials at once
GPU_SHARE = 0.9  # of a GPU's memory that trials may fill; each process' own context takes some


@dataclass(frozen=True)
class ConcurrencyTrial:
    """The speed of a number of trials at once, as it was timed."""

    resources: Resources
    rate: float
    """tokens a second of all together, the mean over the search's batch sizes"""
    fits: bool
    """True if all of them fit into memory"""

    def __str__(self) -> str:
        cores = f"{self.resources.cpus_per_trial} core{'s' if self.resources.cpus_per_trial > 1 else ''}"
        share = self.resources.gpus_per_trial
        each = f"{share:g} of a GPU" if share else f"{cores} each"
        speed = f"{self.rate:,.0f} tokens/s" if self.fits else "too little memory"
        return f"{self.resources.workers} at once with {each}: {speed}"


def time_concurrency(search: SearchSpec, resources: Resources) -> ConcurrencyTrial:
    """Times a few steps of `resources.workers` trainings at once. Raises RunError where one fails."""
    timings = time_steps(search, resources, TIMED_SECONDS)
    window = search.training.max_len
    seconds = [timings.throughput.seconds(search.report_tokens, batch * window) for batch in search.batch_sizes]
    rate = resources.workers * search.report_tokens * len(seconds) / sum(seconds)
    needed = timings.memory * resources.workers + DRIVER_BYTES
    fits = needed <= psutil.virtual_memory().available
    if resources.gpus_per_trial:
        fits = fits and timings.device_memory * resources.workers <= GPU_SHARE * timings.device_total
    return ConcurrencyTrial(resources, rate, fits)


def choose(tried: Iterable[ConcurrencyTrial]) -> tuple[Resources, str]:
    """The best of `tried`, which has at least one and is ordered by trials at once; and the reason in one line.

    More at once must be MIN_SPEEDUP times as fast. The first that is slower than the best, or does not fit, ends the
    search: none is timed after it.
    """
    remaining = iter(tried)
    best = next(remaining)
    seen = [best]
    for one in remaining:
        seen.append(one)
        if not one.fits or one.rate < best.rate:
            break
        if one.rate > MIN_SPEEDUP * best.rate:
            best = one
    return best.resources, "; ".join(map(str, seen))


def candidates(cpus: int, gpus: int, most: int | None) -> list[Resources]:
    """The divisions to time, by trials at once, `most` at most: shares of one GPU, or of the cores where `gpus` is 0."""
    if gpus:
        counts = [count for count in (1, 2, 4, MOST_ON_A_GPU) if count == 1 or count * gpus <= min(cpus, most or cpus)]
        return [Resources(max(1, cpus // (count * gpus)), 1 if count == 1 else 1 / count, count) for count in counts]
    counts = [2**power for power in range(cpus.bit_length()) if 2**power < cpus] + [cpus]
    return [Resources(cpus // count, 0, count) for count in counts if count <= (most or cpus)]


def resolve_auto(
    search: SearchSpec,
    cpus: int,
    gpus: int,
    measure: Callable[[SearchSpec, Resources], ConcurrencyTrial] = time_concurrency,
) -> tuple[SearchSpec, str]:
    """The search with numbers in the place of `auto`, and a message with the timings. The message is empty without `auto`.

    Raises InputError on a cluster, whose machines can't be timed from here.
    """
    config = search.options
    asked = [name for name in ("cpus_per_trial", "gpus_per_trial") if getattr(config, name) == AUTO]
    if not asked:
        return search, ""
    if config.address is not None:
        raise InputError(
            f"--{asked[0]} auto times steps on this machine, not on the cluster {config.address}; give a number"
        )
    if config.gpus_per_trial == AUTO and not gpus:
        search, message = _with(search, {"gpus_per_trial": 0}, "no GPU here, so trials train on the cores")
        search, more = resolve_auto(search, cpus, 0, measure)
        return search, "\n".join(filter(None, (message, more)))
    on_gpu = gpus if config.gpus_per_trial == AUTO else 0
    if gpus and not on_gpu and config.gpus_per_trial != 0:
        return _with(search, {"cpus_per_trial": None}, "trials have GPUs, so an even share of the cores")
    resources, why = choose(measure(search, each) for each in candidates(cpus, on_gpu, config.max_concurrent))
    return _with(search, {name: getattr(resources, name) for name in asked}, why)


def _with(search: SearchSpec, values: dict[str, Any], why: str) -> tuple[SearchSpec, str]:
    """The search with these settings, whose reason search.json keeps; and a message with both."""
    message = ", ".join(f"--{name} auto: {'unset' if value is None else f'{value:g}'}" for name, value in values.items())
    config = dataclasses.replace(search.options, **values)
    reasons = search.auto_resolved | dict.fromkeys(values, why)
    return dataclasses.replace(search, options=config, auto_resolved=reasons), f"{message} ({why})"
