"""The levels of a ladder: which smaller models are trained, how often, for which share of the target's compute.

A level has the target's shape: every setting that grows is the same fraction of the target's. It has as many tokens for
each parameter, the head's included, and trains its whole schedule. Batches are powers of two, in windows, so that all
runs of a level end after the same tokens.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from myllm.scaling_laws import Size, is_small, movement, reference_point, step_law_point
from myllm.system.errors import InputError

FEWEST_RUNS = 8
"""Runs of all levels together below which a ladder is refused."""

FEWEST_LOW_RUNS, MOST_LOW_RUNS = 5, 12
"""Runs of the lowest level; twelve have most of the regret of 24 on the 60M grid (experiments/results/ladder.md)."""

MIDDLE_RUNS = 4
"""Runs of a level between the lowest and the top."""

TOP_RUNS = 3
"""Runs of the top level: as predicted, at twice the rate, and at twice the batch."""

START_SECONDS = 15.0
"""Seconds of a --time_budget that the start of Ray and the end of the search take."""

TIME_USED = 0.85
"""Share of the rest of a --time_budget that is planned: a shared machine changes its pace."""

STABILITY_SHARE = 0.005
"""Share of the target's tokens that each of the two trainings for stability takes."""

FEWEST_STABILITY_STEPS = 4
"""Optimizer steps of a training for stability, at least."""

TOP_SHARE = 0.7
"""Largest part of the ladder's compute that the planned runs of the top level take."""

LOW_TO_TOP = 2.5
"""Factor by which a run of the lowest level is cheaper than one of the top, at least."""

FEWEST_STEPS = 64
"""Optimizer steps at the law's batch below which a level's training says little of a long one."""

MOST_LEVELS = 24
"""Sizes among which levels are chosen, the target's included, at most."""

REACH = 4
"""Factor around the centre within which the first runs of a level are spread, in rate and in batch."""


@dataclass(frozen=True)
class Shape:
    """A model of the target's shape: its settings, its parameters without embeddings and head, and those of the head."""

    settings: Mapping[str, Any]
    params: int
    head: int

    @property
    def all(self) -> int:
        """Returns the parameters that take compute at every token."""
        return self.params + self.head


@dataclass(frozen=True)
class Level:
    """A model, the tokens of its whole training, and how many trainings of it are planned; 0: only if others fail."""

    settings: dict[str, Any]  # that grow with the model
    params: int  # without embeddings and head
    head: int  # parameters of the head, which cost compute as well
    tokens: int
    most_batch: int  # windows, a power of two
    runs: int = 0

    @property
    def size(self) -> Size:
        """Returns parameters and tokens, for the fit."""
        return Size(self.params, self.tokens)

    @property
    def flops(self) -> float:
        """Returns the compute of one training: 6 a parameter and token, the head included."""
        return 6.0 * (self.params + self.head) * self.tokens

    @property
    def words(self) -> str:
        """Returns the settings as text."""
        return " ".join(f"{name}={value}" for name, value in self.settings.items())


