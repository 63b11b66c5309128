"""The trials of a search: a fold of its journal's events, read-only for whoever decides. No Ray, no files, no clocks."""

import bisect
import math
from collections import Counter, defaultdict, namedtuple
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

CONTINUE, PAUSE, STOP = "continue", "pause", "stop"
RUNNING, PAUSED, STOPPED = "running", "paused", "stopped"
COMPLETED, DIVERGED, FAILED = "completed", "diverged", "failed"
STATUSES = (COMPLETED, PAUSED, STOPPED, DIVERGED, FAILED, RUNNING)
SAMPLED, SUGGESTED, REPLICATE, AUDIT = "sampled", "suggested", "replicate", "audit"
BASELINE_TRIAL = "00000"
"""the preset's reference configuration, always the first"""
UNLIMITED_TRIALS = 100_000  # the five digits of a trial's id hold fewer; a search decides quickly up to 10,000
REPORTED = (
    *("step", "tokens_seen", "train_loss", "val_loss", "val_loss_ema", "val_bpb", "lr", "grad_norm"),
    *("train_seconds", "tok_per_sec", "diverged"),
)
"""what a report event keeps of a trial's metrics"""
COMPILING = ("compiling_seconds", "plain_tok_per_sec", "compiled_tok_per_sec")
"""and, of the first report after its process has compiled, what that took and gained (myllm/training/compiling.py)"""
Event = dict[str, Any]


Report = namedtuple("Report", ("trial_id", *REPORTED))
"""what is kept of a report event; in a third of a dict's memory"""


@dataclass
class Trial:
    """One training, as far as its events tell."""

    trial_id: str
    config: dict[str, Any]
    source: str
    """sampled, suggested, replicate, or audit"""
    parent_id: str
    """the trial whose configuration this one repeats on another seed, or that it audits; else its own id"""
    segment_end_tokens: int
    """tokens up to which it runs before it pauses"""
    status: str = RUNNING
    tokens: int = 0
    """tokens_seen of its last report"""
    losses: dict[int, float] = field(default_factory=dict)
    """tokens_seen -> what rungs compare, nats per token; finite"""
    reports: dict[int, Report] = field(default_factory=dict)
    """tokens_seen -> the report"""
    checkpoints: dict[int, str] = field(default_factory=dict)
    """tokens_seen -> path below the storage's root"""
    replicates: list["Trial"] = field(default_factory=list)
    """the same configuration on other seeds, in the order in which they began"""
    lost: int = 0
    """times that its process or machine was lost"""
    reason: str = ""
    """why it failed"""
    begun_at: int = 0
    """tokens from which on an audit trained; its losses and reports up to there are those of the trial that it audits"""
    cache: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    """what was computed of this configuration's seeds, until the next event of one of them"""

    @property
    def train_seconds(self) -> float:
        """Of its own training and evaluation."""
        last, first = (getattr(self.reports.get(at), "train_seconds", 0.0) for at in (self.tokens, self.begun_at))
        return last - first

    @property
    def own_reports(self) -> list[Report]:
        """In the order of their tokens."""
        return [self.reports[tokens] for tokens in sorted(self.reports) if tokens > self.begun_at]

    def seeds_at(self, tokens: int) -> list[float]:
        """The losses at `tokens` of this trial and of its replicates, one a seed; infinite where a replicate diverged."""
        return self._over_seeds(tokens)[0]

    def mean_at(self, tokens: int) -> float:
        """The mean of `seeds_at`."""
        return self._over_seeds(tokens)[1]

    def _over_seeds(self, tokens: int) -> tuple[list[float], float]:
        if tokens not in self.cache:
            losses = [trial.losses[tokens] for trial in (self, *self.replicates) if tokens in trial.losses]
            losses += [math.inf for trial in self.replicates if trial.status == DIVERGED and tokens not in trial.losses]
            self.cache[tokens] = losses, sum(losses) / len(losses) if losses else math.nan
        return self.cache[tokens]


