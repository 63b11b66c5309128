"""What a search will take, before it starts and while it runs: its own rule, played on from where it stands."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tune.config.spec import SearchSpec
from tune.core.clock import SearchClock
from tune.core.coordinator import Coordinator
from tune.core.simulator import Loss, play
from tune.core.trials import AUDIT, REPLICATE, Event, Trial, Trials
from tune.store.checkpoints import worth_keeping

WORLDS = 5  # that a forecast plays; the middle one is told
MOST_TRIALS = 300
"""that are played: a longer search is played as a shorter one and multiplied, as a rule's work grows faster"""
RECENT_REPORTS = 256  # by which a running search's speed is judged
EXPECTED = 0.2, 0.06, 0.045, 0.01, 0.05
"""what shapes the log of a loss in a played world: a decade of the learning rate from the reference, squared; a doubling of
the batch; the rest of a configuration; a seed; how far the first marks mislead. Round numbers between those of the recorded
tables under experiments/data, which agree. Only ranks matter here, and of them little: a rule lets so many go on."""


@dataclass(frozen=True)
class Throughput:
    """How long a worker needs: seconds, evaluations included."""

    per_token: float
    per_step: float
    """of an optimizer step, whatever its batch"""
    per_segment: float = 0.0
    """to take up a trial, and to put it down"""

    def seconds(self, tokens: float, step_tokens: int) -> float:
        """Of training on `tokens` in steps of `step_tokens`."""
        return tokens * (self.per_token + self.per_step / step_tokens)


def fit_pace(rows: Iterable[tuple[float, float, float]], per_segment: float = 0.0) -> Throughput:
    """The Pace that explains (tokens, optimizer steps, seconds) best, by relative error."""
    tokens, steps, seconds = np.array(list(rows), float).T
    (per_token, per_step), *_ = np.linalg.lstsq(np.stack([tokens, steps], 1) / seconds[:, None], np.ones(len(seconds)))
    if per_token < 0 or per_step < 0 or np.ptp(tokens / steps) == 0:  # too alike to tell the two apart
        per_token, per_step = float(np.median(seconds / tokens)), 0.0
    return Throughput(float(per_token), float(per_step), per_segment)


def measured_pace(events: Iterable[Event], per_segment: float = 0.0) -> Throughput | None:
    """The Pace of a search's recent reports; None before the second."""
    rows, before = [], {}
    for event in events:
        if event["event"] == "report":
            last = before.get(event["trial_id"], dict.fromkeys(("tokens_seen", "step", "train_seconds"), 0.0))
            row = tuple(event[name] - last[name] for name in ("tokens_seen", "step", "train_seconds"))
            if min(row) > 0:
                rows.append(row)
            before[event["trial_id"]] = event
    return fit_pace(rows[-RECENT_REPORTS:], per_segment) if len(rows) > 1 else None


@dataclass(frozen=True)
class Forecast:
    """How a search ends, in one played world."""

    seconds: float
    """when the last report comes, on the clock of all sessions"""
    tokens: int
    """trained on by then"""
    trials: int
    replicates: int
    came: dict[int, int]
    """tokens_seen of each rung and of the full budget -> trials that came there; repeats at the end only"""
    checkpoints: int
    """that are kept at once"""
    audits: int = 0
    """trials left behind that go on to the end"""
    audit_seconds: float = 0.0
    """of `seconds`, after all else"""


def plausible_losses(search: SearchSpec, seed: int) -> Loss:
    """A world's losses: what EXPECTED says, with draws of its own for `seed`."""
    reference = search.sample(0)
    decade, doubling, rest, noise, misled = EXPECTED

    def loss(trial: Trial, tokens: int) -> float:
        share = tokens / search.budget_tokens
        own, of_seed, early = (
            np.random.default_rng([seed, *key.encode()]).standard_normal()
            for key in (trial.parent_id, trial.trial_id, f"~{trial.parent_id}")
        )
        value = rest * own + noise * of_seed + misled * (1 - share) * early - 0.14 * math.log(share)
        if "learning_rate" in trial.config:
            value += decade * math.log10(trial.config["learning_rate"] / reference["learning_rate"]) ** 2
        if "batch_size" in trial.config:
            value += doubling * math.log2(trial.config["batch_size"] / reference["batch_size"])
        return math.exp(1 + value)

    return loss


