"""Plays a search on a simulated clock, with the code that decides in a live search.

Times are tokens that one worker trains, or seconds if `cost` and `pace` convert them.
"""

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tune.core.coordinator import Coordinator
from tune.core.events import REPORTED
from tune.core.schedulers.base import Clock
from tune.core.slots import JOIN_SECONDS, Training, is_worth_joining, share_idle
from tune.core.trials import AUDIT, CONTINUE, Trial

Loss = Callable[[Trial, int], float]
"""(trial, tokens_seen) -> loss in nats per token; the trial diverges where it is not finite"""
Watch = Callable[[int, float, float, Trial], None]
"""called with (worker, begin, end, trial) for each stretch between two reports"""
Cost = Callable[[Trial, int, bool], float]
"""(trial, tokens_seen, True if a worker has just taken it up) -> time from its last report to that one"""


Running = tuple[float, int, Trial, int, int]
"""(when it reports, order of beginning, trial, tokens_seen of the report, worker)"""


@dataclass
class Joining:
    """Lets trials take idle slots, in a simulation whose times are seconds."""

    speedup: Callable[[Trial, int], float]
    """(trial, slots) -> times as fast as with one slot"""
    batch_size: Callable[[Trial], int]
    processes: int
    """of a trial in one slot"""
    slots: dict[str, int] = field(default_factory=dict, init=False)
    """of each trial that runs"""

    def of(self, trial: Trial) -> int:
        """The slots of a trial."""
        return self.slots.get(trial.trial_id, 1)

    def share(self, running: list[Running], idle: int, now: float) -> list[Running]:
        """The trials that run, with the times of their reports once they share the slots of the `idle` workers that have
        nothing to do. Where these are fewer than before, every trial begins with one slot again.
        """
        before = {trial.trial_id: self.of(trial) for _, _, trial, _, _ in running}
        enough = sum(before.values()) - len(before) <= idle
        trainings = {}
        for then, _, trial, _, _ in running:
            alone = (then - now) * self.speedup(trial, self.of(trial))
            trainings[trial.trial_id] = Training(alone, self.batch_size(trial), self.of(trial) if enough else 1)
        idle -= sum(one.slots - 1 for one in trainings.values())
        self.slots = share_idle(trainings, idle, self.processes)
        found: list[Running] = []
        for then, order, trial, mark, worker in running:
            one = trainings[trial.trial_id]
            if not is_worth_joining(one, self.of(trial)):
                self.slots[trial.trial_id] = one.slots
            if self.of(trial) != before[trial.trial_id]:
                then = now + one.seconds / self.speedup(trial, self.of(trial)) + JOIN_SECONDS
            found.append((then, order, trial, mark, worker))
        heapq.heapify(found)
        return found


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
    joining: Joining | None = None,
) -> float:
    """Plays the search from `begin` until nothing is left to do, or to `end`. Returns the time of the last report. No
    worker trained in `idle` of the time before `begin`. Reports after `end` are dropped, except those of audits, during
    which the clock stands still. The scheduler's clock has an end only if `known_end`; `pace` is in tokens a unit of time.
    With `joining` the last trials take the slots of workers that have nothing to do.
    """
    trials = coordinator.trials
    running: list[Running] = []
    free, arrivals = list(range(trials.workers)), itertools.count()
    now = last = begin
    audit_began = math.inf

    def clock() -> Clock:
        at = min(now, end, audit_began)
        return Clock((at - idle) * pace, (end - at) * pace if known_end else math.inf)

    def go_on(trial: Trial, worker: int, begins: bool) -> None:
        mark = coordinator.scheduler.next_stop(trial)
        speedup = joining.speedup(trial, joining.of(trial)) if joining else 1.0
        then = now + cost(trial, mark, begins) / speedup
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
        if joining:
            running = joining.share(running, len(free), now)
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
