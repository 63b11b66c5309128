"""One run of the command, as Ray sees it: a search algorithm that hands out segments of trials, and keeps the journal."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray.exceptions
from ray import tune
from ray.train._internal.session import _TrainingResult
from ray.tune.experiment import Trial as RayTrial
from ray.tune.search import SearchAlgorithm

from myllm.system.errors import RunError
from myllm.system.files import is_disk_full, write_text
from tune.config.spec import SearchSpec
from tune.core.clock import ENDING_SECONDS, SearchClock, TimeBudget
from tune.core.coordinator import Coordinator
from tune.core.schedulers.base import Clock
from tune.core.trials import AUDIT, CONTINUE, FAILED, STOP, Trial, Trials
from tune.store.checkpoints import Storage, worth_keeping
from tune.store.journal import Journal, events_of
from tune.store.tables import GrowingTables

MAY_PASS = (
    *(ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError),
    *(ray.exceptions.OutOfMemoryError, ray.exceptions.ObjectLostError, ray.exceptions.RaySystemError),
    *(ray.exceptions.RpcError, OSError),
)
"""errors that a trial may not have again: lost processes, machines and files; all others are in the code or the settings"""
PASSING_NAMES = ("AcceleratorError", "_AbortTrialExecution")
"""likewise: a GPU's own error, and Ray's word for a process whose last trial did not leave it in time"""
EXCEPTION = re.compile(r"(\w+\.)*\w*(Error|Exception|Exit|Interrupt): .*\S")
"""the line of a traceback that says what happened"""
HOPELESS = 3  # trials that failed without a report, and none began before them: the rest would fare alike


class Segment(RayTrial):
    """A stretch of one of our trials, as a trial of Ray's."""

    ours: Trial
    may_pass = False
    disk_full = False
    error = ""

    def handle_error(self, exc: Exception | None = None) -> None:
        """Remembers what ended the segment; called by Ray."""
        cause = getattr(exc, "cause", None) or exc
        self.disk_full = is_disk_full(cause)
        self.may_pass = isinstance(cause, MAY_PASS) or type(cause).__name__ in PASSING_NAMES
        self.error = str(exc).strip()
        self.may_pass &= "failed to import on the worker" not in self.error  # Ray then reports a process that was lost
        with contextlib.suppress(OSError):  # Ray writes files of its own, which a full disk refuses
            super().handle_error(exc)

    def should_recover(self) -> bool:
        return False  # a retry is a new segment


