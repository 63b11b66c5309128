"""The trials of a search: a fold of its journal's events, which rules only read."""

import bisect
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tune.core.events import (
    CheckpointsDeleted,
    CheckpointStored,
    Event,
    Reported,
    SessionStarted,
    TrialEvent,
    TrialFailed,
    TrialResumed,
    TrialStarted,
    WorkerLost,
)

CONTINUE, PAUSE, STOP = "continue", "pause", "stop"
RUNNING, PAUSED, STOPPED = "running", "paused", "stopped"
COMPLETED, DIVERGED, FAILED = "completed", "diverged", "failed"
STATUSES = (COMPLETED, PAUSED, STOPPED, DIVERGED, FAILED, RUNNING)
SAMPLED, SUGGESTED, REPLICATE, AUDIT = "sampled", "suggested", "replicate", "audit"
UNLIMITED_TRIALS = 100_000  # the five digits of a trial's id hold fewer; a search decides quickly up to 10,000


@dataclass
class Trial:
    """One training, as its events describe it."""

    trial_id: str
    config: dict[str, Any]
    source: str  # sampled, suggested, replicate, or audit
    parent_id: str  # the trial that a replicate repeats or an audit continues; of other trials their own id
    segment_end_tokens: int  # tokens_seen at which the trial's present segment ends
    budget_tokens: int  # of the trial's whole training
    status: str = RUNNING
    tokens: int = 0  # tokens_seen of the last report
    losses: dict[int, float] = field(default_factory=dict)  # tokens_seen -> the loss that rungs compare, nats per token
    reports: dict[int, Reported] = field(default_factory=dict)  # tokens_seen -> the report
    checkpoints: dict[int, str] = field(default_factory=dict)  # tokens_seen -> the checkpoint's path below the storage root
    replicates: list["Trial"] = field(default_factory=list)
    """the trials of this configuration on other seeds, in the order in which they began"""
    slot_seconds: float = 0.0  # of the trial's own training and evaluation, times the slots that it had
    lost: int = 0  # the number of times that the trial lost its process or machine
    reason: str = ""  # the error that ended the trial
    begun_at: int = 0
    """tokens_seen at which an audit began; its losses and reports up to there are those of the audited trial"""
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """values computed from the configuration's seeds, forgotten at the next event of one of the seeds"""

    @property
    def train_seconds(self) -> float:
        """Seconds of the trial's own training and evaluation."""
        last, first = (getattr(self.reports.get(at), "train_seconds", 0.0) for at in (self.tokens, self.begun_at))
        return last - first

    @property
    def own_reports(self) -> list[Reported]:
        """The trial's own reports in the order of tokens_seen."""
        return [self.reports[tokens] for tokens in sorted(self.reports) if tokens > self.begun_at]

    def seeds_at(self, tokens: int) -> list[float]:
        """The losses at `tokens` of this trial and of its replicates, one a seed; infinite where a replicate diverged."""
        return self._over_seeds(tokens)[0]

    def mean_at(self, tokens: int) -> float:
        """The mean of `seeds_at`."""
        return self._over_seeds(tokens)[1]

    def _over_seeds(self, tokens: int) -> tuple[list[float], float]:
        found: tuple[list[float], float] | None = self.cache.get(tokens)
        if found is None:
            losses = [trial.losses[tokens] for trial in (self, *self.replicates) if tokens in trial.losses]
            losses += [math.inf for trial in self.replicates if trial.status == DIVERGED and tokens not in trial.losses]
            found = self.cache[tokens] = losses, sum(losses) / len(losses) if losses else math.nan
        return found


