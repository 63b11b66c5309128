"""Forecasts how a search ends, before it starts and while it runs: its own rule is simulated on from where it stands."""

import dataclasses
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tune.config.spec import SearchSpec
from tune.core.clock import ENDING_SECONDS, SearchClock
from tune.core.coordinator import Coordinator
from tune.core.events import Event, Reported, SessionStarted
from tune.core.schedulers.base import Clock
from tune.core.simulator import Joining, Loss, play
from tune.core.trials import AUDIT, REPLICATE, Trial, Trials
from tune.ladder.plan import Plan
from tune.store.checkpoints import worth_keeping

MOST_TRIALS = 300  # trials simulated: a longer search is simulated as a shorter one and multiplied, to save time
RECENT_REPORTS = 256  # last reports of a running search that its throughput is fitted to


@dataclass(frozen=True)
class ExpectedLosses:
    """The assumed losses of a search that has not run, as changes of the log of the loss: round numbers between the values
    of the recorded tables in experiments/data. A forecast uses the ranks alone, so they matter little.
    """

    learning_rate: float = 0.2  # for one decade from the baseline's learning rate; grows with the square of the distance
    batch_size: float = 0.06  # for each doubling of the baseline's batch size
    configuration: float = 0.045  # standard deviation between configurations, of all other hyper-parameters together
    seed: float = 0.01  # standard deviation between seeds of one configuration
    early: float = 0.05  # standard deviation of an early loss's error at the start; falls linearly to 0 at the end
    progress: float = 0.14  # for each factor of e that the tokens seen are below the budget


EXPECTED = ExpectedLosses()


@dataclass(frozen=True)
class Throughput:
    """The seconds that a worker needs, evaluations included: they depend on the batch size."""

    per_token: float
    per_step: float  # of an optimizer step, whatever its batch
    per_segment: float = 0.0  # to load a trial, and to store it
    per_shared_step: float = 0.0  # to add up the gradients of a step that several slots share

    def seconds(self, tokens: float, step_tokens: float, slots: int = 1) -> float:
        """Seconds to train on `tokens` in steps of `step_tokens`, which `slots` of a trial share."""
        per_step = self.per_step + self.per_shared_step * (slots > 1)
        return tokens * (self.per_token / slots + per_step / step_tokens)


def fit_throughput(rows: Iterable[ArrayLike], per_segment: float = 0.0) -> Throughput:
    """The Throughput that fits rows of (tokens, optimizer steps, seconds) with the least squared relative error."""
    tokens, steps, seconds = np.array(list(rows), float).T
    (per_token, per_step), *_ = np.linalg.lstsq(np.stack([tokens, steps], 1) / seconds[:, None], np.ones(len(seconds)))
    if per_token < 0 or per_step < 0 or np.ptp(tokens / steps) == 0:  # batch sizes too alike to tell the two apart
        per_token, per_step = float(np.median(seconds / tokens)), 0.0
    return Throughput(float(per_token), float(per_step), per_segment)


def measured_throughput(events: Iterable[Event], per_segment: float = 0.0) -> Throughput | None:
    """The Throughput of the last RECENT_REPORTS reports of trials in one slot; None before the second of them."""
    rows: dict[int, list[Any]] = defaultdict(list)  # slots -> (tokens, steps, seconds) between two reports
    before: dict[str, Any] = {}
    processes = 1
    for event in events:
        if isinstance(event, SessionStarted):
            processes = event.processes
        if isinstance(event, Reported):
            now = np.array([event.position, event.step, event.train_seconds], float)
            passed = now - before.get(event.trial_id, 0.0)
            if passed.min() > 0:
                rows[event.slots(processes)].append(passed)
            before[event.trial_id] = now
    if len(rows[1]) < 2:
        return None
    found = fit_throughput(rows.pop(1)[-RECENT_REPORTS:], per_segment)
    shared = [
        (seconds - found.seconds(tokens, tokens / steps, slots)) / steps
        for slots, those in rows.items()
        for tokens, steps, seconds in those
    ]
    return dataclasses.replace(found, per_shared_step=max(0.0, statistics.median(shared))) if shared else found


