"""Runs a search on Ray: starts trials where the state says, journals what they report, and cleans up behind them.

Ray executes; it does not remember. Every run of the command is a new Ray experiment below ray/session_K, and every
stretch of a trial from a checkpoint to a rung, an end or a failure is a trial of Ray's: a segment. A new trial, a
promotion, a retry and a resume are one thing, a segment that starts from the trial's last stored checkpoint. Ray's own
pausing, retrying and restoring are not used: restoring forgets the scheduler (ray issue 30838), can't add trials (42221),
and unpickles what it finds.
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
from ray import tune
from ray.tune.experiment import Trial
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
from tune.monitor.trackers import start_trackers
from tune.ray_backend.session import Segment, Session
from tune.ray_backend.signals import Interrupts
from tune.ray_backend.start import Engine, import_ahead
from tune.ray_backend.trainable import run_trial
from tune.ray_backend.watchdog import Watchdog
from tune.text.commands import command

RAY_LOG = "ray.log"
TABLES_SECONDS = 10.0  # between additions to trials.csv and history.csv while a search runs


class JournalledScheduler(FIFOScheduler):
    """Passes decisions to Ray: going on, or an end of the segment, be it for good or to wait at a rung.

    A new segment takes the process of the one that has just ended. Ray would give that to the segment that has waited
    longest, and end the process that is just starting for it: of 16 slots whose trainings ended sooner than processes start
    8 never got theirs.
    """

    def __init__(self, session: Session):
        super().__init__()
        self.session = session

    def on_trial_result(self, tune_controller: Any, trial: Segment, result: dict) -> str:
        goes_on = self.session.on_report(trial, result) == CONTINUE
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        newest, self.session.newest = self.session.newest, None
        return newest  # once: then it has a process, or one starts for it; all others Ray stages by itself


class Housekeeping(tune.Callback):
    """Journals checkpoints, keeps the tables fresh, shows progress, and ends what can't go on."""

    def __init__(self, session: Session, progress: Progress, watchdog: Watchdog):
        self.session, self.progress, self.watchdog = session, progress, watchdog
        self.last_tables, self.first_tables = time.monotonic(), True

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Segment, **info: Any) -> None:
        self.watchdog.started(trial.trial_id)

    on_trial_result = on_trial_start

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Segment, **info: Any) -> None:
        self.watchdog.ended(trial.trial_id)

    on_trial_error = on_trial_complete

    def on_checkpoint(self, iteration: int, trials: list[Trial], trial: Segment, checkpoint: Any, **info: Any) -> None:
        self.session.on_checkpoint(trial, trial.last_result["tokens_seen"], checkpoint.path)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self.session.fatal:  # Ray swallows errors of some callbacks
            raise RunError(self.session.fatal)
        self.watchdog.look()
        self.progress.show()
        if time.monotonic() - self.last_tables > TABLES_SECONDS:
            self.last_tables = time.monotonic()
            with self.session.disk_errors():
                self.session.tables.flush()
                write_best(self.session.run_dir, self.session.trials, self.session.search)
            if self.first_tables:  # it takes a second, which the end need not wait for
                import_ahead("tune.report", "tune.reporting.html_report")
            self.first_tables = False


def run_search(run_dir: Path, search: SearchSpec, resources: Resources, engine: Engine | None = None) -> bool:
    """Runs, or goes on with, the search in `run_dir`; True where it ended by itself, False where it was interrupted.

    `engine` is the command's; it is stopped in the end. Writes search.json first. Raises InputError where another process
    is running it, and RunError where the disk is full.
    """
    session = Session(run_dir, search, resources.workers)
    with session.disk_errors():
        search.write(run_dir)
    trackers = start_trackers(run_dir, search, session.trials)
    session.listeners += trackers
    again = command("tune/search.py", "--resume", run_dir)
    with contextlib.closing(session.journal), Interrupts(again) as interrupts:
        try:
            if not session.is_over:
                engine = engine or Engine()
                with session.disk_errors():
                    session.tidy()
                    code = {name: value for name, value in origin(PACKAGES).items() if name in CODE}
                    startup_seconds = round(time.time() - engine.begun, 3)
                    session.coordinator.record(
                        "session",
                        session=session.number,
                        workers=resources.workers,
                        startup_seconds=startup_seconds,
                        **code,
                    )
                engine.start(search.options, resources)
                with _ray_log(run_dir), Progress(session) as progress:
                    _run_trials(session, engine, resources, interrupts, progress)
        except KeyboardInterrupt:
            pass  # before Ray's loop began
        except Exception as error:
            full = shutil.disk_usage(run_dir).free == 0 or is_disk_full(error)
            if not session.fatal and not full:
                raise
            raise RunError(session.fatal or f"the disk is full: {run_dir}") from None
        finally:
            interrupts.ending = True
            if engine:
                engine.stop()
            if session.started:
                with contextlib.suppress(OSError):  # a full disk: the last event before it counts
                    session.coordinator.record("session_end", session=session.number)
            for tracker in trackers:
                tracker.close()
        with session.disk_errors():
            session.tidy()
            write_results(run_dir, session.trials, search)
    return session.is_over


@contextlib.contextmanager
def _ray_log(run_dir: Path) -> Iterator[None]:
    """Within it, what Ray warns of goes to ray.log in the run's folder, which is written when there is something."""
    handler = logging.FileHandler(run_dir / RAY_LOG, delay=True)
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


def _run_trials(session: Session, engine: Engine, resources: Resources, interrupts: Interrupts, progress: Progress) -> None:
    """Lets Ray work off the session; returns early when interrupted."""
    engine.wait()
    interrupts.install()
    watchdog = watch(session, resources)

    def beat() -> None:
        watchdog.look()
        if interrupts.count:  # Ray looks between its steps, and waits for a trial within one
            raise KeyboardInterrupt

    session.beat = beat
    try:
        tune.run(  # not a Tuner: that pickles its arguments into the run folder, and nothing here is restored from it
            tune.with_resources(
                tune.with_parameters(
                    run_trial,
                    search=session.search,
                    rung_tokens=session.coordinator.scheduler.rung_tokens,
                    threads=resources.cpus_per_trial,
                    gpus=resources.gpus_per_trial,
                ),
                {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial},
            ),
            name=f"session_{session.number}",
            storage_path=session.storage.root,
            num_samples=session.total_samples,
            search_alg=session,
            scheduler=JournalledScheduler(session),
            callbacks=[Housekeeping(session, progress, watchdog)],
            reuse_actors=True,
            raise_on_failed_trial=False,
            verbose=0,
        )
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def watch(session: Session, resources: Resources) -> Watchdog:
    """The watchdog of Ray as it runs now."""
    node, config = ray._private.worker.global_worker.node, session.search.options

    def dead() -> list[str]:
        return [name for name, _ in node.dead_processes() if name in ("raylet", "gcs_server")]

    def lacks() -> str:
        free = ray.available_resources()
        if free.get("CPU", 0) >= resources.cpus_per_trial and free.get("GPU", 0) >= resources.gpus_per_trial:
            return ""
        return f"of the cluster {free.get('CPU', 0):g} cores and {free.get('GPU', 0):g} GPUs are free"

    return Watchdog(config.stall_timeout, Path(node.get_logs_dir_path()), dead, lacks if config.address else None)
