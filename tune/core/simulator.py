"""Plays a search on a simulated clock, with the code that decides in a live one. Times are tokens that a worker trains, or
seconds where `cost` and `pace` say so.
"""

import bisect
import heapq
import itertools
import math
from collections.abc import Callable

from tune.core.coordinator import Coordinator
from tune.core.schedulers.base import Clock
from tune.core.trials import AUDIT, CONTINUE, REPORTED, Trial

Loss = Callable[[Trial, int], float]
"""(trial, tokens_seen) -> loss in nats per token; not finite: it diverges there"""
Watch = Callable[[int, float, float, Trial], None]
"""(worker, begin, end, trial) of each stretch between two reports"""
Cost = Callable[[Trial, int, bool], float]
"""(trial, tokens_seen, whether a worker takes it up) -> time from its last report to that one"""


def in_tokens(trial: Trial, tokens: int, begins: bool) -> float:
    """The time of a world in which nothing but tokens takes any."""
    return tokens - trial.tokens


def play(
    coordinator: Coordinator,
    loss: Loss,
    end: float = math.inf,
    known_end: bool = True,
    watch: Watch | None = None,
    begin: float = 0.0,
    cost: Cost = in_tokens,
    pace: float = 1.0,
    idle: float = 0.0,
) -> float:
    """Plays the search from `begin` until nothing is left to do, or to `end`; returns when the last report came. In `idle`
    of the time up to `begin` no worker trained.

    Trials report at the scheduler's milestones and at the full budget; what would come after `end` does not, but for an
    audit, during which the clock stands still. The scheduler sees the end come only where it is `known_end`, at `pace`
    tokens a unit of time.
    """
    trials = coordinator.trials
    marks = coordinator.scheduler.stops
    running: list[tuple[float, int, Trial, int, int]] = []  # (when it reports, order of beginning, trial, tokens, worker)
    free, arrivals = list(range(trials.workers)), itertools.count()
    now = last = begin
    audit_began = math.inf

    def clock() -> Clock:
        at = min(now, end, audit_began)
        return Clock((at - idle) * pace, (end - at) * pace if known_end else math.inf)

    def go_on(trial: Trial, worker: int, begins: bool) -> None:
        mark = marks[bisect.bisect_right(marks, trial.tokens)]
        then = now + cost(trial, mark, begins)
        heapq.heappush(running, (then, next(arrivals), trial, mark, worker))
        if watch and (then <= end or trial.source == AUDIT):
            watch(worker, now, then, trial)

    while True:
        while free and (trial := coordinator.next_trial(clock())):
            if trial.source == AUDIT:
                audit_began = min(now, audit_began)
            go_on(trial, free.pop(0), True)
        if not running:
            return last
        now, _, trial, mark, worker = heapq.heappop(running)
        if now > end and trial.source != AUDIT:
            if not known_end:
                return last
            coordinator.on_end(trial)  # nothing else of the search fits; the audit comes after it
            free.append(worker)
            continue
        last, value = now, loss(trial, mark)
        result = {"tokens_seen": mark, "val_loss": value, "diverged": not math.isfinite(value)}
        if coordinator.on_report(trial, dict.fromkeys(REPORTED, 0.0) | result, clock()) == CONTINUE:
            go_on(trial, worker, False)
        else:
            coordinator.on_end(trial)
            free.append(worker)
