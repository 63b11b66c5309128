"""The default rule: half of the time explores configurations on cheap rungs, half finishes the best of them.

Evidence for each constant: experiments/LOG.md.
"""

import itertools
import math

from tune.core.ranking import TRUSTED_SEEDS, by_expected_final_loss
from tune.core.schedulers.base import Action, Clock, Replicate, Resume, Scheduler, Start, replicate
from tune.core.trials import REPLICATE, RUNNING, SAMPLED, SUGGESTED, Trial, Trials

EXPLORED_FIRST_TRAININGS = 4  # full trainings' worth of tokens, of all workers, before finishing gets its half
MIN_TRIALS_TO_COMPARE = 4  # trials at the last rung before the best one is replicated and suggestions begin
SEEDS_AT_RUNG = 2  # seeds of the best configuration at the last rung
SEEDS_AT_END = 4  # seeds of the incumbent at the full budget, at most


class ExploreThenFinish(Scheduler):
    """Explores on cheap rungs, then finishes the best.

    Exploring, a new configuration trains to the first rung, and at each rung the better half goes on to the next. The best
    at the last rung gets a second seed there. Once MIN_TRIALS_TO_COMPARE have come there, the searcher suggests
    configurations for half of the tokens. Finishing, the best at the last rung train to the full budget, and the
    incumbent, the lowest mean there, gets more seeds; so do those behind it in the time of the last two trainings. A
    search that knows its end finishes in its second half, in whole waves, with several seeds of one configuration side by
    side where workers are many. Another finishes whenever finishing has had fewer tokens than exploring.
    """

    default_rungs = ((1 / 32, 2), (1 / 8, 2), (1 / 4, 2))

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        if math.isinf(clock.left):
            return self._when_the_end_is_unknown(trials, clock)
        finish_tokens = trials.budget_tokens - self._last
        shared = clock.used + clock.left - EXPLORED_FIRST_TRAININGS * trials.budget_tokens / trials.workers
        waves = int(max(0.0, shared) / 2 / finish_tokens + 1e-9)
        single = waves < 2 and self._replicas(trials) < 2
        # A wave with replicates, or with second seeds at the rung, takes full trainings.
        reserve = waves * (finish_tokens if single else trials.budget_tokens)
        explored = self._explore(trials, clock.left - reserve) if clock.left > reserve else None
        spare_tokens = clock.left % finish_tokens if clock.left >= finish_tokens else 0.0
        return (
            explored
            or self._finish(trials, clock, spare_tokens if waves > 1 else 0.0)
            or self._explore(trials, spare_tokens)
            or self._finish_leftovers(trials, clock.left)
            or replicate(by_expected_final_loss(trials), trials, clock, SEEDS_AT_END, self._replicas(trials))
        )

    def _finish_leftovers(self, trials: Trials, left: float) -> Action | None:
        """Where no new configuration is left, trials left at rungs train to the end, the furthest first.

        Two full trainings of time must be left, so that the result can be confirmed.
        """
        for here in reversed(self.rung_tokens if trials.draws_left <= 0 and left >= 2 * trials.budget_tokens else ()):
            waiting = trials.paused_at(here)
            if waiting:
                return Resume(waiting[0].trial_id, segment_end_tokens=trials.budget_tokens)
        return None

    @staticmethod
    def _replicas(trials: Trials) -> int:
        """Seeds of one configuration that finish side by side: the root of the workers, at most TRUSTED_SEEDS."""
        return min(TRUSTED_SEEDS, round(math.sqrt(trials.workers)))

    @property
    def _last(self) -> int:
        """The tokens_seen of the last rung."""
        return self.rung_tokens[-1]

    def _when_the_end_is_unknown(self, trials: Trials, clock: Clock) -> Action | None:
        spent = sum(count * end for (_, end), count in trials.segments_by_end.items())
        finishing = sum(count * max(0, end - self._last) for (_, end), count in trials.segments_by_end.items())
        due = 2 * finishing < spent - EXPLORED_FIRST_TRAININGS * trials.budget_tokens
        finished = self._finish(trials, clock, clock.left) if due else None
        return finished or self._explore(trials, clock.left) or self._finish(trials, clock, clock.left)

    # Exploring

    def _explore(self, trials: Trials, left: float) -> Action | None:
        """The next step of exploring that takes at most `left` tokens."""
        for here, there in reversed(list(itertools.pairwise(self.rung_tokens))):
            waiting, came = trials.paused_at(here), trials.count_by_rung[here, SAMPLED]
            least = 1 if trials.draws_left <= 0 else 0  # a small search promotes at least one
            quota = max(came // self.factors[here], least)
            if waiting and came - len(waiting) < quota and left >= there - here:
                return Resume(waiting[0].trial_id, segment_end_tokens=there)
        if trials.count_at(self._last) >= MIN_TRIALS_TO_COMPARE and left >= self._last:
            best = min(trials.ranked_at(self._last), key=lambda trial: trial.mean_at(self._last))
            if trials.has_seeds and len(best.replicates) + 1 < SEEDS_AT_RUNG:
                return Replicate(best.trial_id, segment_end_tokens=self._last)
        if trials.draws_left <= 0:
            return None
        if trials.count_at(self._last) >= MIN_TRIALS_TO_COMPARE and left >= self._last:
            spent = {True: 0, False: 0}
            for (source, end), count in trials.segments_by_end.items():
                if source != REPLICATE:
                    spent[source == SUGGESTED] += count * min(end, self._last)
            if spent[True] < spent[False]:
                return Start(segment_end_tokens=self._last, proposed=True)
        return Start(segment_end_tokens=self.rung_tokens[0]) if left >= self.rung_tokens[0] else None

    # Finishing

    def _finish(self, trials: Trials, clock: Clock, spare_tokens: float) -> Action | None:
        """The next step of finishing; `spare_tokens` are the tokens that finishing does not need."""
        budget, finish_tokens = trials.budget_tokens, trials.budget_tokens - self._last
        replicas = self._replicas(trials)
        done, waiting = trials.count_at(budget), self._waiting(trials)

        if done > 1 or (done and not waiting):
            # A leader with fewer seeds than another configuration gets the missing ones side by side. When less than two
            # trainings are left, a new finisher could not be replicated in time: all that ended may get another seed.
            ahead = itertools.islice(by_expected_final_loss(trials), None if clock.left < 2 * budget else 1)
            most = min(TRUSTED_SEEDS, max(len(trial.seeds_at(budget)) for trial in trials.ranked_at(budget)))
            if action := replicate(ahead, trials, clock, SEEDS_AT_END, max(replicas, most)):
                return action
        if clock.left < 2 * budget:
            finishing = (
                trial
                for trial in trials.running.values()
                if trial.source != REPLICATE and trial.segment_end_tokens == budget
            )
            if action := replicate(finishing, trials, clock, replicas, replicas):
                return action
        if clock.left < finish_tokens:
            return None  # no step from the last rung on fits
        for trial in waiting:
            if trials.has_seeds and spare_tokens >= self._last and len(trial.replicates) + 1 < SEEDS_AT_RUNG:
                return Replicate(trial.trial_id, segment_end_tokens=self._last)
            if not any(seed.status == RUNNING for seed in trial.replicates):
                return Resume(trial.trial_id, segment_end_tokens=budget)
        if math.isinf(clock.left):
            return None
        return replicate(itertools.islice(by_expected_final_loss(trials), 1), trials, clock, SEEDS_AT_END, replicas)

    def _waiting(self, trials: Trials) -> list[Trial]:
        """The trials that are paused at the last rung, the lowest mean over their seeds first."""
        return sorted(trials.paused_at(self._last), key=lambda trial: trial.mean_at(self._last))
