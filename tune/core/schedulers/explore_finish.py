"""The default: one half of the time looks for good configurations on cheap rungs, the other finishes the best of them.

Evidence, and the worth of each constant: experiments/LOG.md.
"""

import itertools
import math

from tune.core.ranking import TRUSTED_SEEDS, by_expected_final_loss
from tune.core.schedulers.base import Action, Clock, Replicate, Resume, Scheduler, Start, replicate
from tune.core.trials import REPLICATE, RUNNING, SAMPLED, SUGGESTED, Trial, Trials

EXPLORED_FIRST = 4  # full trainings' worth, of all workers, before finishing begins to take its half
ENOUGH = 4  # trials at the last rung before the best of them is looked at again, and proposals begin
SEEDS_AT_RUNG = 2  # that a configuration has at the last rung before it goes on to the end
SEEDS_AT_END = 4  # that the incumbent gets at most


class ExploreThenFinish(Scheduler):
    """Explores, then finishes.

    Exploring, a new configuration trains to the first rung; at each rung the better half goes on to the next, and the best
    at the last one runs up to it on a second seed, so that none leads by luck. When enough have come there, every second
    token goes into configurations that the searcher proposes. Finishing, the best at the last rung go on to the end, and
    the incumbent, the lowest mean loss at the end, runs on more seeds before it is believed. In the time of the last two
    trainings, and where nothing else is left to do, so do those next to it.

    In a search that knows its end the last half of it finishes, in whole waves of trainings from the last rung to the end:
    the longer the search, the more finish. Many workers finish few configurations, on several seeds each, side by side: of
    a wave of single ones the best would be the luckiest. A search that does not know its end finishes whenever less went
    into that than into exploring.
    """

    default_rungs = ((1 / 32, 2), (1 / 8, 2), (1 / 4, 2))

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        if math.isinf(clock.left):
            return self._when_the_end_is_unknown(trials, clock)
        to_finish = trials.budget_tokens - self._last
        shared = clock.used + clock.left - EXPLORED_FIRST * trials.budget_tokens / trials.workers
        waves = int(max(0.0, shared) / 2 / to_finish + 1e-9)
        alone = waves < 2 and self._side_by_side(trials) < 2
        reserve = waves * (to_finish if alone else trials.budget_tokens)  # with the seeds beside them, or the looks before
        explored = self._explore(trials, clock.left - reserve) if clock.left > reserve else None
        slack = clock.left % to_finish if clock.left >= to_finish else 0.0
        return (
            explored
            or self._finish(trials, clock, slack if waves > 1 else 0.0)
            or self._explore(trials, slack)
            or self._take_up_those_left(trials, clock.left)
            or replicate(by_expected_final_loss(trials), trials, clock, SEEDS_AT_END, self._side_by_side(trials))
        )

    def _take_up_those_left(self, trials: Trials, left: float) -> Action | None:
        """Where nobody is left to draw and workers would idle, those left at rungs go on to the end, the furthest first,
        while there is time to confirm what they show.
        """
        for here in reversed(self.rung_tokens if trials.draws_left <= 0 and left >= 2 * trials.budget_tokens else ()):
            waiting = trials.paused_at(here)
            if waiting:
                return Resume(waiting[0].trial_id, segment_end_tokens=trials.budget_tokens)
        return None

    @staticmethod
    def _side_by_side(trials: Trials) -> int:
        """Seeds of a configuration that finish at once: as many as configurations do, until they are enough to trust it."""
        return min(TRUSTED_SEEDS, round(trials.workers**0.5))

    @property
    def _last(self) -> int:
        """Tokens at the last rung."""
        return self.rung_tokens[-1]

    def _when_the_end_is_unknown(self, trials: Trials, clock: Clock) -> Action | None:
        spent = sum(count * end for (_, end), count in trials.segments_by_end.items())
        finishing = sum(
            count * max(0, segment_end_tokens - self._last)
            for (_, segment_end_tokens), count in trials.segments_by_end.items()
        )
        due = 2 * finishing < spent - EXPLORED_FIRST * trials.budget_tokens
        finished = self._finish(trials, clock, clock.left) if due else None
        return finished or self._explore(trials, clock.left) or self._finish(trials, clock, clock.left)

    # Exploring

    def _explore(self, trials: Trials, left: float) -> Action | None:
        """The next step towards the last rung that takes at most `left` tokens."""
        for here, there in reversed(list(itertools.pairwise(self.rung_tokens))):
            waiting, came = trials.paused_at(here), trials.count_by_rung[here, SAMPLED]
            places = max(came // self.factors[here], trials.draws_left <= 0)  # of a search of few at least one goes on
            if waiting and came - len(waiting) < places and left >= there - here:
                return Resume(waiting[0].trial_id, segment_end_tokens=there)
        if trials.count_at(self._last) >= ENOUGH and left >= self._last:
            best = min(trials.ranked_at(self._last), key=lambda trial: trial.mean_at(self._last))
            if len(best.replicates) + 1 < SEEDS_AT_RUNG:
                return Replicate(best.trial_id, segment_end_tokens=self._last)
        if trials.draws_left <= 0:
            return None
        if trials.count_at(self._last) >= ENOUGH and left >= self._last:
            spent = {True: 0, False: 0}
            for (source, end), count in trials.segments_by_end.items():
                if source != REPLICATE:
                    spent[source == SUGGESTED] += count * min(end, self._last)
            if spent[True] < spent[False]:
                return Start(segment_end_tokens=self._last, proposed=True)
        return Start(segment_end_tokens=self.rung_tokens[0]) if left >= self.rung_tokens[0] else None

    # Finishing

    def _finish(self, trials: Trials, clock: Clock, slack: float) -> Action | None:
        """The next step towards a configuration that one can believe in; `slack` tokens are more than finishing needs."""
        budget, to_finish = trials.budget_tokens, trials.budget_tokens - self._last
        side = self._side_by_side(trials)
        done, waiting = trials.count_at(budget), self._waiting(trials)

        if done > 1 or (done and not waiting):
            # Who is ahead of one with more seeds gets those that it lacks side by side. What would end when less than two
            # trainings are left could not be trusted in time any more: the best of those that have ended get another seed.
            ahead = itertools.islice(by_expected_final_loss(trials), None if clock.left < 2 * budget else 1)
            most = min(TRUSTED_SEEDS, max(len(trial.seeds_at(budget)) for trial in trials.ranked_at(budget)))
            if repeat := replicate(ahead, trials, clock, SEEDS_AT_END, max(side, most)):
                return repeat
        if clock.left < 2 * budget:
            finishing = (
                trial
                for trial in trials.running.values()
                if trial.source != REPLICATE and trial.segment_end_tokens == budget
            )
            if repeat := replicate(finishing, trials, clock, side, side):
                return repeat
        if clock.left < to_finish:
            return None  # no step from the last rung on fits
        for trial in waiting:
            if slack >= self._last and len(trial.replicates) + 1 < SEEDS_AT_RUNG:
                return Replicate(trial.trial_id, segment_end_tokens=self._last)
            if not any(repeat.status == RUNNING for repeat in trial.replicates):
                return Resume(trial.trial_id, segment_end_tokens=budget)
        if math.isinf(clock.left):
            return None
        return replicate(itertools.islice(by_expected_final_loss(trials), 1), trials, clock, SEEDS_AT_END, side)

    def _waiting(self, trials: Trials) -> list[Trial]:
        """The trials that are paused at the last rung, the lowest mean over their seeds first."""
        return sorted(trials.paused_at(self._last), key=lambda trial: trial.mean_at(self._last))
