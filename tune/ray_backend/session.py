"""One run of the command: the journal, and all that is kept in step with it."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from myllm.system.errors import RunError, warn
from myllm.system.files import is_disk_full, write_text
from myllm.system.machine import origin
from tune.config.resolve import CODE, PACKAGES
from tune.config.spec import SearchSpec
from tune.core.clock import ENDING_SECONDS, SearchClock, TimeBudget
from tune.core.coordinator import Coordinator
from tune.core.events import CheckpointsDeleted, CheckpointStored, Event, Reported, SessionEnded, SessionStarted
from tune.core.schedulers.base import Clock
from tune.core.slots import Training, is_worth_joining, is_worth_leaving, share_idle
from tune.core.trials import AUDIT, CONTINUE, REPLICATE, STOP, Trial
from tune.monitor.trackers import start_trackers
from tune.ray_backend.failures import RayTrialRun, why_hopeless
from tune.ray_backend.trainable import IS_STORED
from tune.store.checkpoints import Storage, worth_keeping
from tune.store.journal import Journal, events_of
from tune.store.tables import GrowingTables


class SearchSession:
    """One run of the command on a run folder. Raises InputError where another process is running a search there."""

    def __init__(self, run_dir: Path, search: SearchSpec, workers: int, processes: int = 1):
        self.run_dir, self.search, self.workers, self.processes = run_dir, search, workers, processes
        options = search.options
        self.started = 0  # segments that were handed out
        self.slots: dict[str, int] = {}  # of each trial whose segment runs
        self.leaving: set[str] = set()  # trials whose segment ends so that they go on with another number of slots
        self.between: list[Trial] = []  # trials whose segment has ended so
        self.heard = 0  # reports and ends of segments
        self.fatal: str | None = None  # why the search can't go on: one line
        self.journal = Journal(run_dir)
        self.trials = search.trials()
        self.tables = GrowingTables(run_dir, self.trials, options.seed)
        self.time_budget = TimeBudget(options.time_budget, 1.0 if search.ladder else None)
        self.spent = SearchClock()
        self.number = 0  # sessions of this search before this one
        for event in events_of(run_dir):
            self._see(event)
            self.trials.apply(event)
            self.number += isinstance(event, SessionStarted)
        self.seconds_before = self.spent.search + self.spent.audit
        self.coordinator = Coordinator(
            self.trials, search.scheduler(), search.searcher(), self._append, options.seed, options.max_failures
        )
        self.storage = Storage(search.storage_root(run_dir))
        self.written_here: set[str] = set()  # checkpoints of this run of the command, which need no test
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
                self.time_budget.see(trial.reports.get(trial.tokens), event, event.slots(self.trials.processes))

    @property
    def clock(self) -> Clock:
        """The search's time now. It stands still during an audit."""
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
        """The trial that a free worker begins or takes up, or None. `slots` then holds its slots."""
        free = self.workers - sum(self.slots.values())
        if free <= 0:
            return None
        trial = None
        if free > len(self.between):
            with self.disk_errors():
                trial = self.coordinator.next_trial(self.clock)
        if trial is None and self.between:
            trial = self.between.pop(0)
        if trial is not None:
            self.started += 1
            self.slots[trial.trial_id] = 1
            self.slots[trial.trial_id] = self._slots_for(trial)
        return trial

    def on_report(self, trial: Trial, result: dict[str, Any]) -> str:
        """The decision on a report. Where the search's time is long over, the segment ends as if interrupted. It ends as
        well where its trial goes on with another number of slots.
        """
        self.heard += 1
        with self.disk_errors():
            decision = self.coordinator.on_report(trial, result, self.clock)
        if decision != CONTINUE:
            return decision
        if self.time_budget.is_late(self._passed) and trial.source != AUDIT:
            return STOP
        if result.get(IS_STORED) and self._slots_for(trial) != self.slots[trial.trial_id]:
            self.leaving.add(trial.trial_id)
            return STOP
        return CONTINUE

    def _slots_for(self, trial: Trial) -> int:
        """The slots that a running trial should have: idle ones join it; it gives them back for others that can begin."""
        slots = self.slots[trial.trial_id]
        if not self.search.options.joins_idle_slots:
            return slots
        free, own = self.workers - sum(self.slots.values()) - len(self.between), self._training(trial)
        if self.coordinator.has_more(self.clock):
            return 1 if free <= 0 and is_worth_leaving(own) else slots
        running = {trial_id: self._training(self.trials.by_id[trial_id]) for trial_id in self.slots}
        wanted = share_idle(running, free, self.processes)[trial.trial_id]
        return wanted if is_worth_joining(own, wanted) else slots

    def _training(self, trial: Trial) -> Training:
        """What is left of a trial's segment. The seconds are 0 where no pace is known yet."""
        trained = trial.tokens - trial.begun_at
        pace = trial.slot_seconds / trained if trained > 0 else self.time_budget.seconds_per_token
        seconds = pace * (trial.segment_end_tokens - trial.tokens)
        batch_size = int(self.search.all_settings(trial.config)["batch_size"])
        return Training(seconds, batch_size, self.slots[trial.trial_id])

    def on_checkpoint(self, trial: Trial, tokens: int, path: str) -> None:
        """Journals that the trial's state after `tokens` lies in the folder `path`."""
        relative = os.path.relpath(path, self.storage.path)
        replaced = trial.checkpoints.get(tokens)  # by the same state, made again after a crash
        self.written_here.add(relative)
        with self.disk_errors():
            self.coordinator.record(CheckpointStored(trial_id=trial.trial_id, tokens_seen=tokens, path=relative))
            if replaced and replaced != relative:
                self.storage.delete(replaced)
            self._delete_worthless(trial)

    def on_end(self, run: RayTrialRun, failed: bool) -> None:
        """A worker is done with a segment."""
        self.heard += 1
        with self.disk_errors():
            if failed and run.outer_cause:
                self.fatal = run.outer_cause  # the trial itself is sound: it goes on when that is mended
            elif failed:
                self.coordinator.on_failure(run.trial, run.retryable, run.reason)
                write_text(self.run_dir / f"error-{run.trial.trial_id}.txt", run.error + "\n")
                self.fatal = why_hopeless(self.trials) or self.fatal
            del self.slots[run.trial.trial_id]
            if run.trial.trial_id in self.leaving and not failed:
                self.between.append(run.trial)
            else:
                self.coordinator.on_end(run.trial)
            self.leaving.discard(run.trial.trial_id)
            self._delete_worthless(run.trial)

    def newest_sound(self, trial: Trial) -> str | None:
        """Path of the trial's newest undamaged checkpoint, relative to the storage; None: it begins anew. A repetition
        without a seed always begins anew, as it must train in one piece.
        """
        if trial.source == REPLICATE and not self.search.has_seeds:
            return None
        inherited = self.trials.by_id[trial.parent_id].checkpoints if trial.source == AUDIT and trial.parent_id else {}
        for _, path in sorted((inherited | trial.checkpoints).items(), reverse=True):
            damage = None if path in self.written_here else self.storage.damage(path)
            if damage is None:
                return path
            warn(f"trial {trial.trial_id}: checkpoint {path} {damage}; going back further")
        return None

    def _delete_worthless(self, trial: Trial) -> None:
        """Deletes the checkpoints of a trial that are not worth their room, unless the user keeps all."""
        if self.search.options.keep_checkpoints == "all" or not trial.checkpoints:
            return
        kept = worth_keeping(self.trials, trial, self.coordinator.scheduler.may_audit(self.trials, trial))
        deleted = {tokens: path for tokens, path in trial.checkpoints.items() if tokens not in kept}
        if deleted:
            self.coordinator.record(CheckpointsDeleted(trial_id=trial.trial_id, tokens_seen=sorted(deleted)))
            for path in deleted.values():
                self.storage.delete(path)

    def cleanup(self) -> None:
        """Deletes the worthless checkpoints of every trial, and the files that a crash left behind."""
        for trial in self.trials.by_id.values():
            self._delete_worthless(trial)
        if self.search.options.keep_checkpoints != "all":
            self.storage.sweep({path for trial in self.trials.by_id.values() for path in trial.checkpoints.values()})

    @contextlib.contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Within it an OSError ends the search as a RunError: what can't be journalled must not be acted on."""
        try:
            yield
        except OSError as error:
            self.fatal = f"{'the disk is full' if is_disk_full(error) else error}: {self.run_dir} can't be written"
            raise RunError(self.fatal) from None

    def begin(self, begun: float) -> None:
        """Journals the beginning of the session, with the versions of its code, `begun` seconds after 1970."""
        code = {name: value for name, value in origin(PACKAGES).items() if name in CODE}
        seconds = round(time.time() - begun, 3)
        size: dict[str, Any] = {"workers": self.workers, "processes": self.processes}
        self.coordinator.record(SessionStarted(session=self.number, startup_seconds=seconds, **size, **code))

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