@dataclass(frozen=True)
class Plan:
    """A ladder as it was planned: target, levels from the smallest on, and the share of the target's compute."""

    target: Level
    levels: tuple[Level, ...]
    share: float  # of the target's compute, at most
    window: int  # tokens
    learning_rate: float  # the baseline's
    warmup_ratio: float  # of all trainings but those for stability
    vocab_size: int

    @property
    def top(self) -> int:
        """Returns the index of the largest level that is planned."""
        return max(index for index, level in enumerate(self.levels) if level.runs)

    @property
    def trials(self) -> int:
        """Returns the number of planned trainings, both for stability included."""
        return sum(level.runs for level in self.levels) + 2

    @property
    def planned_flops(self) -> float:
        """Returns the compute of all planned runs, and of the trainings for stability."""
        return sum(level.runs * level.flops for level in self.levels) + self.stability_flops

    @property
    def planned_share(self) -> float:
        """Returns the share of the target's compute that the planned runs take."""
        return self.planned_flops / self.target.flops

    @property
    def stability_flops(self) -> float:
        """Returns the compute of both trainings for stability."""
        tokens = self.stability_tokens(self.centre(self.target)[1])
        return 2 * tokens / self.target.tokens * self.target.flops

    def stability_tokens(self, batch: int) -> int:
        """Returns the tokens of a training for stability with batches of `batch` windows, in whole steps."""
        step = batch * self.window
        return max(FEWEST_STABILITY_STEPS, round(STABILITY_SHARE * self.target.tokens / step)) * step

    def centre(self, level: Level) -> tuple[float, int]:
        """Returns learning rate and batch (windows) of a level before any run.

        That is Step Law's point; below 10M parameters what was best in this project's own trainings, moved to that size.
        """
        rate, batch = reference_point(level.size)
        return rate, self.batch_windows(level, batch)

    def carried_rate(self, level: Level) -> float:
        """Returns the baseline's rate, carried from the target to a level."""
        return self.learning_rate * math.exp(movement(self.target.size, level.size).log_rate)

    def batch_windows(self, level: Level, tokens: float) -> int:
        """Returns the power of two of windows nearest to a batch of `tokens`, within the level's batches."""
        return int(min(max(1, 2 ** round(math.log2(max(1.0, tokens / self.window)))), level.most_batch))


def plan_from_json(values: dict[str, Any]) -> Plan:
    """Returns the plan whose fields `values` are. Raises TypeError or KeyError for anything else."""
    levels = tuple(Level(**level) for level in values["levels"])
    return Plan(**(values | {"target": Level(**values["target"]), "levels": levels}))


