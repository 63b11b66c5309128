"""--cpus_per_trial auto and --gpus_per_trial auto: a few real steps tell how many trials at once train most together."""

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

from myllm.system.errors import InputError
from tune.config.options import AUTO
from tune.config.resolve import Resources
from tune.config.spec import SearchSpec
from tune.estimate.benchmark import DRIVER_BYTES, time_steps

SECONDS = 0.5  # that each batch size is timed for
WORTH = 1.1  # times as much that more trials at once must train: fewer at once know more when they begin
MOST_ON_A_GPU = 8
GPU_SHARE = 0.9  # of a GPU's memory that trials may fill; each process' own context takes some


@dataclass(frozen=True)
class Probe:
    """What trials at once, so many and with so much each, train together."""

    resources: Resources
    rate: float
    """tokens a second of all together, the mean over the search's batch sizes"""
    fits: bool
    """whether the memory is there for all of them"""

    @property
    def words(self) -> str:
        """As it is said."""
        cores = f"{self.resources.cpus_per_trial} core{'s' * (self.resources.cpus_per_trial > 1)}"
        share = self.resources.gpus_per_trial
        each = f"{share:g} of a GPU" if share else f"{cores} each"
        found = f"{self.rate:,.0f} tokens/s" if self.fits else "too little memory"
        return f"{self.resources.workers} at once with {each}: {found}"


def probe(search: SearchSpec, resources: Resources) -> Probe:
    """Times a few steps of that many trainings at once. Raises RunError where one fails."""
    found = time_steps(search, resources, SECONDS)
    window = search.training.max_len
    seconds = [found.pace.seconds(search.report_tokens, batch * window) for batch in search.batch_sizes]
    rate = resources.workers * search.report_tokens * len(seconds) / sum(seconds)
    needed = found.memory * resources.workers + DRIVER_BYTES
    fits = needed <= psutil.virtual_memory().available
    if resources.gpus_per_trial:
        fits = fits and found.device_memory * resources.workers <= GPU_SHARE * found.device_total
    return Probe(resources, rate, fits)


def pick(probes: Iterable[Probe]) -> tuple[Resources, str]:
    """The best of `probes`, which come with ever more trials at once, and why in one line.

    More at once must be worth it; the first that trains less, or does not fit, is the last that is looked at. The first
    itself is taken where nothing is better.
    """
    seen: list[Probe] = []
    best = None
    for found in probes:
        seen.append(found)
        if best is not None and (not found.fits or found.rate < best.rate):
            break
        if best is None or found.rate > WORTH * best.rate:
            best = found
    return best.resources, "; ".join(found.words for found in seen)


def candidates(cpus: int, gpus: int, most: int | None) -> list[Resources]:
    """What is to be probed, ever more at once: shares of one GPU, or of the cores where `gpus` is 0; `most` at once."""
    if gpus:
        counts = [count for count in (1, 2, 4, MOST_ON_A_GPU) if count == 1 or count * gpus <= min(cpus, most or cpus)]
        return [Resources(max(1, cpus // (count * gpus)), 1 if count == 1 else 1 / count, count) for count in counts]
    counts = [2**power for power in range(cpus.bit_length()) if 2**power < cpus] + [cpus]
    return [Resources(cpus // count, 0, count) for count in counts if count <= (most or cpus)]


def resolve_auto(
    search: SearchSpec, cpus: int, gpus: int, probe: Callable[[SearchSpec, Resources], Probe] = probe
) -> tuple[SearchSpec, str]:
    """The search with numbers in the place of `auto`, and what was found in a line; an empty one where nothing was asked.

    Raises InputError on a cluster, whose machines can't be probed from here.
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
        search, said = _with(search, {"gpus_per_trial": 0}, "no GPU here, so trials train on the cores")
        more, found = resolve_auto(search, cpus, 0, probe)
        return more, f"{said}{chr(10) * bool(found)}{found}"
    on_gpu = gpus if config.gpus_per_trial == AUTO else 0
    if gpus and not on_gpu and config.gpus_per_trial != 0:
        return _with(search, {"cpus_per_trial": None}, "trials have GPUs, so an even share of the cores")
    resources, why = pick(probe(search, each) for each in candidates(cpus, on_gpu, config.max_concurrent))
    picked = {name: getattr(resources, name) for name in asked}
    return _with(search, picked, why)


def _with(search: SearchSpec, values: dict[str, float | None], why: str) -> tuple[SearchSpec, str]:
    """The search with these settings, which search.json keeps with the reason; and both in a line."""
    said = ", ".join(f"--{name} auto: {'unset' if value is None else f'{value:g}'}" for name, value in values.items())
    config = dataclasses.replace(search.options, **values)
    reasons = search.auto_resolved | dict.fromkeys(values, why)
    return dataclasses.replace(search, options=config, auto_resolved=reasons), f"{said} ({why})"