class Trials:
    """All trials, by id, in the order in which they began, and what rules ask about them, kept up to date."""

    def __init__(self, budget_tokens: int, num_samples: int, metric: str = "val_loss", events: Iterable[Event] = ()):
        self.budget_tokens, self.num_samples, self.metric = budget_tokens, num_samples, metric
        self.by_id: dict[str, Trial] = {}
        self.drawn: list[Trial] = []
        """without repeats and audits"""
        self.running: dict[str, Trial] = {}
        """without audits"""
        self.audits: dict[str, Trial] = {}
        """trials that were left behind and went on only to show what that cost, by the id of the one left behind: nothing
        else here knows of them but `by_id` and `tokens`, and so no rule, no standing and no proposal does"""
        self.workers = 1
        """trainings at once, in this session"""
        self.tokens = 0
        """trained on by all trials"""
        self.segments_by_end: Counter[tuple[str, int]] = Counter()
        """(source, segment_end_tokens) -> how many trials"""
        self.count_by_rung: Counter[tuple[int, str]] = Counter()
        """(tokens, source) -> how many trials have a loss there"""
        self.cache: dict[Any, Any] = {}
        """what a rule worked out that no later event can change: to work it out again would find the same"""
        self._changes: dict[int, tuple[float, int]] = {}
        """tokens_seen -> (change of the loss from there to the end, summed over those drawn that ended; how many)"""
        self._ranked: defaultdict[int, list[Trial]] = defaultdict(list)
        for event in events:
            self.apply(event)

    @property
    def replicates(self) -> int:
        """How many trials repeat another one's configuration."""
        return len(self.by_id) - len(self.drawn) - len(self.audits)

    @property
    def draws_left(self) -> int:
        """How many more configurations may begin."""
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
        """Takes one more event in."""
        kind, trial = event["event"], self.by_id.get(event.get("trial_id", ""))
        if kind == "session":
            self.workers = event["workers"]
        elif kind == "trial":
            trial_id = event["trial_id"]
            trial = Trial(
                trial_id, event["config"], event["source"], event.get("parent_id", trial_id), event["segment_end_tokens"]
            )
            self.by_id[trial_id] = trial
            if trial.source == AUDIT:
                left = self.by_id[trial.parent_id]
                self.audits[left.trial_id] = trial
                trial.tokens = trial.begun_at = left.tokens
                trial.losses, trial.reports = dict(left.losses), dict(left.reports)
                return
            self.running[trial_id] = trial
            self.segments_by_end[trial.source, trial.segment_end_tokens] += 1
            if trial.source == REPLICATE:
                self.by_id[trial.parent_id].replicates.append(trial)
            else:
                self.drawn.append(trial)
        elif kind == "resume":
            self.segments_by_end[trial.source, trial.segment_end_tokens] -= 1
            trial.segment_end_tokens = event["segment_end_tokens"]
            self.segments_by_end[trial.source, trial.segment_end_tokens] += 1
            self._set(trial, RUNNING)
        elif kind == "report":
            self._report(trial, event)
        elif kind == "checkpoint":
            trial.checkpoints[event["tokens_seen"]] = event["path"]
        elif kind == "checkpoints_deleted":
            for tokens in event["tokens_seen"]:
                trial.checkpoints.pop(tokens, None)
        elif kind == "worker_lost":
            trial.lost += 1
        elif kind == "failed":
            trial.reason = event["reason"]
            self._set(trial, FAILED)
        if trial:
            trial.cache.clear()
            self.by_id[trial.parent_id].cache.clear()

    def _report(self, trial: Trial, event: Event) -> None:
        tokens = event["tokens_seen"]
        self.tokens += tokens - trial.tokens
        trial.reports[tokens] = Report(trial.trial_id, *(event[name] for name in REPORTED))
        trial.tokens = tokens
        if event["diverged"]:
            return self._set(trial, DIVERGED)
        loss = event["val_loss" if tokens >= self.budget_tokens else self.metric]
        trial.losses[tokens] = math.inf if math.isnan(loss) else loss  # averaged weights may overflow alone
        if trial.source != AUDIT:
            self.count_by_rung[tokens, trial.source] += 1
        if trial.source in (SAMPLED, SUGGESTED):
            bisect.insort(self._ranked[tokens], trial, key=lambda other: other.losses[tokens])
        if tokens >= self.budget_tokens:
            if trial.source not in (REPLICATE, AUDIT):
                for mark, before in trial.losses.items():
                    total, count = self._changes.get(mark, (0.0, 0))
                    self._changes[mark] = total + trial.losses[tokens] - before, count + 1
            self._set(trial, COMPLETED)
        elif event["decision"] != CONTINUE:
            self._set(trial, PAUSED if event["decision"] == PAUSE else STOPPED)

    def change(self, mark: int) -> float:
        """By how much the loss of those that ended changed from `mark` to the end, on average."""
        total, count = self._changes.get(mark, (0.0, 0))
        return total / count if count else 0.0

    def _set(self, trial: Trial, status: str) -> None:
        trial.status = status
        if status == RUNNING:
            self.running[trial.trial_id] = trial
        else:
            self.running.pop(trial.trial_id, None)
