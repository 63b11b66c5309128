"""The target's learning rate, batch and loss, from runs of smaller models."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from myllm.scaling_laws import Size, is_small, movement, reference_sds
from myllm.system.errors import InputError
from tune.ladder.fit import BASE, Array, Fit, Run, best_sixth, excess, fit_runs, levels_of
from tune.ladder.prior import prior_for

FEWEST_RUNS = 3
"""Runs below which the carrying rule is used; from here on the fit was ahead on grids of 60M to 215M parameters."""

FARTHEST_LOSS = 16
"""Times the compute of the largest level up to which a loss forecast has held within 1%."""

FEWER_TOKENS = 3
"""Factor by which a target's tokens a parameter may be below the runs' before a note warns of it."""

SAMPLES = 400
"""Posterior samples behind the loss and the expected regret."""

Z90 = 1.645
"""Standard deviations on either side that hold 90% of a normal distribution."""


@dataclass(frozen=True)
class Interval:
    """A value with the bounds of its 90% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Answer:
    """What runs of smaller models say of a target.

    `loss` is in nats a token and `expected_regret` in nats behind the target's best rate and batch.
    `share_from_runs` is the part of the variance before any run that the runs have removed, 0 to 1.
    """

    learning_rate: Interval
    batch_tokens: Interval
    loss: Interval
    expected_regret: float
    share_from_runs: dict[str, float]
    method: str
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Returns the answer as plain dictionaries, lists and numbers, ready for JSON."""
        return asdict(self)


def plain_point(runs: Sequence[Run], target: Size) -> Array:
    """Returns the carrying rule's log rate and log batch at `target`, shape (2,).

    Each level's best sixth of runs is averaged and carried; levels count by the runs that they average.
    """
    points, weights = [], []
    for size, level in levels_of(runs).items():
        move = movement(size, target)
        points.append(best_sixth(level) + np.array([move.log_rate, move.log_batch]))
        weights.append(max(1, round(len(level) / 6)))
    return np.asarray(np.average(points, axis=0, weights=weights))


def check_target(runs: Sequence[Run], target: Size) -> None:
    """Raises InputError if there are no runs, or one of them is of a larger model or a longer training than `target`.

    A longer training counts only at the target's own size.
    """
    if not runs:
        raise InputError("there are no runs with a finite loss; give at least one")
    largest = max((run.size for run in runs), key=lambda size: (size.params, size.tokens))
    if (target.params, target.tokens) < (largest.params, largest.tokens):
        said, level = (f"{size.params:,.0f} parameters and {size.tokens:,.0f} tokens" for size in (target, largest))
        raise InputError(f"the target, {said}, is smaller than a level of the runs, {level}")


def answer(runs: Sequence[Run], target: Size) -> Answer:
    """Returns learning rate, batch, loss and expected regret for `target`; losses of `runs` must be finite.

    Raises InputError for no runs, and for a target smaller than a level.
    """
    check_target(runs, target)
    fit = fit_runs(runs, prior_for(target, *(run.size for run in runs)), target)
    optimum, covariance = fit.optimum(target)
    ahead = len(runs) >= FEWEST_RUNS
    point = optimum if ahead else plain_point(runs, target)
    sds = np.sqrt(covariance.diagonal())
    rate, batch = (
        Interval(*(math.exp(float(centre) + z * float(sd)) for z in (0, -Z90, Z90)))
        for centre, sd in zip(point, sds, strict=True)
    )
    before = dict(zip(("learning_rate", "batch_tokens"), reference_sds(target), strict=True))
    shares = {name: max(0.0, 1 - (float(sd) / before[name]) ** 2) for name, sd in zip(before, sds, strict=True)}
    loss, regret = _loss_and_regret(fit, target, point)
    method = "fit" if ahead else "carrying rule"
    return Answer(rate, batch, loss, regret, shares, method, _notes(runs, target, fit, ahead))


def _loss_and_regret(fit: Fit, target: Size, point: Array) -> tuple[Interval, float]:
    """Returns the loss of `point` (log rate, log batch) at `target`, and its expected distance from the lowest, in nats."""
    samples, place = fit.sample(SAMPLES), fit.place(target)
    rng = np.random.default_rng(1)
    rate, batch = rng.multivariate_normal(*fit.optimum(target), SAMPLES, method="eigh").T
    lowest = samples[:, BASE] @ place + fit.prior.level_sd * rng.standard_normal(SAMPLES)
    rise = excess(samples, point[0] - rate, point[1] - batch)
    low, middle, high = np.exp(np.quantile(lowest + rise, (0.05, 0.5, 0.95)))
    return Interval(float(middle), float(low), float(high)), float(np.mean(np.exp(lowest) * np.expm1(rise)))


def _notes(runs: Sequence[Run], target: Size, fit: Fit, ahead: bool) -> list[str]:
    """Returns one sentence for each reason to trust the answer less."""
    notes = []
    if not ahead:
        notes.append(f"The fit needs {FEWEST_RUNS} runs; the carrying rule was used.")
    if is_small(target, *(run.size for run in runs)):
        notes.append("Below 10M parameters no published law of the rate holds; the movement is that of this project's own.")
    reach = target.params * target.tokens / max(run.size.params * run.size.tokens for run in runs)
    if reach > FARTHEST_LOSS:
        notes.append(f"The target takes {reach:.0f} times the largest level's compute; no loss forecast holds beyond 16.")
    fewer = min(run.size.tokens / run.size.params for run in runs) / (target.tokens / target.params)
    if fewer > FEWER_TOKENS:
        notes.append(
            f"The target has {fewer:.3g} times fewer tokens a parameter than any run; on public grids the rate was then up"
            " to 2.4 times too high."
        )
    if len(levels_of(runs)) == 1:
        notes.append("The runs have one size; all movement from it comes from published laws.")
    size, level = max(levels_of(runs).items(), key=lambda item: len(item[1]))
    tried = np.log([(run.learning_rate, run.batch_tokens) for run in level])
    for name, place, values in zip(("rate", "batch"), fit.optimum(size)[0], tried.T, strict=True):
        if not values.min() <= place <= values.max():
            side = "smallest" if place < values.min() else "largest"
            notes.append(f"The best {name} lies beyond the {side} of the runs; runs beyond it would tell more.")
    return notes
