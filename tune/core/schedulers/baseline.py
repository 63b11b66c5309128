"""Beside any rule: the baseline trains to the full budget, and the best configurations run on a second seed."""

import math

from tune.core.ranking import ranking
from tune.core.schedulers.base import Action, Clock, Resume, Scheduler, replicate
from tune.core.trials import COMPLETED, CONTINUE, PAUSED, REPLICATE, STOP, Trial, Trials

BASELINE_WORTH_TRAININGS = 16  # full trainings that a search must have room for, for each training of the baseline


class WithBaseline(Scheduler):
    """A rule beside which the baseline trains to the full budget, so that the gain over it shows. When the rule has
    nothing left to do, the best `confirm` configurations and the baseline run on one more seed; in a timed search the
    baseline gets its second seed where there is room.
    """

    def __init__(self, rule: Scheduler, confirm: int):
        self.rule, self.confirm = rule, confirm
        self.factors, self.rung_tokens, self.stops = rule.factors, rule.rung_tokens, rule.stops

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        baseline = trials.baseline
        to_do = self._train_baseline(baseline, trials, clock) if baseline else None
        if to_do and clock.used >= clock.left:  # exploring comes first
            return to_do
        return self.rule.suggest(trials, clock) or to_do or self._confirm(baseline, trials, clock)

    def on_report(self, trials: Trials, trial: Trial, tokens: int, loss: float) -> str:
        decision = self.rule.on_report(trials, trial, tokens, loss)
        return CONTINUE if decision == STOP and trial is trials.baseline else decision

    def _train_baseline(self, baseline: Trial, trials: Trials, clock: Clock) -> Action | None:
        budget = trials.budget_tokens
        room = trials.workers * (clock.used + clock.left) / budget / BASELINE_WORTH_TRAININGS  # trainings of the baseline
        if baseline.status == PAUSED and room >= 1 and clock.left >= budget - baseline.tokens:
            return Resume(baseline.trial_id, segment_end_tokens=budget)
        if baseline.status == COMPLETED and room >= 2 and math.isfinite(clock.left) and self.confirm:
            return replicate([baseline], trials, clock, max_seeds=2)
        return None

    def _confirm(self, baseline: Trial | None, trials: Trials, clock: Clock) -> Action | None:
        if any(trial.source != REPLICATE for trial in trials.running.values()):
            return None  # a running configuration may be better
        best = [trial for trial in ranking(trials)[1] if trial.status == COMPLETED][: self.confirm]
        if best and baseline and baseline.status == COMPLETED and baseline not in best:
            best.append(baseline)
        return replicate(best, trials, clock, max_seeds=2)
