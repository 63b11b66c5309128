"""What every search owes its user, whatever its rule: a reference to compare with, and a best that was seen twice."""

import math

from tune.core.ranking import ranking
from tune.core.schedulers.base import Action, Clock, Resume, Scheduler, replicate
from tune.core.trials import BASELINE_TRIAL, COMPLETED, CONTINUE, PAUSED, REPLICATE, STOP, Trial, Trials

REFERENCE_WORTH = 16  # full trainings that a search must have room for before one of them goes to the reference


class WithBaseline(Scheduler):
    """A rule beside which the reference configuration trains to the end, so that the gain over it shows. When the rule has
    nothing left to do, the best `confirm` configurations and the reference run on one more seed. A search that knows its
    end always has something to do: there the reference gets its second seed where there is room for two.
    """

    def __init__(self, rule: Scheduler, confirm: int):
        self.rule, self.confirm = rule, confirm
        self.factors, self.rung_tokens, self.stops = rule.factors, rule.rung_tokens, rule.stops

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        reference = trials.by_id.get(BASELINE_TRIAL)
        to_do = self._reference(reference, trials, clock) if reference else None
        if to_do and clock.used >= clock.left:  # exploring comes first
            return to_do
        return self.rule.suggest(trials, clock) or to_do or self._confirmation(reference, trials, clock)

    def on_report(self, trials: Trials, trial: Trial, tokens: int, loss: float) -> str:
        decision = self.rule.on_report(trials, trial, tokens, loss)
        return CONTINUE if decision == STOP and trial.trial_id == BASELINE_TRIAL else decision

    def _reference(self, reference: Trial, trials: Trials, clock: Clock) -> Action | None:
        budget = trials.budget_tokens
        room = trials.workers * (clock.used + clock.left) / budget / REFERENCE_WORTH  # for so many trainings of it
        if reference.status == PAUSED and room >= 1 and clock.left >= budget - reference.tokens:
            return Resume(BASELINE_TRIAL, segment_end_tokens=budget)
        if reference.status == COMPLETED and room >= 2 and math.isfinite(clock.left) and self.confirm:
            return replicate([reference], trials, clock, most=2)
        return None

    def _confirmation(self, reference: Trial | None, trials: Trials, clock: Clock) -> Action | None:
        if any(trial.source != REPLICATE for trial in trials.running.values()):
            return None  # it may be better
        best = [trial for trial in ranking(trials)[1] if trial.status == COMPLETED][: self.confirm]
        if best and reference and reference.status == COMPLETED and reference not in best:
            best.append(reference)
        return replicate(best, trials, clock, most=2)