class Session(SearchAlgorithm):
    """One run of the command: gives Ray segments, and keeps the journal, the checkpoints and the tables in order."""

    def __init__(self, run_dir: Path, search: SearchSpec, workers: int):
        self.run_dir, self.search, self.workers = run_dir, search, workers
        config = search.options
        self.journal = Journal(run_dir)
        self.trials = Trials(search.budget_tokens, config.trials, config.rung_metric)
        self.tables = GrowingTables(run_dir, self.trials, config.seed)
        self.stopwatch = TimeBudget(config.time_budget)
        self.number = 0
        self.spent = SearchClock()
        for event in events_of(run_dir):
            self._see(event)
            self.trials.apply(event)
            self.number += event["event"] == "session"
        self.seconds_before = self.spent.search + self.spent.audit
        self.coordinator = Coordinator(
            self.trials, search.scheduler(), search.searcher(), self._append, config.seed, config.max_failures
        )
        self.storage = Storage(search.storage_root(run_dir))
        self.keep_all = config.keep_checkpoints == "all"
        self.segments: dict[str, Segment] = {}
        self.newest: Segment | None = None
        """the segment that was handed out last, until Ray is told to start it first"""
        self.started = 0
        self.written_here: set[str] = set()
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        """each is told every event that has been journalled"""
        self.beat: Callable[[], None] = lambda: None
        """called whenever Ray asks for a trial, also where it waits for one: raises what ends the search"""
        self.fatal: str | None = None
        """why the search can't go on: one line"""

    def _append(self, event: str, **values: Any) -> dict[str, Any]:
        entry = self.journal.append(event, **values)
        self._see(entry)
        for listener in self.listeners:
            listener(entry)
        return entry

    def _see(self, event: dict[str, Any]) -> None:
        """Shows the stopwatch and the tables an event that is not among the trials' yet."""
        self.tables.see(event)
        self.spent.see(event)
        if event["event"] == "report":
            trial = self.trials.by_id[event["trial_id"]]
            if trial.source != AUDIT:
                self.stopwatch.see(trial.reports.get(trial.tokens), event)

    @property
    def clock(self) -> Clock:
        """Where the search stands now; it stands still during an audit."""
        return self.stopwatch.read(ENDING_SECONDS + self._passed, ENDING_SECONDS + self.spent.starting)

    @property
    def _passed(self) -> float:
        """Seconds of the search, without audits, until now."""
        passes = self.started and not self.spent.auditing
        return self.spent.search + (max(0.0, time.time() - self.spent.last) if passes else 0.0)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.coordinator.is_over(self.clock)

    # Ray's SearchAlgorithm

    def add_configurations(self, experiments: Any) -> None:
        self._experiment = experiments[0] if isinstance(experiments, list) else experiments

    @property
    def total_samples(self) -> int:
        return self.trials.num_samples

    def is_finished(self) -> bool:
        return self._finished or self.is_over

    def next_trial(self) -> RayTrial | None:
        self.beat()
        self._take_back_lost()
        if self._finished or self.fatal or len(self.segments) >= self.workers:
            return None
        with self.disk_errors():
            trial = self.coordinator.next_trial(self.clock)
        return self.segment(trial) if trial else None

    def active(self) -> list[Trial]:
        """Those that a worker trains."""
        return [segment.ours for segment in self.segments.values()]

    def _take_back_lost(self) -> None:
        """Takes note of segments that Ray gave up without a word: it tells nobody where a process can't be reused."""
        for segment in list(self.segments.values()):
            if segment.status == RayTrial.ERROR:
                self.on_trial_complete(segment.trial_id, error=True)

    def segment(self, trial: Trial) -> RayTrial:
        """The next stretch of `trial`."""
        self.started += 1
        spec = self._experiment.spec
        segment = Segment(
            self._experiment.run_identifier,
            config=dict(trial.config),
            trial_id=f"{trial.trial_id}.{self.started}",
            storage=self._experiment.storage,
            placement_group_factory=spec.get("resources_per_trial"),
            checkpoint_config=spec["checkpoint_config"],
            trial_dirname_creator=lambda segment: segment.trial_id,
        )
        segment.ours = trial
        checkpoint = self.sound_checkpoint(trial)
        if checkpoint:
            restored = tune.Checkpoint(self.storage.absolute(checkpoint), filesystem=self.storage.filesystem)
            segment._restore_checkpoint_result = _TrainingResult(checkpoint=restored, metrics={})
        self.segments[segment.trial_id] = self.newest = segment
        return segment

    def sound_checkpoint(self, trial: Trial) -> str | None:
        """The trial's newest checkpoint that can be trusted; older ones and the beginning stand in for damaged ones."""
        left = self.trials.by_id[trial.parent_id].checkpoints if trial.source == AUDIT else {}
        for _, path in sorted((left | trial.checkpoints).items(), reverse=True):
            damage = None if path in self.written_here else self.storage.damage(path)
            if damage is None:
                return path
            print(f"warning: trial {trial.trial_id}: checkpoint {path} {damage}; going back further", file=sys.stderr)
        return None

    def on_report(self, segment: Segment, result: dict[str, Any]) -> str:
        """The decision on what a segment reports. Where its time is long over it ends as if interrupted, and may go on."""
        with self.disk_errors():
            decision = self.coordinator.on_report(segment.ours, result, self.clock)
        late = self.stopwatch.is_late(self._passed) and segment.ours.source != AUDIT
        return STOP if late and decision == CONTINUE else decision

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        segment = self.segments.pop(trial_id)
        with self.disk_errors():
            if error:
                self.on_failure(segment)
            self.coordinator.on_end(segment.ours)
            self.prune(segment.ours)

    def on_failure(self, segment: Segment) -> None:
        """Journals why a segment ended, with the whole text in a file of the run folder."""
        trial_id = segment.ours.trial_id
        if segment.disk_full:
            self.fatal = f"the disk is full: trial {trial_id} could not store its state in {self.storage.root}"
            return  # the trial itself is sound: it goes on when there is room
        lines = segment.error.splitlines() or ["no reason given"]
        reason = next((line for line in reversed(lines) if EXCEPTION.match(line)), lines[-1])[:200]
        self.coordinator.on_failure(segment.ours, segment.may_pass, reason)
        write_text(self.run_dir / f"error-{trial_id}.txt", segment.error + "\n")
        trials = list(self.trials.by_id.values())
        while trials and trials[-1].status != FAILED:
            trials.pop()
        if len(trials) >= HOPELESS and all(trial.status == FAILED and not trial.reports for trial in trials):
            self.fatal = f"each of the first {len(trials)} trials failed, {trials[0].trial_id} with: {trials[0].reason}"

    # Checkpoints

    def on_checkpoint(self, segment: Segment, tokens: int, path: str) -> None:
        """A report's state is stored."""
        relative = os.path.relpath(path, self.storage.path)
        replaced = segment.ours.checkpoints.get(tokens)  # by the same state, made again after a crash
        self.written_here.add(relative)
        with self.disk_errors():
            self.coordinator.record("checkpoint", trial_id=segment.ours.trial_id, tokens_seen=tokens, path=relative)
            if replaced and replaced != relative:
                self.storage.delete(replaced)
            self.prune(segment.ours)

    def prune(self, trial: Trial) -> None:
        """Deletes the checkpoints of a trial that are not worth their room."""
        gone = {} if self.keep_all else dict(trial.checkpoints)
        may_audit = self.coordinator.scheduler.may_audit(self.trials, trial)
        for tokens in worth_keeping(self.trials, trial, may_audit) if gone else ():
            gone.pop(tokens)
        if gone:
            self.coordinator.record("checkpoints_deleted", trial_id=trial.trial_id, tokens_seen=sorted(gone))
            for path in gone.values():
                self.storage.delete(path)

    def tidy(self) -> None:
        """Prunes every trial, and deletes what a crash left behind."""
        for trial in self.trials.by_id.values():
            self.prune(trial)
        if not self.keep_all:
            self.storage.sweep({path for trial in self.trials.by_id.values() for path in trial.checkpoints.values()})

    @contextlib.contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Within it, an OSError is a RunError and ends the search: what can't be journalled must not be acted on."""
        try:
            yield
        except OSError as error:
            self.fatal = f"{'the disk is full' if is_disk_full(error) else error}: {self.run_dir} can't be written"
            raise RunError(self.fatal) from None