def simulate_rest(
    search: SearchSpec,
    events: Iterable[Event],
    pace: Throughput,
    workers: int,
    used: float = 0.0,
    seed: int = 0,
    starting: float = 0.0,
) -> Forecast:
    """The rest of a search that stands where `events` say after `used` seconds; of a new one there are none. The last
    `starting` of these seconds go by before a new session trains.
    """
    config, scheduler = search.options, search.scheduler()
    speeds = [1 / pace.seconds(1, batch * search.training.max_len) for batch in search.batch_sizes]
    slower = statistics.quantiles(speeds, n=4)[0] if len(speeds) > 1 else speeds[0]  # as the live clock counts
    end = config.time_budget if config.time_budget is not None else math.inf
    times = max(1.0, min(config.trials, 2 * workers * end * slower / search.budget_tokens) / MOST_TRIALS)
    if times > 1:
        events, used, starting = [], 0.0, 0.0
    trials = Trials(search.budget_tokens, math.ceil(config.trials / times), config.rung_metric, events)
    trials.workers = workers

    def configure(index: int, trials: Trials, proposed: bool) -> dict[str, Any]:
        # a searcher would take most of the time of a forecast; what it proposes is like the best so far
        if proposed:
            return dict(trials.ranked_at(scheduler.rung_tokens[-1])[0].config)
        return search.sample(index)

    def cost(trial: Trial, tokens: int, begins: bool) -> float:
        step_tokens = trial.config.get("batch_size", search.training.batch_size) * search.training.max_len
        return pace.seconds(tokens - trial.tokens, step_tokens) + pace.per_segment * begins

    def append(event: str, **values: Any) -> Event:
        return {"event": event} | values

    coordinator = Coordinator(trials, scheduler, configure, append, config.seed)
    known_end, loss = config.time_budget is not None, plausible_losses(search, seed)
    spent = SearchClock(events)
    before = spent.audit  # seconds that do not count on the rule's clock
    begins: list[float] = []

    def watch(worker: int, begin: float, end: float, trial: Trial) -> None:
        if trial.source == AUDIT:
            begins.append(begin)

    idle = starting + spent.starting
    seconds = play(coordinator, loss, end / times, known_end, watch, used - before, cost, slower, idle) + before
    stops = scheduler.stops
    for trial in trials.by_id.values():
        trial.checkpoints = {tokens: "" for tokens in stops if tokens in trial.losses and tokens > trial.begun_at}
    came = {tokens: trials.count_at(tokens) for tokens in stops}
    came[search.budget_tokens] += trials.count_by_rung[search.budget_tokens, REPLICATE]
    kept = (worth_keeping(trials, trial, scheduler.may_audit(trials, trial)) for trial in trials.by_id.values())
    return Forecast(
        seconds=seconds * times,
        tokens=round(times * trials.tokens),
        trials=round(times * len(trials.drawn)),
        replicates=round(times * trials.replicates),
        came={tokens: round(times * count) for tokens, count in came.items()},
        checkpoints=round(times * sum(map(len, kept))) + 2 * workers,
        audits=round(times * len(trials.audits)),
        audit_seconds=times * (seconds - before - min(begins)) if begins else 0.0,
    )


def outlooks(
    search: SearchSpec, events: Iterable[Event], pace: Throughput, workers: int, used: float = 0.0, starting: float = 0.0
) -> list[Forecast]:
    """`WORLDS` of them, the shortest first."""
    events = list(events)
    found = [simulate_rest(search, events, pace, workers, used, seed, starting) for seed in range(WORLDS)]
    return sorted(found, key=lambda outlook: outlook.seconds)
