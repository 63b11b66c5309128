"""Asynchronous successive halving that pauses and promotes (Li et al., arXiv 1810.05934, algorithm 2)."""

from itertools import pairwise

from tune.core.schedulers.base import Action, Clock, Resume, Scheduler, Start
from tune.core.trials import Trials


class Asha(Scheduler):
    """Every trial pauses at a rung. The best paused trial goes on while fewer than one in `factor` of the trials that came
    to the rung have. Higher rungs come first. Otherwise a new trial starts.
    """

    default_rungs = ((1 / 32, 2), (1 / 8, 4))

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        stops = self.stops
        for here, there in reversed(list(pairwise(stops))):
            waiting, came = trials.paused_at(here), trials.count_at(here)
            if waiting and came - len(waiting) < came // self.factors[here] and clock.left >= there - here:
                return Resume(waiting[0].trial_id, segment_end_tokens=there)
        return Start(segment_end_tokens=stops[0]) if trials.draws_left > 0 and clock.left >= stops[0] else None