@dataclass(frozen=True)
class Forecast:
    """The end of a search as it was simulated."""

    seconds: float  # time of the last report, on the clock of all sessions
    tokens: int  # trained on by then, in the unit of the budget
    trials: int
    replicates: int
    came: dict[int, int]  # tokens_seen of each rung and at the end -> trials that came there, replicates only at the end
    checkpoints: int  # on the disk at once
    audits: int = 0  # stopped trials that train to the end for the audit
    audit_seconds: float = 0.0  # of the audit, after everything else; a part of `seconds`


def plausible_losses(search: SearchSpec) -> Loss:
    """Losses as EXPECTED describes them; the same in every call."""
    baseline = search.sample(0)

    def normal(key: str) -> float:
        return float(np.random.default_rng([0, *key.encode()]).standard_normal())

    def loss(trial: Trial, tokens: int) -> float:
        share = tokens / search.budget_tokens
        configuration, seed = trial.parent_id.removeprefix("t"), trial.trial_id.removeprefix("t")
        value = EXPECTED.configuration * normal(configuration) + EXPECTED.seed * normal(seed)
        value += EXPECTED.early * (1 - share) * normal(f"~{configuration}") - EXPECTED.progress * math.log(share)
        if "learning_rate" in trial.config:
            value += EXPECTED.learning_rate * math.log10(trial.config["learning_rate"] / baseline["learning_rate"]) ** 2
        if "batch_size" in trial.config:
            value += EXPECTED.batch_size * math.log2(trial.config["batch_size"] / baseline["batch_size"])
        return math.exp(1 + value)

    return loss


def simulate_rest(
    search: SearchSpec, events: Sequence[Event], throughput: Throughput, workers: int, used: float = 0.0, idle: float = 0.0
) -> Forecast:
    """Simulates the rest of a search that stands where `events` say after `used` seconds. A new search has no events.

    `idle` is the part of `used` that a new session takes before it trains.
    """
    if search.ladder:
        return rest_of_ladder(search, search.ladder, events, workers, used)
    options, speed = search.options, _slow_worker(search, throughput)
    end = options.time_budget if options.time_budget is not None else math.inf
    most = min(options.trials, 2 * workers * end * speed / search.budget_tokens)  # trials that may come to be
    scale = max(1.0, most / MOST_TRIALS)
    if scale > 1:
        events, used, idle = [], 0.0, 0.0
    coordinator, clock = _coordinator(search, events, math.ceil(options.trials / scale)), SearchClock(events)
    coordinator.trials.workers, coordinator.trials.processes = workers, search.options.processes_a_slot
    audit_starts: list[float] = []

    def cost(trial: Trial, tokens: int, begins: bool) -> float:
        seconds = throughput.seconds(tokens - trial.tokens, search.step_tokens(trial.config))
        return seconds + throughput.per_segment * begins

    def watch(worker: int, begin: float, end: float, trial: Trial) -> None:
        if trial.source == AUDIT:
            audit_starts.append(begin)

    last = play(
        coordinator,
        plausible_losses(search),
        end=end / scale,
        known_end=options.time_budget is not None,
        watch=watch,
        begin=used - clock.audit,  # an audit's seconds do not count on the rule's clock
        cost=cost,
        pace=speed,
        idle=idle + clock.starting,
        joining=_joining(search, throughput, coordinator.trials),
    )
    audit_seconds = last - min(audit_starts, default=last)
    return _counted(coordinator, scale, scale * (last + clock.audit), scale * audit_seconds)


def _joining(search: SearchSpec, throughput: Throughput, trials: Trials) -> Joining | None:
    """How trials take idle slots in the search; None where they take none."""
    if not search.options.joins_idle_slots:
        return None

    def speedup(trial: Trial, slots: int) -> float:
        step = search.step_tokens(trial.config)
        return throughput.seconds(1, step) / throughput.seconds(1, step, slots)

    def batch_size(trial: Trial) -> int:
        return int(search.all_settings(trial.config)["batch_size"])

    return Joining(speedup, batch_size, trials.processes)


