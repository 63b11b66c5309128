"""What a scheduler is asked, and what it may answer. Nothing here, and no scheduler, remembers anything."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tune.core.trials import CONTINUE, PAUSED, RUNNING, Trial, Trials

Rungs = tuple[tuple[float, int], ...]
"""(share of the budget, reduction factor: one in so many goes on), ascending"""


@dataclass(frozen=True)
class Clock:
    """Where a search stands between its beginning and its end, in tokens that one worker trains."""

    used: float
    left: float = math.inf
    """infinite where the search has no --time_budget, and as long as its speed is not known"""


@dataclass(frozen=True)
class Start:
    """A new configuration trains up to `segment_end_tokens` tokens."""

    segment_end_tokens: int
    proposed: bool = False
    """whether the searcher proposes it from what is known, instead of drawing it"""


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
    """The trial `parent_id`, which was left behind, goes on to the full budget, to show what leaving it cost."""

    parent_id: str


Action = Start | Resume | Replicate | Audit


class Scheduler:
    """A rule. `suggest` is asked whenever a worker is free, `on_report` at every report within a trial's segment.

    Both see all there is to know, the trials and the clock, and must answer the same when asked the same again.
    """

    default_rungs: Rungs = ()

    def __init__(self, rungs: Rungs, budget_tokens: int, report_tokens: int):
        self.factors: dict[int, int] = {}
        """milestone (tokens_seen) -> reduction factor; of two rungs at one report mark the harsher"""
        for share, factor in rungs:  # a rung lies at the first report mark at or after its share
            tokens = math.ceil(share * budget_tokens / report_tokens - 1e-9) * report_tokens
            if tokens < budget_tokens:
                self.factors[tokens] = max(factor, self.factors.get(tokens, 0))
        self.rung_tokens = tuple(sorted(self.factors))
        """tokens_seen at which trials store their state, so that they can pause there and go on"""
        self.stops = (*self.rung_tokens, budget_tokens)
        """tokens_seen at which a trial may stop: the rungs, and the full budget"""

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        """What a free worker does next; None: nothing before the next report."""
        raise NotImplementedError

    def on_report(self, trials: Trials, trial: Trial, tokens: int, loss: float) -> str:
        """CONTINUE, PAUSE (at a milestone) or STOP for `trial`, whose `loss` at `tokens` is not among `trials` yet."""
        return CONTINUE

    def may_audit(self, trials: Trials, trial: Trial) -> bool:
        """Whether `trial`, once it is left behind, is likely to go on all the same: then its state is kept."""
        return False


def replicate(of: Iterable[Trial], trials: Trials, clock: Clock, most: int, at_once: int = 1) -> Action | None:
    """The step that gives the first of some configurations that may have it one more seed at the full budget: a repeat that
    waits goes on, or one begins.

    None may have it that has `most` seeds, or `at_once` and one is on its way, or where there is no time.
    """
    budget = trials.budget_tokens
    for trial in of:
        on_its_way = any(repeat.status == RUNNING and repeat.segment_end_tokens == budget for repeat in trial.replicates)
        begun = 1 + sum(repeat.status != PAUSED for repeat in trial.replicates)
        if begun >= (at_once if on_its_way else most):
            continue
        for repeat in trial.replicates:
            if repeat.status == PAUSED and clock.left >= budget - repeat.tokens:
                return Resume(repeat.trial_id, segment_end_tokens=budget)
        if clock.left >= budget:
            return Replicate(trial.trial_id, segment_end_tokens=budget)
    return None
