"""The interface of a scheduler: the clock that it reads and the actions that it answers. A scheduler remembers nothing."""

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tune.core.trials import CONTINUE, PAUSED, RUNNING, Trial, Trials

Rungs = tuple[tuple[float, int], ...]
"""(share of the budget, reduction factor) of each rung, ascending: one in `factor` trials goes on"""


@dataclass(frozen=True)
class Clock:
    """Where a search stands between its beginning and its end, in tokens that one worker trains."""

    used: float
    left: float = math.inf  # infinite in a search without --time_budget, and until the workers' speed is known


@dataclass(frozen=True)
class Start:
    """A new configuration trains up to `segment_end_tokens` tokens."""

    segment_end_tokens: int
    proposed: bool = False  # True if the searcher suggests the configuration, False if it is sampled
    config: dict[str, Any] | None = None  # the configuration, where the scheduler itself chooses it


@dataclass(frozen=True)
class Resume:
    """A paused trial goes on, up to `segment_end_tokens` tokens."""

    trial_id: str
    segment_end_tokens: int


@dataclass(frozen=True)
class Replicate:
    """The configuration of the trial `parent_id` trains up to `segment_end_tokens` on a new seed."""

    parent_id: str
    segment_end_tokens: int


@dataclass(frozen=True)
class Audit:
    """The trial `parent_id`, which was left behind, goes on to the full budget, to measure what stopping it cost."""

    parent_id: str


Action = Start | Resume | Replicate | Audit


class Scheduler:
    """A rule. `suggest` is called whenever a worker is free, `on_report` at every report within a trial's segment.

    Both must be pure functions of their arguments, so that a resumed search decides as an uninterrupted one.
    """

    default_rungs: Rungs = ()

    def __init__(self, rungs: Rungs, budget_tokens: int, report_tokens: int):
        self.factors: dict[int, int] = {}
        """rung (tokens_seen) -> reduction factor; of two rungs at one report point the larger factor"""
        for share, factor in rungs:  # a rung lies at the first report point at or after its share
            tokens = math.ceil(share * budget_tokens / report_tokens - 1e-9) * report_tokens
            if tokens < budget_tokens:
                self.factors[tokens] = max(factor, self.factors.get(tokens, 0))
        self.rung_tokens = tuple(sorted(self.factors))
        """tokens_seen at which trials store their state, so that they can pause there and go on"""
        self.stops = (*self.rung_tokens, budget_tokens)
        """tokens_seen at which a trial may stop: the rungs, and the full budget"""

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        """The next action of a free worker, or None: it waits for the next report."""
        raise NotImplementedError

    def on_report(self, trials: Trials, trial: Trial, tokens: int, loss: float) -> str:
        """CONTINUE, PAUSE (at a rung) or STOP for `trial`; its `loss` at `tokens` is not in `trials` yet."""
        return CONTINUE

    def next_stop(self, trial: Trial) -> int:
        """The tokens_seen at which a running trial may stop next: a rung, or the end of its training."""
        return self.stops[bisect.bisect_right(self.stops, trial.tokens)]

    def may_audit(self, trials: Trials, trial: Trial) -> bool:
        """True if `trial` is likely to be audited once it is left behind, so that its state must be kept."""
        return False


def replicate(
    candidates: Iterable[Trial], trials: Trials, clock: Clock, max_seeds: float, concurrent: float = 1
) -> Action | None:
    """The action that gives the first of the `candidates` that may have it one more seed at the full budget. None may have
    it that has `max_seeds`, or `concurrent` and one is running, or too little time. A paused replicate goes on first.
    """
    budget = trials.budget_tokens
    max_seeds, concurrent = min(max_seeds, trials.max_seeds), min(concurrent, trials.max_seeds)
    for trial in candidates:
        on_its_way = any(seed.status == RUNNING and seed.segment_end_tokens == budget for seed in trial.replicates)
        begun = 1 + sum(seed.status != PAUSED for seed in trial.replicates)
        if begun >= (concurrent if on_its_way else max_seeds):
            continue
        for seed in trial.replicates:
            if seed.status == PAUSED and clock.left >= budget - seed.tokens:
                return Resume(seed.trial_id, segment_end_tokens=budget)
        if clock.left >= budget:
            return Replicate(trial.trial_id, segment_end_tokens=budget)
    return None
