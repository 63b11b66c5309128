"""A ladder's runs, read from the trials of its search: by level, for the fit, and with what verification saw."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from myllm.scaling_laws import Size
from tune.core.trials import COMPLETED, DIVERGED, RUNNING, Trial, Trials
from tune.ladder.answer import Answer, Interval, answer
from tune.ladder.fit import Fit, Run, fit_runs
from tune.ladder.plan import Level, Plan
from tune.ladder.prior import prior_for

FEWEST_TO_FIT = 3
"""Runs that ended below which the fit says nothing."""


@dataclass(frozen=True)
class Check:
    """The verification of a level: what runs of smaller levels predicted, and what came out there."""

    level: int  # index in the plan
    predicted_rate: Interval
    predicted_batch: Interval  # tokens a step
    predicted_loss: Interval  # nats per token, of the run at the predicted point
    rate: float  # where the fit of all runs has this level's optimum
    batch: float
    loss: float  # of the run at the predicted point
    twice_rate: float | None  # loss there minus `loss`, nats per token; None where that run did not end
    twice_batch: float | None
    widening: float  # factor on the widths of the answer's intervals, 1 where all was inside

    @property
    def holds(self) -> bool:
        """Returns True if rate, batch and loss came out inside their intervals."""
        return self.widening <= 1

    @property
    def outside(self) -> list[str]:
        """Returns the names of what came out outside of its interval."""
        seen = (("learning rate", self.predicted_rate, self.rate), ("batch", self.predicted_batch, self.batch))
        rows = (*seen, ("loss", self.predicted_loss, self.loss))
        return [name for name, interval, found in rows if not interval.low <= found <= interval.high]


@functools.lru_cache(maxsize=64)
def fitted(runs: tuple[Run, ...], target: Size) -> Fit:
    """Returns the fit of `runs`, with the prior that holds up to `target`."""
    return fit_runs(runs, prior_for(target, *(run.size for run in runs)), target)


@functools.lru_cache(maxsize=64)
def answered(runs: tuple[Run, ...], target: Size) -> Answer:
    """Returns the answer of `runs` for `target`."""
    return answer(runs, target)


def trials_by_level(plan: Plan, trials: Trials) -> list[list[Trial]]:
    """Returns the trials of each level, in the order in which they began; last those of the target, for stability."""
    found: list[list[Trial]] = [[] for _ in (*plan.levels, plan.target)]
    for trial in trials.drawn:
        for index, level in enumerate((*plan.levels, plan.target)):
            if all(trial.config.get(name) == value for name, value in level.settings.items()):
                found[index].append(trial)
    return found


def is_over(trial: Trial) -> bool:
    """Returns True if a trial has ended, well or badly."""
    return trial.status != RUNNING


def run_of(plan: Plan, level: Level, trial: Trial) -> Run | None:
    """Returns a trial as a run of the fit; None while it trains, and where it failed.

    The loss of a trial that diverged is an untrained model's, the logarithm of the vocabulary's size.
    """
    worst = math.log(plan.vocab_size)
    if trial.status == DIVERGED:
        loss = worst
    elif trial.status == COMPLETED:
        loss = min(trial.losses[trial.tokens], worst)
    else:
        return None
    return Run(level.size, trial.config["learning_rate"], trial.config["batch_size"] * plan.window, loss)


def runs_below(plan: Plan, trials: Trials, end: int) -> tuple[Run, ...]:
    """Returns the runs of the levels before index `end`."""
    by_level = trials_by_level(plan, trials)
    found = [run_of(plan, level, trial) for level, here in zip(plan.levels[:end], by_level, strict=False) for trial in here]
    return tuple(run for run in found if run)


def is_verified_level(plan: Plan, index: int) -> bool:
    """Returns True if a level is predicted from smaller ones before it is run: the top, and what lies above it."""
    return index >= plan.top and index > 0 and any(level.runs for level in plan.levels[:index])


def predicted(plan: Plan, trials: Trials, index: int) -> tuple[float, int]:
    """Returns rate and batch (windows) that the runs of smaller levels predict for a level."""
    level = plan.levels[index]
    found = answered(runs_below(plan, trials, index), level.size)
    return rounded(found.learning_rate.value), plan.batch_windows(level, found.batch_tokens.value)


def rounded(rate: float) -> float:
    """Returns a learning rate with four significant digits."""
    return float(f"{rate:.4g}")


def check_level(plan: Plan, trials: Trials, index: int) -> Check | None:
    """Returns the verification of a level; None where its first run has no loss, or no smaller level has enough runs."""
    level, here = plan.levels[index], trials_by_level(plan, trials)[index]
    below = runs_below(plan, trials, index)
    ended = [run_of(plan, level, trial) for trial in here]
    first = ended[0] if ended else None
    if first is None or len(below) < FEWEST_TO_FIT:
        return None
    said = answered(below, level.size)
    every = runs_below(plan, trials, index + 1)
    (log_rate, log_batch), _ = fitted(every, level.size).optimum(level.size)
    rate, batch = math.exp(log_rate), math.exp(log_batch)
    others: list[float | None] = [
        None if (run := ended[place] if place < len(ended) else None) is None else run.loss - first.loss for place in (1, 2)
    ]
    pairs = ((said.learning_rate, rate), (said.batch_tokens, batch), (said.loss, first.loss))
    widening = max(1.0, *(_miss(interval, found) for interval, found in pairs))
    return Check(
        level=index,
        predicted_rate=said.learning_rate,
        predicted_batch=said.batch_tokens,
        predicted_loss=said.loss,
        rate=rate,
        batch=batch,
        loss=first.loss,
        twice_rate=others[0],
        twice_batch=others[1],
        widening=widening,
    )


def _miss(interval: Interval, found: float) -> float:
    """Returns how far from the middle a number came out, in half widths of its interval; all are logarithms."""
    edge = interval.high if found > interval.value else interval.low
    width = abs(math.log(edge / interval.value))
    return abs(math.log(found / interval.value)) / width if width else math.inf


def stage(plan: Plan, trials: Trials) -> str:
    """Returns the level that is run now, and how far it is, in words."""
    by_level = trials_by_level(plan, trials)
    if by_level[-1]:
        return f"stability of the target: {sum(map(is_over, by_level[-1]))} of 2"
    index = max((index for index, here in enumerate(by_level) if here), default=0)
    level, here = plan.levels[index], by_level[index]
    return f"level {level.words}: {sum(map(is_over, here))} of {max(level.runs, len(here))} runs"


@dataclass(frozen=True)
class Stability:
    """A short training of the target."""

    learning_rate: float
    times: int  # times the answer's rate
    status: str
    loss: float | None  # at its end, nats per token

    def is_stable(self, vocab_size: int) -> bool | None:
        """Returns True if its loss fell below an untrained model's; None while it trains."""
        if self.status not in (COMPLETED, DIVERGED):
            return None
        return self.loss is not None and self.loss < math.log(vocab_size)


