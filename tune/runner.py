"""Runs a search on Ray: starts trials where the state says, journals what they report, and cleans up behind them.

Ray executes; it does not remember. Every run of the command is a new Ray experiment below ray/session_K, and every
stretch of a trial from a checkpoint to a rung, an end or a failure is a trial of Ray's: a segment. A new trial, a
promotion, a retry and a resume are one thing, a segment that starts from the trial's last stored checkpoint. Ray's own
pausing, retrying and restoring are not used: restoring forgets the scheduler (ray issue 30838), can't add trials (42221),
and unpickles what it finds.
"""

import contextlib
import errno
import logging
import math
import os
import shutil
import signal
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.exceptions
from ray import tune
from ray._private import ray_constants
from ray.train._internal.session import _TrainingResult
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm

from myllm.errors import InputError, RunError
from tune.journal import Journal, read_journal
from tune.options import CONFIRM_WORTH
from tune.progress import Progress
from tune.results import search_seconds, write_results
from tune.samplers import sampler
from tune.schedulers import CONTINUE, SCHEDULERS, parse_ladder
from tune.settings import Resources, task_of, write_search
from tune.state import Plan, SearchState
from tune.storage import Storage
from tune.trainable import run_trial

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine unless the user sets Ray's own switch
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal holds what they would write
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Interrupts is ours
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Ray's snapshots are never read back
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",
}
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
STARTING_SECONDS = 10.0  # before a session's first event and after its last
OVERHEAD = 1.25  # seconds a trial takes for each second it trains: evaluations, checkpoints, starts
TABLES_SECONDS = 10.0  # between rewrites of trials.csv and history.csv while a search runs


def open_state(run_dir: Path, search: dict[str, Any]) -> SearchState:
    """The state of the search in `run_dir`, journalled there. Raises InputError where another process is running it."""
    config = search["config"]
    budget_tokens, report_tokens = search["train"]["budget_tokens"], search["report_tokens"]
    ladder = parse_ladder(search["rungs"]) if search["rungs"] else ()
    plan = Plan(
        num_samples=config["num_samples"],
        budget_tokens=budget_tokens,
        draw=sampler(search),
        confirm=search["confirm"],
        seed=config["seed"],
        rung_metric=config["rung_metric"],
        max_failures=config["max_failures"],
    )
    scheduler = SCHEDULERS[config["scheduler"]](ladder, budget_tokens, report_tokens)
    journal = Journal(run_dir)
    return SearchState(plan, scheduler, journal.append, read_journal(run_dir))


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
        """Closes the search when what is left of --time_budget is needed to finish it; opens it again for more time."""
        budget, over = self.search["config"]["time_budget"], False
        reports = [event for event in self.state.events if event["event"] == "report"]
        if budget is not None and len(reports) >= MEASURED_REPORTS:
            used = STARTING_SECONDS + search_seconds(self.state.events)
            if self.started:
                used += time.time() - self.state.events[-1]["time"]
            speed = statistics.median(report["tok_per_sec"] for report in reports) / OVERHEAD  # tokens a second, of a slot
            trainings = budget * speed * self.slots / self.state.plan.budget_tokens
            if self.search["config"]["confirm"] is None and self.state.confirm and trainings < CONFIRM_WORTH:
                self.state.record("confirm", trials=0)
            over = used + self.state.tokens_to_finish(self.slots) / speed > budget
        if over and not self.state.closed:
            self.state.record("close")
        elif self.state.closed and not over and not self.started:
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


class JournalledScheduler(FIFOScheduler):
    """Passes the state's decisions to Ray: going on, or an end of the segment, be it for good or to wait at a rung."""

    def __init__(self, session: Session):
        super().__init__()
        self.session = session

    def on_trial_result(self, tune_controller: Any, trial: Segment, result: dict) -> str:
        with self.session.disk_errors():
            decision = self.session.state.decide(trial.ours, result)
        return TrialScheduler.CONTINUE if decision == CONTINUE else TrialScheduler.STOP


class Housekeeping(tune.Callback):
    """Journals checkpoints, keeps the tables fresh, shows progress, and ends what can't go on."""

    def __init__(self, session: Session):
        self.session, self.progress = session, Progress(session.state)
        self.last_tables = time.monotonic()

    def on_checkpoint(self, iteration: int, trials: list[Trial], trial: Segment, checkpoint: Any, **info: Any) -> None:
        self.session.on_checkpoint(trial, trial.last_result["step"], checkpoint.path)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self.session.fatal:  # Ray swallows errors of some callbacks
            raise RunError(self.session.fatal)
        self.progress.show()
        if time.monotonic() - self.last_tables > TABLES_SECONDS:
            self.last_tables = time.monotonic()
            with self.session.disk_errors():
                write_results(self.session.run_dir, self.session.state, self.session.search)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.progress.clear()


