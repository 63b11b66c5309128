"""Plays a search on a simulated clock, with the code that decides in a live one. Times are tokens that a worker trains."""

import bisect
import heapq
import itertools
import math
from collections.abc import Callable

from tune.coordinator import Coordinator
from tune.schedulers.base import Clock
from tune.trials import CONTINUE, REPORTED, Trial

Loss = Callable[[Trial, int], float]
"""(trial, tokens_seen) -> loss in nats per token; not finite: it diverges there"""
Watch = Callable[[int, float, float, Trial], None]
"""(worker, begin, end, trial) of each stretch between two reports"""


def play(
    coordinator: Coordinator, loss: Loss, end: float = math.inf, known_end: bool = True, watch: Watch | None = None
) -> float:
    """Plays the search until nothing is left to do, or to `end`; returns when the last report came.

    Trials report at the scheduler's milestones and at the full budget; what would come after `end` does not. The scheduler
    sees the end come only where it is `known_end`.
    """
    trials = coordinator.trials
    marks = [*coordinator.scheduler.milestones, trials.budget_tokens]
    running: list[tuple[float, int, Trial, int, int]] = []  # (when it reports, order of beginning, trial, tokens, worker)
    free, arrivals = list(range(trials.workers)), itertools.count()
    now = last = 0.0

    def clock() -> Clock:
        return Clock(now, end - now if known_end else math.inf)

    def go_on(trial: Trial, worker: int) -> None:
        mark = marks[bisect.bisect_right(marks, trial.tokens)]
        heapq.heappush(running, (now + mark - trial.tokens, next(arrivals), trial, mark, worker))
        if watch and now + mark - trial.tokens <= end:
            watch(worker, now, now + mark - trial.tokens, trial)

    while True:
        while free and (trial := coordinator.next_trial(clock())):
            go_on(trial, free.pop(0))
        if not running:
            return last
        now, _, trial, mark, worker = heapq.heappop(running)
        if now > end:
            return last
        last, value = now, loss(trial, mark)
        result = {"tokens_seen": mark, "val_loss": value, "diverged": not math.isfinite(value)}
        if coordinator.on_report(trial, dict.fromkeys(REPORTED, 0.0) | result, clock()) == CONTINUE:
            go_on(trial, worker)
        else:
            coordinator.on_end(trial)
            free.append(worker)