@dataclass(frozen=True)
class Outcome:
    """What a ladder says of its target so far."""

    answer: Answer  # with intervals widened where verification missed them
    batch_size: int  # windows
    checks: tuple[Check, ...]  # of the levels that were predicted, smallest first
    stability: tuple[Stability, ...]
    budget_tokens: int  # of the target's training, whole steps


def outcome(plan: Plan, trials: Trials) -> Outcome | None:
    """Returns the outcome of the trials so far; None where too few have ended to fit."""
    by_level = trials_by_level(plan, trials)
    runs = runs_below(plan, trials, len(plan.levels))
    if len(runs) < FEWEST_TO_FIT:
        return None
    checks = [
        check
        for index in range(len(plan.levels))
        if by_level[index] and is_verified_level(plan, index) and (check := check_level(plan, trials, index))
    ]
    widening = checks[-1].widening if checks else 1.0
    found = widened(answered(runs, plan.target.size), widening)
    batch = plan.batch_windows(plan.target, found.batch_tokens.value)
    step = batch * plan.window
    return Outcome(found, batch, tuple(checks), _stability(by_level[-1]), plan.target.tokens // step * step)


def _stability(here: Sequence[Trial]) -> tuple[Stability, ...]:
    return tuple(
        Stability(trial.config["learning_rate"], times, trial.status, trial.losses.get(trial.tokens))
        for times, trial in enumerate(here, 1)
    )


def widened(found: Answer, factor: float) -> Answer:
    """Returns the answer with intervals `factor` times as wide, on a logarithmic scale."""
    wide: dict[str, Any] = {
        name: Interval(one.value, *(one.value * (edge / one.value) ** factor for edge in (one.low, one.high)))
        for name in ("learning_rate", "batch_tokens", "loss")
        if isinstance(one := getattr(found, name), Interval)
    }
    shares = {name: 1 - min(1.0, (1 - share) * factor**2) for name, share in found.share_from_runs.items()}
    return replace(found, **wide, share_from_runs=shares)


def settings_for(plan: Plan, level: Level, rate: float, batch: int, tokens: int, warmup: float) -> Mapping[str, Any]:
    """Returns the configuration of a trial."""
    training = {"learning_rate": rate, "batch_size": batch, "budget_tokens": tokens, "warmup_ratio": warmup}
    return level.settings | training
