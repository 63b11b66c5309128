"""Runs a search on Ray: starts trials where the state says, journals what they report, and cleans up behind them.

Ray executes; it does not remember. Every run of the command is a new Ray experiment below ray/session_K, and every
stretch of a trial from a checkpoint to a rung, an end or a failure is a trial of Ray's: a segment. A new trial, a
promotion, a retry and a resume are one thing, a segment that starts from the trial's last stored checkpoint. Ray's own
pausing, retrying and restoring are not used: restoring forgets the scheduler (ray issue 30838), can't add trials (42221),
and unpickles what it finds.
"""

import contextlib
import logging
import math
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import ray_constants
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from myllm.errors import InputError, RunError
from myllm.files import is_disk_full
from myllm.machine import origin
from tune.interrupts import Interrupts
from tune.loggers import loggers
from tune.prepare import CODE, PACKAGES, Resources
from tune.progress import Progress
from tune.results import write_results
from tune.session import Segment, Session
from tune.settings import Search
from tune.trainable import run_trial
from tune.trials import CONTINUE

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
RAY_LOG = "ray.log"
TABLES_SECONDS = 10.0  # between rewrites of trials.csv and history.csv while a search runs


class JournalledScheduler(FIFOScheduler):
    """Passes decisions to Ray: going on, or an end of the segment, be it for good or to wait at a rung."""

    def __init__(self, session: Session):
        super().__init__()
        self.session = session

    def on_trial_result(self, tune_controller: Any, trial: Segment, result: dict) -> str:
        goes_on = self.session.on_report(trial, result) == CONTINUE
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP


class Housekeeping(tune.Callback):
    """Journals checkpoints, keeps the tables fresh, shows progress, and ends what can't go on."""

    def __init__(self, session: Session, progress: Progress):
        self.session, self.progress = session, progress
        self.last_tables = time.monotonic()

    def on_checkpoint(self, iteration: int, trials: list[Trial], trial: Segment, checkpoint: Any, **info: Any) -> None:
        self.session.on_checkpoint(trial, trial.last_result["tokens_seen"], checkpoint.path)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        if self.session.fatal:  # Ray swallows errors of some callbacks
            raise RunError(self.session.fatal)
        self.progress.show()
        if time.monotonic() - self.last_tables > TABLES_SECONDS:
            self.last_tables = time.monotonic()
            with self.session.disk_errors():
                write_results(self.session.run_dir, self.session.trials, self.session.search)


def run_search(run_dir: Path, search: Search, resources: Resources) -> bool:
    """Runs, or goes on with, the search in `run_dir`; True where it ended by itself, False where it was interrupted.

    Writes search.json before anything starts. Raises InputError where another process is running it, and RunError where
    the disk is full.
    """
    session = Session(run_dir, search, resources.workers)
    with session.disk_errors():
        search.write(run_dir)
    followers = loggers(run_dir, search.config, session.trials, session.number)
    session.listeners += followers
    with Interrupts(f"python tune/search.py --resume {os.path.relpath(run_dir)}") as interrupts:
        try:
            if not session.is_over:
                with session.disk_errors():
                    session.tidy()
                    code = {name: value for name, value in origin(PACKAGES).items() if name in CODE}
                    session.coordinator.record("session", session=session.number, workers=resources.workers, **code)
                with _ray_log(run_dir), _progress(session) as progress:
                    _run_trials(session, resources, interrupts, progress)
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
                    session.coordinator.record("session_end", session=session.number)
            for follower in followers:
                follower.close()
        with session.disk_errors():
            session.tidy()
            write_results(run_dir, session.trials, search)
    return session.is_over


def _progress(session: Session) -> Progress:
    """What shows this session."""

    def active() -> list[Any]:
        return [segment.ours for segment in session.segments.values()]

    return Progress(session.run_dir, session.search, session.trials, session.workers, active, session.seconds_before)


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


def _run_trials(session: Session, resources: Resources, interrupts: Interrupts, progress: Progress) -> None:
    """Starts or joins Ray and lets it work off the session; returns early when interrupted."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(resources.workers)
    config = session.search.config
    options: dict[str, Any] = dict(address=config.address or "local", log_to_driver=False, configure_logging=False)
    if config.address is None:
        # Ray listens on every network, also where it is given 127.0.0.1, unless it is told that clusters are not wanted.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for Ray's other processes
        ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read the variable already
        options |= dict(
            num_cpus=resources.workers * resources.cpus_per_trial,
            num_gpus=math.ceil(resources.workers * resources.gpus_per_trial),
            include_dashboard=config.dashboard,
        )
    ray.init(**options)
    interrupts.install()
    try:
        tune.run(  # not a Tuner: that pickles its arguments into the run folder, and nothing here is restored from it
            tune.with_resources(
                tune.with_parameters(
                    run_trial,
                    search=session.search,
                    milestones=session.coordinator.scheduler.milestones,
                    threads=resources.cpus_per_trial,
                    device="cuda" if resources.gpus_per_trial else "cpu",
                ),
                {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial},
            ),
            name=f"session_{session.number}",
            storage_path=session.storage.root,
            num_samples=session.total_samples,
            search_alg=session,
            scheduler=JournalledScheduler(session),
            callbacks=[Housekeeping(session, progress)],
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
