"""A rule that a user adds: the better half at half of the budget goes on. The registry needs one more line."""

from tune.core.schedulers.base import Resume, Scheduler, Start
from tune.core.trials import PAUSED


class OwnRule(Scheduler):
    default_rungs = ((1 / 2, 2),)

    def suggest(self, trials, clock):
        half = self.rung_tokens[0]
        if trials.draws_left > 0:
            return Start(segment_end_tokens=half) if clock.left >= half else None
        if any(trial.tokens < half for trial in trials.running.values()):
            return None
        best = trials.ranked_at(half)[: max(1, trials.count_at(half) // 2)]
        waiting = [trial for trial in best if trial.status == PAUSED and clock.left >= half]
        return Resume(waiting[0].trial_id, segment_end_tokens=trials.budget_tokens) if waiting else None
