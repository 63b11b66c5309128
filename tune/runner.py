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
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray._private import ray_constants
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from myllm.errors import RunError
from myllm.files import is_disk_full
from myllm.machine import origin
from tune.cluster import use_token
from tune.commands import ROOT, command
from tune.interrupts import Interrupts
from tune.prepare import CODE, PACKAGES, Resources
from tune.progress import Progress
from tune.results import write_results
from tune.session import Segment, Session
from tune.settings import Search
from tune.trainable import run_trial
from tune.trials import CONTINUE
from tune.watchdog import Watchdog, why_not_started

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine unless the user sets Ray's own switch
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal holds what they would write
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Interrupts is ours
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Ray's snapshots are never read back
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_prestart_worker_first_driver": "0",  # ray.init would wait for it, deaf to signals
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",
}
OBJECT_STORE_BYTES = 128 * 2**20  # results and settings are small; every process maps all of it
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

    def __init__(self, session: Session, watchdog: Watchdog):
        self.session, self.progress, self.watchdog = session, Progress(session.trials), watchdog
        self.last_tables = time.monotonic()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Segment, **info: Any) -> None:
        self.watchdog.started(trial.trial_id)

    def on_trial_result(self, iteration: int, trials: list[Trial], trial: Segment, result: dict, **info: Any) -> None:
        self.watchdog.started(trial.trial_id)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Segment, **info: Any) -> None:
        self.watchdog.ended(trial.trial_id)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Segment, **info: Any) -> None:
        self.watchdog.ended(trial.trial_id)

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
                write_results(self.session.run_dir, self.session.trials, self.session.search)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.progress.clear()


def run_search(run_dir: Path, search: Search, resources: Resources) -> bool:
    """Runs, or goes on with, the search in `run_dir`; True where it ended by itself, False where it was interrupted.

    Writes search.json before anything starts. Raises InputError where another process is running it, and RunError where
    the disk is full.
    """
    session = Session(run_dir, search, resources.workers)
    with session.disk_errors():
        search.write(run_dir)
    with Interrupts(command("tune/search.py", "--resume", run_dir)) as interrupts:
        try:
            if not session.is_over:
                with session.disk_errors():
                    session.tidy()
                    code = {name: value for name, value in origin(PACKAGES).items() if name in CODE}
                    session.coordinator.record("session", session=session.number, workers=resources.workers, **code)
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
                    session.coordinator.record("session_end", session=session.number)
        with session.disk_errors():
            session.tidy()
            write_results(run_dir, session.trials, search)
    return session.is_over


def _run_trials(session: Session, resources: Resources, interrupts: Interrupts) -> None:
    """Starts or joins Ray and lets it work off the session; returns early when interrupted."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(resources.workers)
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    config = session.search.config
    options: dict[str, Any] = dict(address=config.address or "local", log_to_driver=False, logging_level=logging.CRITICAL)
    if config.address is None:
        # Ray listens on every network, also where it is given 127.0.0.1, unless it is told that clusters are not wanted.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # for Ray's other processes
        ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read the variable already
        options |= dict(
            num_cpus=resources.workers * resources.cpus_per_trial,
            num_gpus=math.ceil(resources.workers * resources.gpus_per_trial),
            include_dashboard=config.dashboard,
            object_store_memory=OBJECT_STORE_BYTES,
        )
        path = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, path)))  # the same code in every process
        if shlex.quote(sys.executable) != sys.executable:  # Ray hands it to a shell as it is
            options["runtime_env"] = {"py_executable": shlex.quote(sys.executable)}
    use_token(config.address)
    # Ray prints what its processes die of, pages for each, told to print nothing or not; the journal has the reason.
    ray._private.worker.print_to_stdstream = lambda *data, **how: None
    start = time.time()
    try:
        ray.init(**options)
    except Exception as error:  # of many kinds, Exception itself among them
        raise RunError(f"Ray can't start: {why_not_started(error, start)}") from None
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
            callbacks=[Housekeeping(session, watch(session, resources))],
            reuse_actors=True,
            raise_on_failed_trial=False,
            verbose=0,
        )
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def watch(session: Session, resources: Resources) -> Watchdog:
    """The watchdog of Ray as it runs now."""
    node, config = ray._private.worker.global_worker.node, session.search.config

    def dead() -> list[str]:
        return [name for name, _ in node.dead_processes() if name in ("raylet", "gcs_server")]

    def lacks() -> str:
        free = ray.available_resources()
        if free.get("CPU", 0) >= resources.cpus_per_trial and free.get("GPU", 0) >= resources.gpus_per_trial:
            return ""
        return f"of the cluster {free.get('CPU', 0):g} cores and {free.get('GPU', 0):g} GPUs are free"

    return Watchdog(config.patience, Path(node.get_logs_dir_path()), dead, lacks if config.address else None)