def fractions(settings: Mapping[str, int]) -> list[dict[str, int]]:
    """Returns the settings of all smaller models of the same shape, the smallest first.

    All settings are the same fraction of the target's, one of MOST_LEVELS at most. Heads are no measure of size: n_head is
    the divisor of n_embd that is nearest to the fraction.
    """
    growing = {name: value for name, value in settings.items() if name != "n_head" or "n_embd" not in settings}
    whole, found = math.gcd(*growing.values()), []
    parts = max(count for count in range(1, MOST_LEVELS + 1) if whole % count == 0)
    for part in range(1, parts):
        one = {name: value * part // parts for name, value in growing.items()}
        if len(growing) < len(settings):
            heads, width = settings["n_head"] * part / parts, one["n_embd"]
            divisors = (count for count in range(1, width + 1) if width % count == 0)
            one["n_head"] = min(divisors, key=lambda count: abs(math.log(count / heads)))
        found.append({name: one[name] for name in settings})
    return found


def level_of(shape: Shape, tokens: float, window: int) -> Level:
    """Returns the level of a shape. Its tokens are `tokens`, rounded down to whole steps of its largest batch."""
    law = step_law_point(Size(shape.params, tokens))[1] / window
    most = 2 ** max(1, round(math.log2(max(1.0, law))) + 3)
    while most > 2 and most * window * 8 > tokens:
        most //= 2
    whole = int(tokens // (most * window)) * most * window
    return Level(dict(shape.settings), shape.params, shape.head, whole, most)


def make_plan(
    target: Shape,
    smaller: Sequence[Shape],
    tokens: int,
    share: float,
    window: int,
    learning_rate: float,
    warmup_ratio: float,
    vocab_size: int,
    seconds: Mapping[int, float] | None = None,
    time_budget: float = math.inf,
    workers: int = 1,
) -> Plan:
    """Returns the plan of a ladder; `smaller` are the shapes below the target, smallest first.

    `seconds` has the measured seconds of a training by the parameters of its model, for `time_budget`, in seconds of all
    `workers` together. Raises InputError where the target has no smaller model, or where fewer than FEWEST_RUNS runs fit.
    """
    goal = level_of(target, tokens, window)
    levels = [level_of(shape, tokens * shape.all / target.all, window) for shape in smaller]
    levels = [level for level in levels if level.tokens >= FEWEST_STEPS * _law_batch(level, window) * window]
    empty = Plan(goal, tuple(levels), share, window, learning_rate, warmup_ratio, vocab_size)
    if not levels:
        raise InputError(
            f"--target {goal.words} with {tokens:,} tokens has no level: no model of the same shape is smaller and has"
            f" {FEWEST_STEPS} optimizer steps; choose a target of more layers, or more tokens"
        )
    by_time = None
    if time_budget < math.inf and seconds:
        whole = seconds[goal.params]
        times = [seconds[level.params] for level in levels]
        short = empty.stability_flops / goal.flops * whole
        by_time = allocate(times, max(0.0, time_budget - START_SECONDS) * TIME_USED * workers - short)
        if by_time is None:
            least = math.ceil((cheapest(times) + short) / TIME_USED / workers + START_SECONDS)
            raise InputError(f"--time_budget {time_budget:g} s is too little for a ladder; {least} s would do")
    costs = [level.flops / goal.flops for level in levels]
    spare = empty.stability_flops / goal.flops
    runs = allocate(costs, share - spare)
    if runs is not None and by_time is not None:
        runs = min(runs, by_time, key=lambda counts: sum(map(operator.mul, counts, costs)))
        share = min(share, sum(map(operator.mul, by_time, costs)) + spare)
    if runs is None:
        rate, batch = empty.centre(goal)
        fit = max(0, int((share - spare) / costs[0]))
        small = "the point of this project's small trainings, as no law holds below 10M parameters,"
        law = small if is_small(goal.size) else "the law's point"
        enough = math.ceil(1e4 * (cheapest(costs) + spare)) / 1e4
        raise InputError(
            f"--target_share {share:.3g} buys {fit} runs of the smallest level, and a ladder takes {FEWEST_RUNS} with its"
            f" top: {enough:.4g} would do; without a ladder {law} is learning_rate {rate:.3g}, batch_size {batch}"
        )
    planned = tuple(replace(level, runs=count) for level, count in zip(levels, runs, strict=True))
    return Plan(goal, planned, share, window, learning_rate, warmup_ratio, vocab_size)


def _law_batch(level: Level, window: int) -> int:
    return max(1, round(step_law_point(level.size)[1] / window))


def cheapest(costs: Sequence[float]) -> float:
    """Returns the least room in which `allocate` finds a ladder."""
    tops = [cost for cost in costs if cost >= LOW_TO_TOP * costs[0]]
    if not tops:
        return FEWEST_RUNS * costs[0]
    return max(FEWEST_LOW_RUNS * costs[0] + TOP_RUNS * tops[0], TOP_RUNS * tops[0] / TOP_SHARE)


def allocate(costs: Sequence[float], room: float) -> list[int] | None:
    """Returns the runs of each level that take at most `room`; None where no ladder fits. `costs` ascend.

    The top is the largest level whose runs take TOP_SHARE of the room at most; the lowest level is the largest one that is
    LOW_TO_TOP times cheaper and of which FEWEST_LOW_RUNS fit. What is left goes to the lowest level, up to MOST_LOW_RUNS,
    then to a level between, then to the top. Where no level is so much cheaper than another, all runs are of the first.
    """
    room *= 1 + 1e-9
    if costs[-1] < LOW_TO_TOP * costs[0]:
        count = min(2 * MOST_LOW_RUNS, int(room / costs[0]))
        return [count, *[0] * (len(costs) - 1)] if count >= FEWEST_RUNS else None
    for top in range(len(costs) - 1, 0, -1):
        left = room - TOP_RUNS * costs[top]
        fits = [low for low in range(top) if FEWEST_LOW_RUNS * costs[low] <= left and LOW_TO_TOP * costs[low] <= costs[top]]
        if TOP_RUNS * costs[top] > TOP_SHARE * room or not fits:
            continue
        runs, low = [0] * len(costs), fits[-1]
        runs[low] = min(MOST_LOW_RUNS, int(left / costs[low]))
        left -= runs[low] * costs[low]
        between = [index for index in range(low + 1, top) if MIDDLE_RUNS * costs[index] <= left]
        if between:
            middle = min(between, key=lambda index: abs(math.log(costs[index] ** 2 / costs[low] / costs[top])))
            runs[middle] = MIDDLE_RUNS
            left -= MIDDLE_RUNS * costs[middle]
        runs[top] = TOP_RUNS + min(TOP_RUNS, int(left / costs[top]))
        return runs
    return None
