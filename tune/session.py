"""One run of the command, as Ray sees it: a search algorithm that hands out segments of trials.

It also keeps the journal, the checkpoints and the clock in order. What to hand out, the state decides.
"""

import contextlib
import errno
import math
import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.exceptions
from ray import tune
from ray.train._internal.session import _TrainingResult
from ray.tune.experiment import Trial
from ray.tune.search import SearchAlgorithm

from myllm.errors import RunError
from tune.ending import plan_the_end, tokens_to_finish
from tune.journal import Journal, read_journal
from tune.options import CONFIRM_WORTH
from tune.results import search_seconds
from tune.samplers import breeder, sampler
from tune.schedulers import SCHEDULERS, parse_ladder
from tune.state import Plan, SearchState
from tune.storage import Storage

MAY_PASS = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.RaySystemError,
    ray.exceptions.RpcError,
    OSError,
)
"""errors that a trial may not have again: lost processes, machines and files; all others are in the code or the settings"""
MEASURED_REPORTS = 8  # after which the speed is known well enough to plan by; the first ones are slow
RECENT_REPORTS = 128  # by which it is judged: a machine that others use too changes its pace
STARTING_SECONDS = 6.0  # two before a session's first event, four after its last
SPARE = 0.1  # share of the time budget, or of CONFIRM_WORTH, that there must be too much of to think again
OVERHEAD = 1.2  # seconds a trial takes for each second it trains: evaluations, checkpoints, starts


def open_state(run_dir: Path, search: dict[str, Any]) -> SearchState:
    """The state of the search in `run_dir`, journalled there. Raises InputError where another process is running it."""
    config = search["config"]
    budget_tokens, report_tokens = search["train"]["budget_tokens"], search["report_tokens"]
    ladder = parse_ladder(search["rungs"]) if search["rungs"] else ()
    late = config["time_budget"] is not None
    plan = Plan(
        num_samples=search["num_samples"],
        budget_tokens=budget_tokens,
        draw=sampler(search),
        breed=breeder(search) if late and config["scheduler"] == "asha" else None,
        confirm=search["confirm"],
        seed=config["seed"],
        rung_metric=config["rung_metric"],
        max_failures=config["max_failures"],
    )
    scheduler = SCHEDULERS[config["scheduler"]](ladder, budget_tokens, report_tokens, late)
    journal = Journal(run_dir)
    return SearchState(plan, scheduler, journal.append, read_journal(run_dir))


def checkpoint_root(run_dir: Path, search: dict[str, Any]) -> str:
    """Folder or URI that holds the run's checkpoints and Ray's records."""
    storage_path = search["config"]["storage_path"]
    if storage_path and "://" in storage_path:
        return f"{storage_path.rstrip('/')}/{search['config']['name']}"
    return str(run_dir / "ray")


class Segment(Trial):
    """A stretch of one of our trials, as a trial of Ray's; `ours` is the trial's id."""

    ours: str
    may_pass = False
    disk_full = False
    error = ""

    def handle_error(self, exc: Exception | None = None) -> None:
        """Remembers what ended the segment; called by Ray."""
        cause = getattr(exc, "cause", None) or exc
        self.disk_full = is_disk_full(cause)
        self.may_pass = isinstance(cause, MAY_PASS) or type(cause).__name__ == "AcceleratorError"  # a GPU's own error
        self.error = str(exc).strip()
        with contextlib.suppress(OSError):  # Ray writes files of its own, which a full disk refuses
            super().handle_error(exc)

    def should_recover(self) -> bool:
        return False  # a retry is a new segment


