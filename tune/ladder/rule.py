"""The rule of a ladder: a pure function of the trials, like every scheduler; it names each trial's settings as well.

Level by level, smallest first. The lowest begins at the law's point with points spread around it; then runs lie in turn
where the fit expects the optimum and where they tell most of the target. The top level is predicted, then run there, at
twice the rate and at twice the batch. Where the prediction fails, the next level is the top, while the share lasts. Two
short trainings of the target, at the answer's rate and at twice that, end the ladder.
"""

import math
from collections.abc import Iterator

from myllm.scaling_laws import LOWEST_PARAMS
from tune.core.schedulers.base import Action, Clock, Scheduler, Start
from tune.core.search_space import Range, even_draw
from tune.core.trials import Trial, Trials
from tune.ladder.design import BATCH_STEPS, RATE_STEPS, Point, most_telling
from tune.ladder.fit import Run
from tune.ladder.plan import REACH, TOP_RUNS, Level, Plan
from tune.ladder.runs import (
    FEWEST_TO_FIT,
    check_level,
    fitted,
    is_over,
    is_verified_level,
    outcome,
    predicted,
    rounded,
    runs_below,
    settings_for,
    trials_by_level,
)

FEWEST_SPREAD = 4
"""Runs of the lowest level that are spread before the fit chooses; half of them if these are more."""

STABILITY_WARMUP = 0.5
"""Share of a training for stability in which the rate rises: then it holds its peak in the other half."""

ALIKE = 1.1
"""Factor in rate below which two runs of one batch are the same run."""


