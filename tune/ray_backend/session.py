"""One run of the command: the journal, and all that is kept in step with it."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from myllm.system.errors import RunError
from myllm.system.files import is_disk_full, write_text
from tune.config.spec import SearchSpec
from tune.core.clock import ENDING_SECONDS, SearchClock, TimeBudget
from tune.core.coordinator import Coordinator
from tune.core.events import Event, Reported, SessionEnded, SessionStarted
from tune.core.schedulers.base import Clock
from tune.core.trials import AUDIT, CONTINUE, STOP, Trial, Trials
from tune.monitor.trackers import start_trackers
from tune.ray_backend.checkpoints import CheckpointKeeper
from tune.ray_backend.failures import RayTrialRun, why_hopeless
from tune.store.checkpoints import Storage
from tune.store.journal import Journal, events_of
from tune.store.tables import GrowingTables


class SearchSession:
    """One run of the command on a run folder. Raises InputError where another process is running a search there."""

    def __init__(self, run_dir: Path, search: SearchSpec, workers: int):
        self.run_dir, self.search, self.workers = run_dir, search, workers
        options = search.options
        self.started = 0
        """segments that were handed out"""
        self.fatal: str | None = None
        """why the search can't go on: one line"""
        self.journal = Journal(run_dir)
        self.trials = Trials(search.budget_tokens, options.trials, options.rung_metric)
        self.tables = GrowingTables(run_dir, self.trials, options.seed)
        self.time_budget = TimeBudget(options.time_budget)
        self.spent = SearchClock()
        self.number = 0
        """sessions of this search before this one"""
        for event in events_of(run_dir):
            self._see(event)
            self.trials.apply(event)
            self.number += isinstance(event, SessionStarted)
        self.seconds_before = self.spent.search + self.spent.audit
        self.coordinator = Coordinator(
            self.trials, search.scheduler(), search.searcher(), self._append, options.seed, options.max_failures
        )
        self.storage = Storage(search.storage_root(run_dir))
        self.checkpoints = CheckpointKeeper(self.coordinator, self.storage, options.keep_checkpoints == "all")
        with self.disk_errors():
            search.write(run_dir)
        self.trackers = start_trackers(run_dir, search, self.trials)

    def _append(self, event: Event) -> Event:
        """Journals an event and tells all that follow the search; returns it."""
        entry = self.journal.append(event)
        self._see(entry)
        for tracker in self.trackers:
            tracker(entry)
        return entry

    def _see(self, event: Event) -> None:
        """Shows the clock and the tables an event that the trials have not taken in yet."""
        self.tables.see(event)
        self.spent.see(event)
        if isinstance(event, Reported):
            trial = self.trials.by_id[event.trial_id]
            if trial.source != AUDIT:
                self.time_budget.see(trial.reports.get(trial.tokens), event)

    @property
    def clock(self) -> Clock:
        """Where the search stands now. The clock stands still during an audit."""
        return self.time_budget.read(ENDING_SECONDS + self._passed, ENDING_SECONDS + self.spent.starting)

    @property
    def _passed(self) -> float:
        """Seconds of the search until now, without audits."""
        passes = self.started and not self.spent.auditing
        return self.spent.search + (max(0.0, time.time() - self.spent.last) if passes else 0.0)

    @property
    def is_over(self) -> bool:
        """True where nothing is left to do."""
        return self.coordinator.is_over(self.clock)

    def next_trial(self) -> Trial | None:
        """The trial that a free worker begins or takes up, or None."""
        with self.disk_errors():
            trial = self.coordinator.next_trial(self.clock)
        self.started += trial is not None
        return trial

    def on_report(self, trial: Trial, result: dict[str, Any]) -> str:
        """The decision on a report. Where the search's time is long over, the segment ends as if interrupted."""
        with self.disk_errors():
            decision = self.coordinator.on_report(trial, result, self.clock)
        late = self.time_budget.is_late(self._passed) and trial.source != AUDIT
        return STOP if late and decision == CONTINUE else decision

    def on_checkpoint(self, trial: Trial, tokens: int, path: str) -> None:
        """The state of the report after `tokens` lies in the folder `path`."""
        with self.disk_errors():
            self.checkpoints.stored(trial, tokens, path)

    def on_end(self, run: RayTrialRun, failed: bool) -> None:
        """A worker is done with a segment."""
        with self.disk_errors():
            if failed:
                self._on_failure(run)
            self.coordinator.on_end(run.trial)
            self.checkpoints.delete_worthless(run.trial)

    def _on_failure(self, run: RayTrialRun) -> None:
        """Journals why a segment failed, with the whole text in a file of the run folder."""
        trial_id = run.trial.trial_id
        if run.outer_cause:
            self.fatal = run.outer_cause
            return  # the trial itself is sound: it goes on when that is mended
        self.coordinator.on_failure(run.trial, run.retryable, run.reason)
        write_text(self.run_dir / f"error-{trial_id}.txt", run.error + "\n")
        self.fatal = why_hopeless(self.trials) or self.fatal

    @contextlib.contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Within it an OSError ends the search as a RunError: what can't be journalled must not be acted on."""
        try:
            yield
        except OSError as error:
            self.fatal = f"{'the disk is full' if is_disk_full(error) else error}: {self.run_dir} can't be written"
            raise RunError(self.fatal) from None

    def begin(self, startup_seconds: float, **versions: Any) -> None:
        """Journals the beginning of the session, `startup_seconds` after the command's, with the `versions` of its code."""
        self.coordinator.record(
            SessionStarted(session=self.number, workers=self.workers, startup_seconds=startup_seconds, **versions)
        )

    def end(self) -> None:
        """Journals the end of the session where it began a segment, and closes the trackers."""
        if self.started:
            with contextlib.suppress(OSError):  # a full disk: the last event before it counts
                self.coordinator.record(SessionEnded(session=self.number))
        for tracker in self.trackers:
            tracker.close()

    def close(self) -> None:
        """Lets another process have the folder."""
        self.journal.close()
