"""The default rule: explore configurations up to a rung, then finish the best of them."""

import heapq
import math
from collections.abc import Iterator
from itertools import pairwise

from tune.core.decision_config import DECISIONS, DecisionConfig
from tune.core.ranking import by_expected_final_loss
from tune.core.schedulers.base import Action, Clock, Replicate, Resume, Scheduler, Start, replicate
from tune.core.trials import PAUSED, REPLICATE, RUNNING, SAMPLED, SUGGESTED, Trial, Trials

Steps = Iterator[Action | None]


class ExploreThenFinish(Scheduler):
    """Explores configurations up to the last rung, then trains the best of them to the end and on more seeds.

    At each rung but the last, one in `factor` goes on to the next. Once enough came to the last rung, every second
    configuration is a suggestion, and the best there gets a second seed. Exploring ends with a second seed there for the
    best few, before they train to the end, the baseline first if it is among the best one in `factor`. A search that knows
    its end finishes in its last part; another one explores and finishes in turns, until one in `factor` has ended.
    """

    config: DecisionConfig = DECISIONS
    default_rungs = ((DECISIONS.rung_share, round(1 / DECISIONS.rung_share)),)

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        steps = self._without_end(trials, clock) if math.isinf(clock.left) else self._until_end(trials, clock)
        return next((action for action in steps if action), None)

    def _until_end(self, trials: Trials, clock: Clock) -> Steps:
        """The steps of a search that knows its end. In its last part it finishes: one training from the last rung, and then
        whole ones, as they may be seeds. A short search finishes if the baseline is a rival: the end decides between it
        and the best.
        """
        budget, finish_tokens = trials.budget_tokens, trials.budget_tokens - self.rung_tokens[-1]
        shared = clock.used + clock.left - self._explored_first(trials) / trials.workers
        whole = (self.config.finishing_share * shared - finish_tokens) / budget + 1e-9
        reserve = finish_tokens + int(whole) * budget if whole >= 0 else 0
        both = math.ceil(2 / trials.workers) * finish_tokens
        if reserve < both <= shared + 1e-9 and self._rival(trials):
            reserve = both
        yield from self._explore(trials, clock.left - reserve)
        yield from self._finish(trials, clock)
        ended = behind_in_seeds(by_expected_final_loss(trials))
        yield replicate(ended, trials, clock, self.config.seeds, self.config.seeds)

    def _without_end(self, trials: Trials, clock: Clock) -> Steps:
        """The steps of a search that does not know its end: exploring and finishing take turns."""
        last = self.rung_tokens[-1]
        spent = sum(count * end for (_, end), count in trials.segments_by_end.items())
        finishing = sum(count * max(0, end - last) for (_, end), count in trials.segments_by_end.items())
        if finishing < self.config.finishing_share * (spent - self._explored_first(trials)):
            yield from self._finish(trials, clock)
        yield from self._explore(trials, clock.left)
        yield from self._finish(trials, clock)
        if not self._on_first_seed(trials):
            yield replicate(by_expected_final_loss(trials)[:1], trials, clock, self.config.seeds, self.config.seeds)

    def _explored_first(self, trials: Trials) -> float:
        """The tokens, of all workers, before finishing has its share."""
        return self.config.explored_first_trainings * trials.budget_tokens

    def _side_by_side(self, trials: Trials) -> int:
        """Seeds of one configuration that finish side by side: the root of the workers, at most `seeds`."""
        return min(self.config.seeds, round(math.sqrt(trials.workers)))

    # Exploring: steps that take at most `left` tokens

    def _explore(self, trials: Trials, left: float) -> Steps:
        yield self._promote(trials, left)
        yield self._replicate_at_rung(trials, left)
        yield self._suggest_configuration(trials, left)
        yield self._sample_configuration(trials, left)

    def _is_compared(self, trials: Trials, left: float) -> bool:
        """True if enough have come to the last rung, and one more fits."""
        last = self.rung_tokens[-1]
        return trials.count_at(last) >= self.config.compared and left >= last

    def _promote(self, trials: Trials, left: float) -> Action | None:
        """The best that waits at a rung goes on to the next while less than one in `factor` of those sampled has."""
        for here, there in reversed(list(pairwise(self.rung_tokens))):
            waiting, came = trials.paused_at(here), trials.count_by_rung[here, SAMPLED]
            quota = max(came // self.factors[here], 1 if trials.draws_left <= 0 else 0)
            if waiting and came - len(waiting) < quota and left >= there - here:
                return Resume(waiting[0].trial_id, segment_end_tokens=there)
        return None

    def _replicate_at_rung(self, trials: Trials, left: float) -> Action | None:
        """The best at the last rung trains there on a second seed. At the end of exploring the best few do, one a worker at
        most, since of many with one seed the luckiest leads.
        """
        last = self.rung_tokens[-1]
        over = trials.draws_left <= 0 or left < 2 * last
        few = min(trials.workers, trials.count_at(last) // self.factors[last]) if over else 1
        best = heapq.nsmallest(max(1, few), trials.ranked_at(last), key=lambda trial: trial.mean_at(last))
        single = next((trial for trial in best if not trial.replicates), None)
        if single and trials.has_seeds and self._is_compared(trials, left):
            return Replicate(single.trial_id, segment_end_tokens=last)
        return None

    def _suggest_configuration(self, trials: Trials, left: float) -> Action | None:
        """A suggestion trains to the last rung while suggestions have had fewer tokens than samples."""
        last, spent = self.rung_tokens[-1], {SAMPLED: 0, SUGGESTED: 0, REPLICATE: 0}
        for (source, end), count in trials.segments_by_end.items():
            spent[source] += count * min(end, last)
        if trials.draws_left > 0 and spent[SUGGESTED] < spent[SAMPLED] and self._is_compared(trials, left):
            return Start(segment_end_tokens=last, proposed=True)
        return None

    def _sample_configuration(self, trials: Trials, left: float) -> Action | None:
        """An even draw trains to the first rung."""
        fits = trials.draws_left > 0 and left >= self.rung_tokens[0]
        return Start(segment_end_tokens=self.rung_tokens[0]) if fits else None

    # Finishing

    def _finish(self, trials: Trials, clock: Clock) -> Steps:
        side, waiting = self._side_by_side(trials), self._waiting(trials, clock)
        ended, late = by_expected_final_loss(trials), clock.left < 2 * trials.budget_tokens
        if len(ended) > 1 or not waiting:  # late, a new finisher could not get another seed in time
            yield replicate(behind_in_seeds(ended) if late else ended[:1], trials, clock, self.config.seeds, side)
        if late:
            yield replicate(self._leading(trials, waiting), trials, clock, side, side)
        yield from (Resume(trial.trial_id, segment_end_tokens=trials.budget_tokens) for trial in waiting)

    def _waiting(self, trials: Trials, clock: Clock) -> list[Trial]:
        """The paused trials that may finish, the furthest first, there a rival, and the lowest mean first. Where the end is
        unknown, they are those that will be among the best, one in `factor`, even if all on their way to the last rung come
        out ahead.
        """
        budget, last, rival = trials.budget_tokens, self.rung_tokens[-1], self._rival(trials)
        waiting = [
            trial
            for rung in reversed(self.rung_tokens if trials.draws_left <= 0 else (last,))
            for trial in sorted(trials.paused_at(rung), key=lambda trial: (trial is not rival, trial.mean_at(rung)))
            if clock.left >= budget - rung
        ]
        if math.isinf(clock.left):
            coming = len(self._on_first_seed(trials, to=last))
            most = max(1, (trials.count_at(last) + coming) // self.factors[last])
            gone = trials.count_at(budget) + len(self._on_first_seed(trials, to=budget))
            waiting = waiting[: max(0, most - coming - gone)]
        return [trial for trial in waiting if not any(seed.status == RUNNING for seed in trial.replicates)]

    def _rival(self, trials: Trials) -> Trial | None:
        """The baseline, if it is among the best one in `factor` at the last rung, so that it may be the best at the end."""
        last, baseline = self.rung_tokens[-1], trials.baseline
        if baseline is None or not math.isfinite(baseline.mean_at(last)):
            return None
        ahead = sum(trial.mean_at(last) < baseline.mean_at(last) for trial in trials.ranked_at(last))
        return baseline if ahead < max(1, trials.count_at(last) / self.factors[last]) else None

    def _on_first_seed(self, trials: Trials, to: int | None = None) -> list[Trial]:
        """The configurations that train now on their first seed, all of them or those whose segment ends at `to` tokens."""
        running = [trial for trial in trials.running.values() if trial.source != REPLICATE]
        return [trial for trial in running if to in (None, trial.segment_end_tokens)]

    def _leading(self, trials: Trials, waiting: list[Trial]) -> list[Trial]:
        """The finishing configurations that no trial of `waiting` is ahead of. The baseline may finish without leading:
        with seeds that better ones lack it would be named.
        """
        last = self.rung_tokens[-1]
        ahead = min((trial.mean_at(last) for trial in waiting if last in trial.losses), default=math.inf)
        finishing = self._on_first_seed(trials, to=trials.budget_tokens)
        return [trial for trial in finishing if not trial.mean_at(last) > ahead]


def behind_in_seeds(ended: list[Trial]) -> list[Trial]:
    """Those of the `ended` trials, the best first, with fewer seeds than every better one: others would rank before it."""
    found, fewest = [], math.inf
    for trial in ended:
        begun = 1 + sum(seed.status != PAUSED for seed in trial.replicates)
        found += [trial] if begun < fewest else []
        fewest = min(fewest, begun)
    return found