class Interrupts:
    """SIGINT and SIGTERM: the first lets the search end in order, the second leaves at once. Both can be resumed from."""

    def __init__(self, resume_command: str):
        self.resume_command, self.count = resume_command, 0
        self.ending = False
        """set when the search ends anyway"""

    def __enter__(self) -> "Interrupts":
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Makes both signals ours; called again after Ray has put its own handler there."""
        for number in self.before:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.count > 1:
            print(f"\nleft at once; go on with: {self.resume_command}", file=sys.stderr, flush=True)
            for process in psutil.Process().children(recursive=True):  # Ray's agents would linger for a minute
                with contextlib.suppress(psutil.Error):
                    process.kill()
            os._exit(130)
        print("\nstopping; once more leaves at once", file=sys.stderr, flush=True)
        if self.ending:
            return
        end_loop = signal.getsignal(signal.SIGUSR1)  # Ray's own way to end its loop, while that runs
        if not callable(end_loop):
            raise KeyboardInterrupt
        end_loop(number, frame)
        self.install()


def checkpoint_root(run_dir: Path, search: dict[str, Any]) -> str:
    """Folder or URI that holds the run's checkpoints and Ray's records."""
    storage_path = search["config"]["storage_path"]
    if storage_path and "://" in storage_path:
        return f"{storage_path.rstrip('/')}/{search['config']['name']}"
    return str(run_dir / "ray")


def run_search(run_dir: Path, search: dict[str, Any], resources: Resources) -> bool:
    """Runs, or goes on with, the search in `run_dir`; True where it ended by itself, False where it was interrupted.

    Writes search.json before anything starts. Raises InputError where another process is running it, and RunError where
    the disk is full.
    """
    state = open_state(run_dir, search)
    session = Session(run_dir, search, state, resources.slots)
    with session.disk_errors():
        write_search(run_dir, search)
        session.watch_time()
    with Interrupts(f"python tune/search.py --resume {os.path.relpath(run_dir)}") as interrupts:
        try:
            if not state.is_over():
                with session.disk_errors():
                    session.tidy()
                    state.record("session", session=session.number, slots=resources.slots)
                _run_trials(session, resources, interrupts)
        except KeyboardInterrupt:
            pass  # before Ray's loop began
        except Exception as error:
            full = shutil.disk_usage(run_dir).free == 0 or is_disk_full(error)
            if not session.fatal and not full:
                raise
            raise RunError(session.fatal or f"the disk is full: {run_dir}") from None
        finally:
            interrupts.ending = True
            ray.shutdown()
            if session.started:
                with contextlib.suppress(OSError):  # a full disk: the last event before it counts
                    state.record("session_end", session=session.number)
        with session.disk_errors():
            session.tidy()
            write_results(run_dir, state, search)
    return state.is_over()


def _run_trials(session: Session, resources: Resources, interrupts: Interrupts) -> None:
    """Starts or joins Ray and lets it work off the session; returns early when interrupted."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(resources.slots)
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = session.search["config"]
    options: dict[str, Any] = dict(
        address=config["address"] or "local", log_to_driver=False, logging_level=logging.CRITICAL
    )
    if config["address"] is None:
        # Ray listens on every network, also where it is given 127.0.0.1, unless it is told that clusters are not wanted.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for Ray's other processes
        ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read the variable already
        options |= dict(
            num_cpus=resources.slots * resources.cpus_per_trial,
            num_gpus=math.ceil(resources.slots * resources.gpus_per_trial),
            include_dashboard=config["dashboard"],
        )
    ray.init(**options)
    interrupts.install()
    task = task_of(session.search, resources, tuple(rung.mark for rung in session.state.scheduler.rungs))
    try:
        tune.run(  # not a Tuner: that pickles its arguments into the run folder, and nothing here is restored from it
            tune.with_resources(
                tune.with_parameters(run_trial, task=task),
                {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial},
            ),
            name=f"session_{session.number}",
            storage_path=session.storage.root,
            num_samples=session.total_samples,
            search_alg=session,
            scheduler=JournalledScheduler(session),
            callbacks=[Housekeeping(session)],
            reuse_actors=True,
            raise_on_failed_trial=False,
            verbose=0,
        )
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def cluster_resources(address: str) -> tuple[int, int]:
    """(CPU cores, GPUs) of the Ray cluster at `address`. Raises InputError where none answers."""
    host, _, port = address.rpartition(":")
    try:
        if host and port.isdigit() and "/" not in host:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself tries for minutes
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, ValueError, RuntimeError):
        raise InputError(f"--address {address}: no Ray cluster answers there; start one with `ray start --head`") from None
    found = ray.cluster_resources()
    ray.shutdown()
    return int(found.get("CPU", 0)), int(found.get("GPU", 0))