def rest_of_ladder(search: SearchSpec, plan: Plan, events: Sequence[Event], workers: int, used: float) -> Forecast:
    """The end of a ladder after `events` and `used` seconds: the planned runs that are left, at the speed of their level.

    A level without a run is as fast as the largest that has one. Levels above the plan's top are not foreseen.
    """
    from tune.ladder.runs import trials_by_level  # here: scipy takes long

    trials = Trials(search.budget_tokens, plan.trials, events=events)
    tokens, seconds, speed = trials.tokens, 0.0, 0.0
    for level, here in zip((*plan.levels, plan.target), trials_by_level(plan, trials), strict=True):
        each = level.tokens if level is not plan.target else plan.stability_tokens(plan.centre(level)[1])
        flops = level.flops / level.tokens
        trained = sum(trial.tokens for trial in here)
        took = sum(trial.train_seconds for trial in here)
        speed = took / (trained * flops) if trained else speed
        left = (2 if level is plan.target else level.runs) * each
        left = max(0, left - trained)
        tokens += left
        seconds += left * flops * speed
    kept = 2 * trials.workers
    return Forecast(used + seconds / workers, tokens, plan.trials, 0, {}, kept)


def is_finished(search: SearchSpec, events: Sequence[Event]) -> bool:
    """True if the search of these events has nothing left to do."""
    budget, throughput, clock = search.options.time_budget, measured_throughput(events), Clock(0.0)
    if budget is not None and throughput:
        passed, speed = SearchClock(events).search + ENDING_SECONDS, _slow_worker(search, throughput)
        speed = 1.0 if search.ladder else speed  # a ladder's clock has seconds
        clock = Clock(passed * speed, max(0.0, budget - passed) * speed)
    return _coordinator(search, events, search.options.trials).is_over(clock)


def _slow_worker(search: SearchSpec, throughput: Throughput) -> float:
    """Tokens a second at the lower quartile of the batch sizes, as a TimeBudget counts."""
    speeds = [1 / throughput.seconds(1, step) for step in search.step_sizes]
    return statistics.quantiles(speeds, n=4)[0] if len(speeds) > 1 else speeds[0]


def _coordinator(search: SearchSpec, events: Sequence[Event], num_samples: int) -> Coordinator:
    """Returns the search with its own rule after `events`; it writes nothing.

    A searcher would take most of a forecast's time. The best configuration stands in for each suggestion.
    """
    scheduler = search.scheduler()

    def configure(index: int, trials: Trials, suggested: bool) -> dict[str, Any]:
        return dict(trials.ranked_at(scheduler.rung_tokens[-1])[0].config) if suggested else search.sample(index)

    trials = search.trials(events, num_samples)
    return Coordinator(trials, scheduler, configure, lambda event: event, search.options.seed)


def _counted(coordinator: Coordinator, scale: float, seconds: float, audit_seconds: float) -> Forecast:
    """Counts the simulated trials, for a search that is `scale` times as long."""
    trials, scheduler = coordinator.trials, coordinator.scheduler
    for trial in trials.by_id.values():
        trial.checkpoints = {tokens: "" for tokens in scheduler.stops if trial.begun_at < tokens and tokens in trial.losses}
    came = {tokens: trials.count_at(tokens) for tokens in scheduler.stops}
    came[trials.budget_tokens] += trials.count_by_rung[trials.budget_tokens, REPLICATE]
    kept = (worth_keeping(trials, trial, scheduler.may_audit(trials, trial)) for trial in trials.by_id.values())
    return Forecast(
        seconds=seconds,
        tokens=round(scale * trials.trained),
        trials=round(scale * len(trials.drawn)),
        replicates=round(scale * trials.replicates),
        came={tokens: round(scale * count) for tokens, count in came.items()},
        checkpoints=round(scale * sum(map(len, kept))) + 2 * trials.workers,
        audits=round(scale * len(trials.audits)),
        audit_seconds=audit_seconds,
    )
