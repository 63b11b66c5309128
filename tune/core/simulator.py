"""Plays a search on a simulated clock, with the code that decides in a live search.

Times are tokens that one worker trains, or seconds if `cost` and `pace` convert them.
"""

import heapq
import itertools
import math
from collections.abc import Callable

from tune.core.coordinator import Coordinator
from tune.core.events import REPORTED
from tune.core.schedulers.base import Clock
from tune.core.trials import AUDIT, CONTINUE, Trial

Loss = Callable[[Trial, int], float]
"""(trial, tokens_seen) -> loss in nats per token; the trial diverges where it is not finite"""
Watch = Callable[[int, float, float, Trial], None]
"""called with (worker, begin, end, trial) for each stretch between two reports"""
Cost = Callable[[Trial, int, bool], float]
"""(trial, tokens_seen, True if a worker has just taken it up) -> time from its last report to that one"""


def in_tokens(trial: Trial, tokens: int, begins: bool) -> float:
    """The cost of a report where only training takes time: one unit a token."""
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
    """Plays the search from `begin` until nothing is left to do, or to `end`. Returns the time of the last report. No
    worker trained in `idle` of the time before `begin`. Reports after `end` are dropped, except those of audits, during
    which the clock stands still. The scheduler's clock has an end only if `known_end`; `pace` is in tokens a unit of time.
    """
    trials = coordinator.trials
    running: list[tuple[float, int, Trial, int, int]] = []  # (when it reports, order of beginning, trial, tokens, worker)
    free, arrivals = list(range(trials.workers)), itertools.count()
    now = last = begin
    audit_began = math.inf

    def clock() -> Clock:
        at = min(now, end, audit_began)
        return Clock((at - idle) * pace, (end - at) * pace if known_end else math.inf)

    def go_on(trial: Trial, worker: int, begins: bool) -> None:
        mark = coordinator.scheduler.next_stop(trial)
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
