"""The trials of a search: a fold of its journal's events, read-only for whoever decides. No Ray, no files, no clocks."""

import bisect
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

CONTINUE, PAUSE, STOP = "continue", "pause", "stop"
RUNNING, PAUSED, STOPPED = "running", "paused", "stopped"
COMPLETED, DIVERGED, FAILED = "completed", "diverged", "failed"
STATUSES = (COMPLETED, PAUSED, STOPPED, DIVERGED, FAILED, RUNNING)
DRAWN, PROPOSED, REPEAT = "drawn", "proposed", "repeat"
DEFAULT_TRIAL = "00000"
"""the preset's reference configuration, always the first"""
UNLIMITED_TRIALS = 100_000  # as many as the digits of a trial's id hold
TRUSTED_SEEDS = 3  # a configuration that ended on so many is never behind one that ended on fewer
COUNTED_FROM = 1 / 4  # of the budget on a seed counts with the loss that it is expected to end at
SEED_STEP = 1_000_003  # from the search's seed to that of a configuration's next repeat
REPORTED = (
    *("step", "tokens_seen", "train_loss", "val_loss", "val_loss_ema", "val_bpb", "learning_rate", "grad_norm"),
    *("train_seconds", "tok_per_sec", "diverged"),
)
"""what a report event keeps of a trial's metrics"""
Event = dict[str, Any]


@dataclass
class Trial:
    """One training, as far as its events tell."""

    trial_id: str
    config: dict[str, Any]
    kind: str
    """drawn, proposed, or repeat"""
    of: str
    """the trial whose configuration this one repeats on another seed; its own id where it repeats none"""
    until: int
    """tokens up to which it runs before it pauses"""
    status: str = RUNNING
    tokens: int = 0
    """tokens_seen of its last report"""
    losses: dict[int, float] = field(default_factory=dict)
    """tokens_seen -> what rungs compare, nats per token; finite"""
    reports: dict[int, Event] = field(default_factory=dict)
    """tokens_seen -> the report"""
    checkpoints: dict[int, str] = field(default_factory=dict)
    """tokens_seen -> path below the storage's root"""
    repeats: list["Trial"] = field(default_factory=list)
    """the same configuration on other seeds, in the order in which they began"""
    lost: int = 0
    """times that its process or machine was lost"""
    reason: str = ""
    """why it failed"""

    def seeds_at(self, tokens: int) -> list[float]:
        """The losses at `tokens` of this trial and of its repeats, one a seed; infinite where a repeat diverged."""
        losses = [trial.losses[tokens] for trial in (self, *self.repeats) if tokens in trial.losses]
        return losses + [math.inf for trial in self.repeats if trial.status == DIVERGED and tokens not in trial.losses]

    def mean_at(self, tokens: int) -> float:
        """The mean of `seeds_at`."""
        losses = self.seeds_at(tokens)
        return sum(losses) / len(losses)