class Trials:
    """All trials of a search, and the counts and rankings that rules ask for, up to date after each event."""

    def __init__(self, budget_tokens: int, num_samples: int, metric: str = "val_loss", events: Iterable[Event] = ()):
        self.budget_tokens, self.num_samples, self.metric = budget_tokens, num_samples, metric
        self.by_id: dict[str, Trial] = {}  # all trials in the order in which they began
        self.drawn: list[Trial] = []  # the sampled and suggested trials, in the order in which they began
        self.running: dict[str, Trial] = {}  # the running trials, except audits
        self.audits: dict[str, Trial] = {}
        """the audits, by the id of the audited trial; only `by_id` and `tokens` know of them besides"""
        self.unit = "tokens"  # of the budget, and of all that is called tokens here
        self.has_seeds = True  # False where a training can't be repeated with another seed
        self.max_seeds = math.inf  # trainings of one configuration that may differ
        self.workers = 1  # the number of trainings at once in the last session
        self.processes = 1  # of a trial in one slot, in the last session
        self.tokens = 0  # the tokens that all trials have trained on
        self.trained = 0  # the same in the unit of the budget
        self.segments_by_end: Counter[tuple[str, int]] = Counter()  # (source, segment_end_tokens) -> number of trials
        self.count_by_rung: Counter[tuple[int, str]] = Counter()
        """(tokens_seen, source) -> number of trials with a loss there"""
        self.cache: dict[Any, Any] = {}  # values that a rule computed and that no later event can change
        self._changes: dict[int, tuple[float, int]] = {}
        """tokens_seen -> (sum of the changes of the loss from there to the full budget, number of trials)"""
        self._ranked: defaultdict[int, list[Trial]] = defaultdict(list)
        for event in events:
            self.apply(event)

    @property
    def baseline(self) -> Trial | None:
        """The trial of the baseline configuration, which begins first; None before it begins."""
        return self.drawn[0] if self.drawn else None

    @property
    def baseline_id(self) -> str:
        """The id of the baseline's trial; empty before it begins."""
        return self.baseline.trial_id if self.baseline else ""

    @property
    def replicates(self) -> int:
        """The number of replicates."""
        return len(self.by_id) - len(self.drawn) - len(self.audits)

    @property
    def draws_left(self) -> int:
        """The number of configurations that may still begin."""
        return self.num_samples - len(self.drawn)

    def ranked_at(self, tokens: int) -> list[Trial]:
        """The trials with a loss at `tokens`, the lowest first, of equals the earlier report; no replicates."""
        return self._ranked[tokens]

    def count_at(self, tokens: int) -> int:
        """The number of trials that `ranked_at` has."""
        return len(self._ranked[tokens])

    def paused_at(self, tokens: int) -> list[Trial]:
        """The trials of `ranked_at` that are paused at `tokens`, in the same order."""
        return [trial for trial in self._ranked[tokens] if trial.status == PAUSED and trial.tokens == tokens]

    def apply(self, event: Event) -> None:
        """Takes one more event in. Raises KeyError for an event of an unknown trial."""
        if isinstance(event, SessionStarted):
            self.workers, self.processes = event.workers, event.processes
        if not isinstance(event, TrialEvent):
            return
        if isinstance(event, TrialStarted):
            self._begin(event)
        trial = self.by_id[event.trial_id]
        match event:
            case TrialResumed():
                self.segments_by_end[trial.source, trial.segment_end_tokens] -= 1
                trial.segment_end_tokens = event.segment_end_tokens
                self.segments_by_end[trial.source, trial.segment_end_tokens] += 1
                self._set(trial, RUNNING)
            case Reported():
                self._report(trial, event)
            case CheckpointStored():
                trial.checkpoints[event.tokens_seen] = event.path
            case CheckpointsDeleted():
                for tokens in event.tokens_seen:
                    trial.checkpoints.pop(tokens, None)
            case WorkerLost():
                trial.lost += 1
            case TrialFailed():
                trial.reason = event.reason
                self._set(trial, FAILED)
        trial.cache.clear()
        self.by_id[trial.parent_id].cache.clear()

    def _begin(self, event: TrialStarted) -> None:
        trial_id, parent_id = event.trial_id, event.parent_id or event.trial_id
        budget = event.config.get("budget_tokens", self.budget_tokens)  # a ladder's trials differ in length
        trial = Trial(trial_id, event.config, event.source, parent_id, event.segment_end_tokens, budget)
        self.by_id[trial_id] = trial
        if trial.source == AUDIT:
            audited = self.by_id[parent_id]
            self.audits[parent_id] = trial
            trial.tokens = trial.begun_at = audited.tokens
            trial.losses, trial.reports = dict(audited.losses), dict(audited.reports)
            return
        self.running[trial_id] = trial
        self.segments_by_end[trial.source, trial.segment_end_tokens] += 1
        if trial.source == REPLICATE:
            self.by_id[parent_id].replicates.append(trial)
        else:
            self.drawn.append(trial)

    def _report(self, trial: Trial, event: Reported) -> None:
        tokens, previous = event.position, trial.reports.get(trial.tokens)
        self.tokens += event.tokens_seen - (previous.tokens_seen if previous else 0)
        self.trained += tokens - trial.tokens
        seconds = event.train_seconds - (previous.train_seconds if previous else 0.0)
        trial.slot_seconds += seconds * event.slots(self.processes)
        trial.reports[tokens] = event
        trial.tokens = tokens
        if event.diverged:
            return self._set(trial, DIVERGED)
        loss: float = getattr(event, "val_loss" if tokens >= trial.budget_tokens else self.metric)
        trial.losses[tokens] = math.inf if math.isnan(loss) else loss  # averaged weights may overflow alone
        if trial.source != AUDIT:
            self.count_by_rung[tokens, trial.source] += 1
        if trial.source in (SAMPLED, SUGGESTED):
            bisect.insort(self._ranked[tokens], trial, key=lambda other: other.losses[tokens])
        if tokens >= trial.budget_tokens:
            if trial.source not in (REPLICATE, AUDIT):
                for mark, before in trial.losses.items():
                    total, count = self._changes.get(mark, (0.0, 0))
                    self._changes[mark] = total + trial.losses[tokens] - before, count + 1
            self._set(trial, COMPLETED)
        elif event.decision != CONTINUE:
            self._set(trial, PAUSED if event.decision == PAUSE else STOPPED)

    def mean_change_from(self, tokens: int) -> float:
        """The mean change of the loss from `tokens` to the full budget, nats per token, over the trials that ended."""
        total, count = self._changes.get(tokens, (0.0, 0))
        return total / count if count else 0.0

    def _set(self, trial: Trial, status: str) -> None:
        trial.status = status
        if status == RUNNING:
            self.running[trial.trial_id] = trial
        else:
            self.running.pop(trial.trial_id, None)
