"""Hyperband: successive halving from several first rungs in turn (Li et al., JMLR 18, 2018)."""

import math
from itertools import pairwise

from tune.core.schedulers.base import Action, Clock, Resume, Scheduler, Start
from tune.core.trials import PAUSED, RUNNING, Trial, Trials


class Hyperband(Scheduler):
    """A bracket of trials starts at each rung in turn, the lowest with the most of them, and the last at the full budget.

    Each bracket takes about as many tokens. The best 1/factor go on when all of a bracket that can come to a rung have.
    """

    default_rungs = ((1 / 16, 4), (1 / 4, 4))

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        stops = self.stops
        key = (Hyperband, *self.factors.items())
        first, level = trials.cache.get(key, (0, 0))  # the first bracket that may still change: its first trial, its level
        over = True
        while True:
            size = math.prod(self.factors[tokens] for tokens in stops[level:-1])
            size *= math.ceil(len(stops) / (len(stops) - level))
            bracket = trials.drawn[first : first + size]
            if len(bracket) < size:
                return (
                    Start(segment_end_tokens=stops[level]) if trials.draws_left > 0 and clock.left >= stops[level] else None
                )
            promoted = self._promotion(bracket, stops[level:], clock)
            if promoted:
                return promoted
            over = over and self._is_over(bracket, stops[level:])
            first, level = first + size, (level + 1) % len(stops)
            if over:
                trials.cache[key] = first, level

    def _is_over(self, bracket: list[Trial], stops: tuple[int, ...]) -> bool:
        """True if no trial of a full bracket runs or will go on, however much time there is."""
        running = any(trial.status == RUNNING for trial in bracket)
        return not running and self._promotion(bracket, stops, Clock(0)) is None

    def _promotion(self, bracket: list[Trial], stops: tuple[int, ...], clock: Clock) -> Action | None:
        """The promotion of the next trial of a full bracket."""
        for here, there in pairwise(stops):
            if any(trial.status == RUNNING and trial.segment_end_tokens <= here for trial in bracket):
                return None
            ranked = sorted((trial for trial in bracket if here in trial.losses), key=lambda trial: trial.losses[here])
            bracket = ranked[: max(1, len(ranked) // self.factors[here])]
            for trial in bracket:
                if trial.status == PAUSED and trial.tokens == here and clock.left >= there - here:
                    return Resume(trial.trial_id, segment_end_tokens=there)
        return None