def is_disk_full(error: BaseException | None) -> bool:
    """Whether `error` says that a disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and (
        error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
    )


class Session(SearchAlgorithm):
    """One run of the command: gives Ray segments, and keeps the journal, the checkpoints and the tables in order."""

    def __init__(self, run_dir: Path, search: dict[str, Any], state: SearchState, slots: int):
        self.run_dir, self.search, self.state, self.slots = run_dir, search, state, slots
        self.number = sum(event["event"] == "session" for event in state.events)
        self.storage = Storage(checkpoint_root(run_dir, search))
        self.keep_all = search["config"]["keep_checkpoints"] == "all"
        self.segments: dict[str, Segment] = {}
        self.started = 0
        self.written_here: set[str] = set()
        self.fatal: str | None = None
        """why the search can't go on: one line"""

    # Ray's SearchAlgorithm

    def add_configurations(self, experiments: Any) -> None:
        self._experiment = experiments[0] if isinstance(experiments, list) else experiments

    @property
    def total_samples(self) -> int:
        return self.state.plan.num_samples

    def is_finished(self) -> bool:
        return self._finished or self.state.is_over()

    def next_trial(self) -> Trial | None:
        if self._finished or self.fatal or len(self.segments) >= self.slots:
            return None
        with self.disk_errors():
            self.watch_time()
            trial_id = self.state.next_trial()
        return self.segment(trial_id) if trial_id else None

    def watch_time(self) -> None:
        """Closes the search when what is left of --time_budget is needed to finish it; opens it again where there is more.

        The first reports may have been slow ones, so what they led to is taken back when the search turns out to be faster.
        """
        budget, reports = self.search["config"]["time_budget"], [e for e in self.state.events if e["event"] == "report"]
        if budget is not None and len(reports) >= MEASURED_REPORTS:
            used = STARTING_SECONDS + search_seconds(self.state.events)
            if self.started:
                used += time.time() - self.state.events[-1]["time"]
            recent = [report["tok_per_sec"] for report in reports[-RECENT_REPORTS:]]
            slow = statistics.quantiles(recent, n=4)[0]  # small batches often win
            speed = slow / OVERHEAD  # tokens a second, of a slot
            trainings = budget * speed * self.slots / self.state.plan.budget_tokens
            if self.search["config"]["confirm"] is None and not self.state.closed:
                if trainings < CONFIRM_WORTH and self.state.confirm:
                    self.state.record("confirm", trials=0)
                elif trainings > (1 + SPARE) * CONFIRM_WORTH and not self.state.confirm and self.state.plan.confirm:
                    self.state.record("confirm", trials=self.state.plan.confirm)
            left = (budget - used) * speed
            if self.state.closed and (self.state.bred or not self.state.confirm or not self.started):
                spare = left - tokens_to_finish(self.state, draws=1)
                chosen = self.state.confirms or any(rung.promoted for rung in self.state.scheduler.rungs[-1:])
                enough = 0 if not self.started else math.inf if chosen else SPARE * budget * speed
                if spare >= enough:  # never where finalists are chosen: new trials could not be among them any more
                    self.state.record("reopen")
            plan_the_end(self.state, left, used * speed)
        elif self.state.closed and not self.started:
            self.state.record("reopen")
        if self.search["config"]["confirm"] not in (None, self.state.confirm):
            self.state.record("confirm", trials=self.search["config"]["confirm"])  # asked for on --resume

    def segment(self, trial_id: str) -> Segment:
        """The next stretch of `trial_id`."""
        self.started += 1
        spec = self._experiment.spec
        segment = Segment(
            self._experiment.run_identifier,
            config=dict(self.state.configs[trial_id]),
            trial_id=f"{trial_id}.{self.started}",
            storage=self._experiment.storage,
            placement_group_factory=spec.get("resources_per_trial"),
            checkpoint_config=spec["checkpoint_config"],
            trial_dirname_creator=lambda trial: trial.trial_id,
        )
        segment.ours = trial_id
        checkpoint = self.sound_checkpoint(trial_id)
        if checkpoint:
            restored = tune.Checkpoint(self.storage.absolute(checkpoint), filesystem=self.storage.filesystem)
            segment._restore_checkpoint_result = _TrainingResult(checkpoint=restored, metrics={})
        self.segments[segment.trial_id] = segment
        return segment

    def sound_checkpoint(self, trial_id: str) -> str | None:
        """The trial's newest checkpoint that can be trusted; older ones and the beginning stand in for damaged ones."""
        checkpoints = self.state.checkpoints[trial_id]
        for step in sorted(checkpoints, reverse=True):
            damage = None if checkpoints[step] in self.written_here else self.storage.damage(checkpoints[step])
            if damage is None:
                return checkpoints[step]
            print(
                f"warning: trial {trial_id}: checkpoint {checkpoints[step]} {damage}; going back further", file=sys.stderr
            )
        return None

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        segment = self.segments.pop(trial_id)
        with self.disk_errors():
            if error:
                self.on_failure(segment)
            self.state.running.discard(segment.ours)
            self.prune(segment.ours)

    def on_failure(self, segment: Segment) -> None:
        """Journals why a segment ended, with the whole text in a file of the run folder."""
        if segment.disk_full:
            self.fatal = f"the disk is full: trial {segment.ours} could not store its state in {self.storage.root}"
            return  # the trial itself is sound: it goes on when there is room
        reason = segment.error.splitlines()[-1][:200] if segment.error else "no reason given"
        self.state.failure(segment.ours, segment.may_pass, reason)
        (self.run_dir / f"error-{segment.ours}.txt").write_text(segment.error + "\n")

    # Checkpoints

    def on_checkpoint(self, segment: Segment, step: int, path: str) -> None:
        """A report's state is stored."""
        relative = os.path.relpath(path, self.storage.path)
        replaced = self.state.checkpoints[segment.ours].get(step)  # by the same state, made again after a crash
        self.written_here.add(relative)
        with self.disk_errors():
            self.state.record("checkpoint", trial_id=segment.ours, step=step, path=relative)
            if replaced and replaced != relative:
                self.storage.delete(replaced)
            self.prune(segment.ours)

    def prune(self, trial_id: str) -> None:
        """Deletes the checkpoints of a trial that are not worth their room."""
        checkpoints = self.state.checkpoints[trial_id]
        steps = set() if self.keep_all else checkpoints.keys() - self.state.kept_checkpoints(trial_id)
        gone = [checkpoints[step] for step in sorted(steps)]
        if gone:
            self.state.record("pruned", trial_id=trial_id, steps=sorted(steps))
            for path in gone:
                self.storage.delete(path)

    def tidy(self) -> None:
        """Prunes every trial, and deletes what a crash left behind."""
        for trial_id in self.state.configs:
            self.prune(trial_id)
        if not self.keep_all:
            self.storage.sweep({path for of_trial in self.state.checkpoints.values() for path in of_trial.values()})

    @contextlib.contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Within it, an OSError is a RunError and ends the search: what can't be journalled must not be acted on."""
        try:
            yield
        except OSError as error:
            self.fatal = f"{'the disk is full' if is_disk_full(error) else error}: {self.run_dir} can't be written"
            raise RunError(self.fatal) from None
