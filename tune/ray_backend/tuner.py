"""Runs a search on Ray: starts trials where the state says, journals what they report, and cleans up behind them.

Ray executes and does not remember. Each run of the command is a new Ray experiment below ray/session_K. Each stretch of a
trial from a checkpoint to a rung, an end or a failure is a trial of Ray's: a segment. So a new trial, a promotion, a retry
and a resume are one thing: a segment that starts from the trial's last stored checkpoint. Ray's own pausing, retrying and
restoring are not used: restoring forgets the scheduler (ray issue 30838), can't add trials (42221), and unpickles files.
"""

import contextlib
import logging
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
import ray.tune as ray_tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from myllm.system.errors import RunError
from myllm.system.files import is_disk_full
from myllm.system.machine import origin
from tune.analysis.results import write_best, write_results
from tune.config.resolve import CODE, PACKAGES
from tune.config.resources import Resources
from tune.config.spec import SearchSpec
from tune.core.trials import CONTINUE
from tune.monitor.progress import Progress
from tune.ray_backend.failures import trial_of
from tune.ray_backend.search_algorithm import RaySearchAlgorithm
from tune.ray_backend.session import SearchSession
from tune.ray_backend.signals import Interrupts
from tune.ray_backend.start import RayRuntime, import_ahead
from tune.ray_backend.trainable import run_trial
from tune.ray_backend.watchdog import Watchdog, ray_processes
from tune.text.commands import command

RAY_LOG = "ray.log"
TABLES_SECONDS = 10.0  # between additions to trials.csv and history.csv while a search runs


class JournalledScheduler(FIFOScheduler):
    """Passes the session's decisions to Ray: a segment goes on, or ends for good or to wait at a rung.

    A new segment takes the process of the segment that has just ended. Ray alone would give that process to the segment
    that has waited longest, and end the process that is starting for it: of 16 workers whose trainings ended sooner than
    processes start, 8 never trained.
    """

    def __init__(self, algorithm: RaySearchAlgorithm):
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's has no annotations
        self.algorithm = algorithm

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """Ray's word for the decision on a report."""
        goes_on = self.algorithm.session.on_report(trial_of(trial), result) == CONTINUE
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: Any) -> RayTrial | None:
        """The newest segment, once: then it has a process, or one starts for it. Ray stages all others by itself."""
        return self.algorithm.take_start_next()


