"""Beside any rule: at the end some of the trials that it left behind train to the full budget, to measure the cost."""

import hashlib
import math

from tune.core.schedulers.base import Action, Audit, Clock, Scheduler
from tune.core.trials import PAUSED, RUNNING, STOPPED, Trial, Trials


class WithAudit(Scheduler):
    """A rule whose decisions are audited: at its end a `share` of the trials left behind, one at least, go on to the full
    budget.

    A lot from the search's `seed` and the trial's id chooses them: the same after a resume, and a random sample also where
    an audit is broken off. An audit is a trial of its own, which no rule sees.
    """

    def __init__(self, rule: Scheduler, share: float, seed: int):
        self.rule, self.share, self.seed = rule, share, seed
        self.factors, self.rung_tokens, self.stops = rule.factors, rule.rung_tokens, rule.stops

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        action = self.rule.suggest(trials, clock)
        if action or (trials.running and clock.left > 0):
            return action  # the trials left behind are not final yet
        left_behind = sorted(filter(is_left_behind, trials.drawn), key=lambda trial: self.lot(trial.trial_id))
        chosen = left_behind[: math.ceil(self.share * len(left_behind) - 1e-9)]
        return next((Audit(trial.trial_id) for trial in chosen if trial.trial_id not in trials.audits), None)

    def on_report(self, trials: Trials, trial: Trial, tokens: int, loss: float) -> str:
        return self.rule.on_report(trials, trial, tokens, loss)

    def may_audit(self, trials: Trials, trial: Trial) -> bool:
        audit = trials.audits.get(trial.trial_id)
        if audit:
            return audit.status == RUNNING
        return self.lot(trial.trial_id) < self.share  # an approximation: a chosen trial without its state begins anew

    def lot(self, trial_id: str) -> float:
        """A number from 0 to 1 that depends on nothing but the seed and the digits of the id."""
        digest = hashlib.sha256(f"{self.seed} {trial_id.removeprefix('t')}".encode()).digest()

        return int.from_bytes(digest[:7]) / 2**56


def is_left_behind(trial: Trial) -> bool:
    """True if the rule stopped the trial, or left it paused, after at least one report."""
    return trial.status in (PAUSED, STOPPED) and bool(trial.losses)
