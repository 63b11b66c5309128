"""Finds the numbers of the options that are `auto`, by timing a few steps here."""

import dataclasses
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import psutil

from myllm.system.errors import InputError, RunError
from tune.config.options import AUTO, PICKED
from tune.config.resolve import Resources, resolve_resources
from tune.config.spec import BuiltinSearch
from tune.core.slots import WORTH
from tune.estimate.benchmark import AUTO_SECONDS, DRIVER_BYTES, StepTimings, time_steps, widest

MIN_SPEEDUP = 1.1  # of more trials at once over fewer: fewer at once know more when the next begins
MOST_ON_A_GPU = 8  # trials at once
GPU_SHARE = 0.9  # of a GPU's memory that trials may fill; each process' own context takes some


@dataclass(frozen=True)
class ConcurrencyTrial:
    """The speed of a number of trials at once, as it was timed."""

    resources: Resources
    rate: float  # tokens a second of all together, the mean over the search's batch sizes
    fits: bool  # all of them into memory

    def __str__(self) -> str:
        cores, share = self.resources.cpus_per_trial, self.resources.gpus_per_trial
        each = f"{share:g} of a GPU" if share else f"{cores} core{'s' if cores > 1 else ''} each"
        speed = f"{self.rate:,.0f} tokens/s" if self.fits else "too little memory"
        return f"{self.resources.workers} at once with {each}: {speed}"


def time_concurrency(search: BuiltinSearch, resources: Resources) -> ConcurrencyTrial:
    """Times a few steps of `resources.workers` trainings at once. Raises RunError where one fails."""
    timings, workers, window = time_steps(search, resources, AUTO_SECONDS), resources.workers, search.training.max_len
    per_token = statistics.fmean(timings.throughput.seconds(1, batch * window) for batch in search.batch_sizes)
    fits = timings.memory * workers * resources.processes + DRIVER_BYTES <= psutil.virtual_memory().available
    fits_gpu = timings.device_memory * workers <= GPU_SHARE * timings.device_total  # both are 0 without a GPU
    return ConcurrencyTrial(resources, workers / per_token, fits and fits_gpu)


def choose(tried: Iterable[ConcurrencyTrial]) -> tuple[Resources, str]:
    """The best of `tried`, ordered by trials at once, and the reason in one line. More at once must be MIN_SPEEDUP times
    as fast; the first that is slower than the best, or does not fit, ends the search.
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
    search: BuiltinSearch,
    cpus: int,
    gpus: int,
    timed: Callable[[BuiltinSearch, Resources], ConcurrencyTrial] = time_concurrency,
    timed_steps: Callable[[BuiltinSearch, Resources, float], StepTimings] = time_steps,
) -> tuple[BuiltinSearch, str]:
    """The search with its `auto` resolved, and a message with the timings. The message is empty where nothing is to do.

    Cores and GPUs a trial become numbers. `auto` of the processes stays, or is unset where idle slots would not help.
    Raises InputError on a cluster, whose machines can't be timed from here.
    """
    options = search.options
    asked = [name for name in PICKED if getattr(options, name) == AUTO]
    if asked and options.address is not None:
        where = f"times steps on this machine, not on the cluster {options.address}"
        raise InputError(f"--{asked[0]} auto {where}; give a number")
    found, said = _numbers(search, cpus, gpus, timed)
    several = (found.options.gpus_per_trial or 0) in range(1, gpus)
    if options.gpus_per_trial == AUTO and options.processes_per_trial is None and several and not options.budget_seconds:
        found = dataclasses.replace(found, options=dataclasses.replace(found.options, processes_per_trial=AUTO))
    if found.options.joins_idle_slots and "processes_per_trial" not in found.auto_resolved:
        found, more = resolve_joining(found, resolve_resources(found.options, cpus, gpus), timed_steps)
        said = f"{said}\n{more}".strip()
    return found, said


def resolve_joining(
    search: BuiltinSearch, resources: Resources, timed: Callable[[BuiltinSearch, Resources, float], StepTimings]
) -> tuple[BuiltinSearch, str]:
    """The search in which idle slots join the last trials, or do not where it would not help; and a message why."""
    slots, why, helps = widest(search, resources), "a trial here can't have more than one slot", False
    if search.ladder:
        why = "each run of a ladder keeps one slot"
    elif slots > 1:
        try:
            alone, shared = (timed(search, resources.times(count), AUTO_SECONDS) for count in (1, slots))
            batch, step = max(shared.steps.items())
            tokens = batch * search.training.max_len
            gain = alone.throughput.seconds(tokens, tokens) / step
            why = f"a training in {slots} slots is {gain:.2f} times as fast as in one"
            helps = 1 - 1 / gain >= (1 - 1 / slots) / WORTH
        except RunError as error:
            why = f"{slots * resources.processes} processes can't share a training here: {error}"
    value = AUTO if helps else None
    options = dataclasses.replace(search.options, processes_per_trial=value)
    search = dataclasses.replace(search, options=options, auto_resolved=search.auto_resolved | {"processes_per_trial": why})
    return search, f"--processes_per_trial auto: {'idle slots join the last trials' if helps else 'unset'} ({why})"


def _numbers(
    search: BuiltinSearch, cpus: int, gpus: int, timed: Callable[[BuiltinSearch, Resources], ConcurrencyTrial]
) -> tuple[BuiltinSearch, str]:
    """The search with numbers for cores and GPUs a trial, and a message."""
    options = search.options
    asked = [name for name in ("cpus_per_trial", "gpus_per_trial") if getattr(options, name) == AUTO]
    if not asked:
        return search, ""
    if options.gpus_per_trial == AUTO and not gpus:
        search, message = _with(search, {"gpus_per_trial": 0}, "no GPU here, so trials train on the cores")
        search, more = _numbers(search, cpus, 0, timed)
        return search, f"{message}\n{more}".strip()
    if gpus and options.gpus_per_trial not in (0, AUTO):
        return _with(search, {"cpus_per_trial": None}, "trials have GPUs, so an even share of the cores")
    divisions = candidates(cpus, gpus if options.gpus_per_trial == AUTO else 0, options.max_concurrent)
    resources, why = choose(timed(search, each) for each in divisions)
    return _with(search, {name: getattr(resources, name) for name in asked}, why)


def _with(search: BuiltinSearch, values: dict[str, Any], why: str) -> tuple[BuiltinSearch, str]:
    """The search with these settings, whose reason search.json keeps; and a message with both."""
    message = ", ".join(f"--{name} auto: {'unset' if value is None else f'{value:g}'}" for name, value in values.items())
    options, reasons = dataclasses.replace(search.options, **values), search.auto_resolved | dict.fromkeys(values, why)
    return dataclasses.replace(search, options=options, auto_resolved=reasons), f"{message} ({why})"