class Housekeeping(ray_tune.Callback):
    """Journals checkpoints, keeps the tables fresh, shows progress, and ends a search that can't go on."""

    def __init__(self, session: SearchSession, progress: Progress, watchdog: Watchdog):
        self.session, self.progress, self.watchdog = session, progress, watchdog
        self.last_tables, self.first_tables = time.monotonic(), True

    def on_trial_start(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """A worker has begun a segment."""
        self.watchdog.started(trial.trial_id)

    def on_trial_result(self, iteration: int, trials: list[RayTrial], trial: RayTrial, result: Any, **info: Any) -> None:
        """A segment has reported."""
        self.watchdog.started(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[RayTrial], trial: RayTrial, **info: Any) -> None:
        """A worker is done with a segment."""
        self.watchdog.ended(trial.trial_id)

    on_trial_error = on_trial_complete

    def on_checkpoint(self, iteration: int, trials: list[RayTrial], trial: RayTrial, checkpoint: Any, **info: Any) -> None:
        """A segment's last report has stored its state."""
        self.session.on_checkpoint(trial_of(trial), trial.last_result["tokens_seen"], checkpoint.path)

    def on_step_end(self, iteration: int, trials: list[RayTrial], **info: Any) -> None:
        """Ray has handled one event. Raises RunError where the search can't go on."""
        if self.session.fatal:  # Ray swallows errors of some callbacks
            raise RunError(self.session.fatal)
        self.watchdog.check()
        self.progress.show()
        if time.monotonic() - self.last_tables > TABLES_SECONDS:
            self._write_tables()

    def _write_tables(self) -> None:
        self.last_tables = time.monotonic()
        with self.session.disk_errors():
            self.session.tables.flush()
            write_best(self.session.run_dir, self.session.trials, self.session.search)
        if self.first_tables:  # the import takes a second, which the end need not wait for
            import_ahead("tune.report", "tune.reporting.html_report")
        self.first_tables = False


def run_search(run_dir: Path, search: SearchSpec, resources: Resources, runtime: RayRuntime | None = None) -> bool:
    """Runs, or goes on with, the search in `run_dir`; True where it ended by itself, False where it was interrupted.

    `runtime` is stopped in the end. search.json is written first. Raises InputError where another process is running the
    search, and RunError where it can't go on, as on a full disk.
    """
    session = SearchSession(run_dir, search, resources.workers)
    with contextlib.closing(session), Interrupts(command("tune/search.py", "--resume", run_dir)) as interrupts:
        try:
            if not session.is_over:
                _train(session, resources, runtime or RayRuntime(), interrupts)
        finally:
            interrupts.ending = True
            session.end()
        with session.disk_errors():
            session.checkpoints.cleanup()
            write_results(run_dir, session.trials, search)
    return session.is_over


def _train(session: SearchSession, resources: Resources, runtime: RayRuntime, interrupts: Interrupts) -> None:
    """Trains until nothing is left to do, or a signal comes. Raises RunError where the search can't go on."""
    try:
        with session.disk_errors():
            session.checkpoints.cleanup()
            session.begin(round(time.time() - runtime.begun, 3), **_code_versions())
        runtime.start(session.search.options, resources)
        progress = Progress(session.run_dir, session.search, session.coordinator, session.seconds_before)
        with _ray_log(session.run_dir), progress:
            _run_trials(session, runtime, resources, interrupts, progress)
    except KeyboardInterrupt:
        pass  # before Ray's loop began
    except Exception as error:
        full = shutil.disk_usage(session.run_dir).free == 0 or is_disk_full(error)
        if not session.fatal and not full:
            raise
        raise RunError(session.fatal or f"the disk is full: {session.run_dir}") from None
    finally:
        interrupts.ending = True
        runtime.stop()


def _code_versions() -> dict[str, Any]:
    """The versions of code and packages that a session runs with."""
    return {name: value for name, value in origin(PACKAGES).items() if name in CODE}


@contextlib.contextmanager
def _ray_log(run_dir: Path) -> Iterator[None]:
    """Within it Ray's warnings go to ray.log in the run's folder, which is written when there is one."""
    handler = logging.FileHandler(run_dir / RAY_LOG, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.WARNING)
    root, rays = logging.getLogger(), logging.getLogger("ray")
    before = root.handlers[:], rays.handlers[:], rays.propagate
    root.handlers, rays.handlers, rays.propagate = [handler], [], True  # ray.init clears its own logger's
    logging.getLogger("ray.tune.analysis").setLevel(logging.ERROR)  # misses the files that the journal stands in for
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers, rays.handlers, rays.propagate = before
        handler.close()


def _run_trials(
    session: SearchSession, runtime: RayRuntime, resources: Resources, interrupts: Interrupts, progress: Progress
) -> None:
    """Lets Ray work off the session; returns early when interrupted."""
    runtime.wait_until_started()
    interrupts.install()
    watchdog = watch(session, runtime, resources)

    def check_alive() -> None:
        watchdog.check()
        if interrupts.count:  # Ray looks between its steps, and waits for a trial within one
            raise KeyboardInterrupt

    algorithm = RaySearchAlgorithm(session, check_alive)
    trainable = ray_tune.with_parameters(
        run_trial,
        search=session.search,
        storage_root=session.storage.root,
        rung_tokens=session.coordinator.scheduler.rung_tokens,
        threads=resources.cpus_per_trial,
        gpus=resources.gpus_per_trial,
    )
    try:
        ray_tune.run(  # not a Tuner: that pickles its arguments into the run folder, and nothing here is restored from it
            ray_tune.with_resources(trainable, {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial}),
            name=f"session_{session.number}",
            storage_path=session.storage.root,
            num_samples=algorithm.total_samples,
            search_alg=algorithm,
            scheduler=JournalledScheduler(algorithm),
            callbacks=[Housekeeping(session, progress, watchdog)],
            reuse_actors=True,
            raise_on_failed_trial=False,
            verbose=0,
        )
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def watch(session: SearchSession, runtime: RayRuntime, resources: Resources) -> Watchdog:
    """The watchdog of Ray as it runs now."""
    options = session.search.options

    def lacks() -> str:
        free = ray.available_resources()  # type: ignore[no-untyped-call]  # Ray's has no annotations
        if free.get("CPU", 0) >= resources.cpus_per_trial and free.get("GPU", 0) >= resources.gpus_per_trial:
            return ""
        return f"of the cluster {free.get('CPU', 0):g} cores and {free.get('GPU', 0):g} GPUs are free"

    logs = Path(runtime.address_info["session_dir"]) / "logs"
    return Watchdog(options.stall_timeout, logs, ray_processes(), lacks if options.address else None)