class LadderScheduler(Scheduler):
    """Runs the trainings of a plan, each whole; none pauses, and none is stopped."""

    def __init__(self, plan: Plan, seed: int, report_tokens: int):
        super().__init__((), plan.target.tokens, report_tokens)
        self.plan, self.seed = plan, seed

    def next_stop(self, trial: Trial) -> int:
        """Returns the tokens at which the trial's training ends."""
        return trial.budget_tokens

    def suggest(self, trials: Trials, clock: Clock) -> Action | None:
        if clock.left <= 0:
            return None
        by_level = trials_by_level(self.plan, trials)
        for index in self._levels(trials, by_level):
            level, here = self.plan.levels[index], by_level[index]
            if len(here) < self._count(index):
                if not fits(level, trials, self.plan, clock):
                    continue
                point = self._point(trials, index, here)
                return self._start(level, *point) if point else None
            if index >= self.plan.top and not all(map(is_over, here)):
                return None  # the verification needs them
        return self._stability(trials, by_level, clock)

    def _levels(self, trials: Trials, by_level: list[list[Trial]]) -> Iterator[int]:
        """Yields the indices of the levels to run: those of the plan, and above the top while verification fails."""
        plan = self.plan
        yield from (index for index, level in enumerate(plan.levels) if level.runs)
        for index in range(plan.top + 1, len(plan.levels)):
            if not by_level[index]:
                check = check_level(plan, trials, index - 1) if is_verified_level(plan, index - 1) else None
                spent = sum(level.flops * len(here) for level, here in zip(plan.levels, by_level, strict=False))
                left = plan.share * plan.target.flops - plan.stability_flops - spent
                if check is None or check.holds or left < TOP_RUNS * plan.levels[index].flops:
                    return
            yield index

    def _count(self, index: int) -> int:
        """Returns the number of a level's runs."""
        return self.plan.levels[index].runs or TOP_RUNS

    def _start(self, level: Level, rate: float, batch: int, suggested: bool) -> Start:
        config = settings_for(self.plan, level, rate, batch, level.tokens, self.plan.warmup_ratio)
        return Start(segment_end_tokens=level.tokens, proposed=suggested, config=dict(config))

    def _point(self, trials: Trials, index: int, here: list[Trial]) -> tuple[float, int, bool] | None:
        """Returns rate, batch, and True if the fit chose them, of a level's next run; None: it waits for losses."""
        plan, place = self.plan, len(here)
        level, by_level = plan.levels[index], trials_by_level(plan, trials)
        is_lowest = not any(by_level[:index])
        if is_lowest and place < max(FEWEST_SPREAD, self._count(index) // 2):
            return (*self._spread(level, place), False)
        if not all(is_over(trial) for below in by_level[:index] for trial in below):
            return None
        runs = runs_below(plan, trials, index + 1)
        if len(runs) < FEWEST_TO_FIT:
            waits = not all(map(is_over, here))
            return None if waits else (*self._spread(level, place), False)
        if is_verified_level(plan, index) and place < TOP_RUNS:
            if place == 0:
                return (*predicted(plan, trials, index), True)
            rate, batch = here[0].config["learning_rate"], here[0].config["batch_size"]
            if place == 1:
                return 2 * rate, batch, True
            return rate, (2 * batch if 2 * batch <= level.most_batch else max(1, batch // 2)), True
        return (*self._fitted(runs, level, place, here), True)

    def _spread(self, level: Level, place: int) -> Point:
        """Returns the point of one of the first runs: the centre, from LOWEST_PARAMS on the baseline, then even draws."""
        rate, batch = self.plan.centre(level)
        if place == 0:
            return rounded(rate), batch
        if place == 1 and level.params >= LOWEST_PARAMS:
            return rounded(self.plan.carried_rate(level)), batch
        ranges = {name: Range(one / REACH, one * REACH) for name, one in (("rate", rate), ("batch", float(batch)))}
        drawn = even_draw({**ranges}, self.seed, place)
        return rounded(drawn["rate"]), self.plan.batch_windows(level, drawn["batch"] * self.plan.window)

    def _fitted(self, runs: tuple[Run, ...], level: Level, place: int, here: list[Trial]) -> Point:
        """Returns the optimum that the fit expects, or in turn the point that tells most of the target."""
        plan = self.plan
        fit = fitted(runs, plan.target.size)
        (log_rate, log_batch), _ = fit.optimum(level.size)
        tried = [(trial.config["learning_rate"], trial.config["batch_size"]) for trial in here]
        best = rounded(math.exp(log_rate)), plan.batch_windows(level, math.exp(log_batch))
        if place % 2 == 0 and not any(alike(best, point) for point in tried):
            return best
        batches = {plan.batch_windows(level, best[1] * step * plan.window) for step in BATCH_STEPS}
        points = [(rounded(best[0] * step), batch) for step in RATE_STEPS for batch in sorted(batches)]
        new = [point for point in points if not any(alike(point, other) for other in tried)] or points
        running = [point for point, trial in zip(tried, here, strict=True) if not is_over(trial)]
        return most_telling(fit, runs, level.size, plan.target.size, new, running, plan.window)

    def _stability(self, trials: Trials, by_level: list[list[Trial]], clock: Clock) -> Action | None:
        """Returns the next of the target's short trainings; None where both have begun, and while others still train."""
        plan, here = self.plan, by_level[-1]
        if len(here) >= 2 or not all(is_over(trial) for level in by_level[:-1] for trial in level):
            return None
        found = outcome(plan, trials)
        if found is None or not fits(plan.target, trials, plan, clock, plan.stability_flops / 2):
            return None
        tokens = plan.stability_tokens(found.batch_size)
        rate = rounded(found.answer.learning_rate.value * (1 + len(here)))
        config = settings_for(plan, plan.target, rate, found.batch_size, tokens, STABILITY_WARMUP)
        return Start(segment_end_tokens=tokens, proposed=True, config=dict(config))


def alike(first: Point, second: Point) -> bool:
    """Returns True if two points are so near to each other that a second run would tell nothing."""
    return first[1] == second[1] and abs(math.log(first[0] / second[0])) < math.log(ALIKE)


def fits(level: Level, trials: Trials, plan: Plan, clock: Clock, flops: float | None = None) -> bool:
    """Returns True if a training of a level ends before the clock does, at the speed of the largest one that ended."""
    if math.isinf(clock.left):
        return True
    speeds = [
        (one.flops, trial.train_seconds / one.flops)
        for one, here in zip(plan.levels, trials_by_level(plan, trials), strict=False)
        for trial in here
        if is_over(trial) and trial.tokens == one.tokens
    ]
    return not speeds or max(speeds)[1] * (flops or level.flops) <= clock.left