class Trials:
    """All trials, by id, in the order in which they began."""

    def __init__(self, budget_tokens: int, num_samples: int, metric: str = "val_loss", events: Iterable[Event] = ()):
        self.budget_tokens, self.num_samples, self.metric = budget_tokens, num_samples, metric
        self.by_id: dict[str, Trial] = {}
        self.drawn: list[Trial] = []
        """without repeats"""
        self.running: dict[str, Trial] = {}
        self.workers = 1
        """trainings at once, in this session"""
        self._at: dict[int, list[tuple[float, int, Trial]]] = {}
        for event in events:
            self.apply(event)

    @property
    def draws_left(self) -> int:
        """How many more configurations may begin."""
        return self.num_samples - len(self.drawn)

    def at(self, tokens: int) -> list[Trial]:
        """Those that have a loss at `tokens`, the lowest first (of equals the earlier); without repeats."""
        return [trial for _, _, trial in self._at.get(tokens, ())]

    def count_at(self, tokens: int) -> int:
        """How many those are."""
        return len(self._at.get(tokens, ()))

    def apply(self, event: Event) -> None:
        """Takes one more event in."""
        kind, trial = event["event"], self.by_id.get(event.get("trial_id", ""))
        if kind == "session":
            self.workers = event["workers"]
        elif kind == "trial":
            trial_id = event["trial_id"]
            trial = Trial(trial_id, event["config"], event["kind"], event.get("of", trial_id), event["until"])
            self.by_id[trial_id] = self.running[trial_id] = trial
            (self.by_id[trial.of].repeats if trial.kind == REPEAT else self.drawn).append(trial)
        elif kind == "resume":
            trial.until = event["until"]
            self._set(trial, RUNNING)
        elif kind == "report":
            self._report(trial, event)
        elif kind == "checkpoint":
            trial.checkpoints[event["tokens_seen"]] = event["path"]
        elif kind == "pruned":
            for tokens in event["tokens_seen"]:
                trial.checkpoints.pop(tokens, None)
        elif kind == "lost":
            trial.lost += 1
        elif kind == "failed":
            trial.reason = event["reason"]
            self._set(trial, FAILED)

    def _report(self, trial: Trial, event: Event) -> None:
        tokens = event["tokens_seen"]
        trial.reports[tokens], trial.tokens = event, tokens
        if event["diverged"]:
            return self._set(trial, DIVERGED)
        trial.losses[tokens] = loss = event["val_loss" if tokens >= self.budget_tokens else self.metric]
        if trial.kind != REPEAT:
            bisect.insort(self._at.setdefault(tokens, []), (loss, self.count_at(tokens), trial), key=lambda row: row[:2])
        if tokens >= self.budget_tokens:
            self._set(trial, COMPLETED)
        elif event["decision"] != CONTINUE:
            self._set(trial, PAUSED if event["decision"] == PAUSE else STOPPED)

    def _set(self, trial: Trial, status: str) -> None:
        trial.status = status
        if status == RUNNING:
            self.running[trial.trial_id] = trial
        else:
            self.running.pop(trial.trial_id, None)


def expected_at(trials: Trials, tokens: int) -> Callable[[Trial], float]:
    """A trial that came to `tokens` -> the mean over its seeds of their losses there.

    At the full budget a seed that has come COUNTED_FROM of the way counts, too: from where it stands its loss is expected
    to change as those of the configurations did, on average, that ended.
    """

    @functools.cache
    def change(mark: int) -> float:
        went = [trial.losses[tokens] - trial.losses[mark] for trial in trials.at(tokens) if mark in trial.losses]
        return sum(went) / len(went) if went else math.nan

    def expected(trial: Trial) -> float:
        losses = trial.seeds_at(tokens)
        for repeat in trial.repeats:
            mark = repeat.tokens
            early = tokens < trials.budget_tokens or mark < COUNTED_FROM * tokens
            if not early and tokens not in repeat.losses and mark in repeat.losses and not math.isnan(change(mark)):
                losses.append(repeat.losses[mark] + change(mark))
        return sum(losses) / len(losses)

    return expected


def standings(trials: Trials) -> tuple[int, list[Trial]]:
    """(tokens, the configurations that came so far, best first): the furthest that two have come, or the only one.

    Compared by `expected_at`. Those that have at least TRUSTED_SEEDS seeds there, or the most that any has, come before
    those that have fewer: the best of many is the luckiest. Of equals the earlier is the better.
    """
    reached = Counter(tokens for trial in trials.drawn for tokens in trial.losses)
    tokens = max((tokens for tokens in reached if reached[tokens] > 1), default=max(reached, default=0))
    there, expected = trials.at(tokens), expected_at(trials, tokens)
    trusted = min(TRUSTED_SEEDS, max((len(trial.seeds_at(tokens)) for trial in there), default=0))

    def place(trial: Trial) -> tuple[bool, float, str]:
        return len(trial.seeds_at(tokens)) < trusted, expected(trial), trial.trial_id

    return tokens, sorted(there, key=place)
