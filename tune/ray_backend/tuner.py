"""Runs a search on Ray: starts trials where the state says, journals what they report, and cleans up behind them.

Ray executes and does not remember. Each run of the command is a new Ray experiment below ray/session_K. A trial of Ray's is
a segment: it starts from the last stored checkpoint, also after a rung, a failure and a resume. Ray's own restoring forgets
the scheduler (ray issue 30838), can't add trials (42221), and unpickles files.
"""

import contextlib
import importlib
import logging
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.tune as ray_tune
from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from myllm.system.errors import RunError
from myllm.system.files import is_disk_full
from myllm.text.commands import command
from tune.analysis.results import write_best, write_results
from tune.config.resolve import Resources
from tune.config.spec import SearchSpec
from tune.core.events import position_of
from tune.core.trials import CONTINUE
from tune.monitor.progress import Progress
from tune.ray_backend.programs.first_report import FirstReport
from tune.ray_backend.search_algorithm import RaySearchAlgorithm
from tune.ray_backend.session import SearchSession
from tune.ray_backend.signals import Interrupts
from tune.ray_backend.start import RayRuntime
from tune.ray_backend.trainable import SLOTS, run_trial
from tune.ray_backend.watchdog import Watchdog, ray_processes

TABLES_SECONDS = 10.0  # between additions to trials.csv and history.csv while a search runs


class JournalledScheduler(FIFOScheduler):
    """Passes the session's decisions to Ray. A new segment takes the process of the segment that has just ended; Ray alone
    gives it to the segment that has waited longest, and with short trainings half of 16 workers never trained.
    """

    def __init__(self, algorithm: RaySearchAlgorithm):
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's has no annotations
        self.algorithm = algorithm

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Ray's word for the decision on a report."""
        goes_on = self.algorithm.session.on_report(trial.trial, result) == CONTINUE
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def choose_trial_to_run(self, tune_controller: Any) -> RayTrial | None:
        """The newest segment, once: then it has a process, or one starts for it. Ray stages all others by itself."""
        run, self.algorithm.start_next = self.algorithm.start_next, None
        return run


class Housekeeping(ray_tune.Callback):
    """Journals checkpoints, keeps the tables fresh, shows progress, and ends a search that can't go on."""

    def __init__(self, session: SearchSession, progress: Progress, watchdog: Watchdog):
        self.session, self.progress, self.watchdog = session, progress, watchdog
        self.first_report = FirstReport(session.run_dir, session.search)
        self.last_tables = time.monotonic()

    def on_checkpoint(self, iteration: int, trials: Any, trial: Any, checkpoint: Any, **info: Any) -> None:
        """A segment's last report has stored its state."""
        at = position_of(trial.last_result["tokens_seen"], trial.last_result.get("budget_seconds"))
        self.session.on_checkpoint(trial.trial, at, checkpoint.path)

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        """Ray has handled one event. Raises RunError where the search can't go on."""
        if self.session.fatal:  # Ray swallows errors of some callbacks
            raise RunError(self.session.fatal)
        self.watchdog.check()
        self.first_report.check(self.session.trials)
        self.progress.show()
        if time.monotonic() - self.last_tables > TABLES_SECONDS:
            self.last_tables = time.monotonic()
            with self.session.disk_errors():
                self.session.tables.flush()
                write_best(self.session.run_dir, self.session.trials, self.session.search)
            # The first import takes half a second, which the end of the search need not wait for.
            threading.Thread(target=importlib.import_module, args=("tune.report",)).start()


def run_search(run_dir: Path, search: SearchSpec, resources: Resources, runtime: RayRuntime | None = None) -> bool:
    """Runs, or goes on with, the search in `run_dir`; True where it ended by itself, False where it was interrupted.
    `runtime` is stopped in the end, search.json is written first. Raises InputError where another process runs the search,
    and RunError where it can't go on.
    """
    session = SearchSession(run_dir, search, resources.workers, resources.processes)
    with contextlib.closing(session), Interrupts(command("tune/search.py", "--resume", run_dir)) as interrupts:
        try:
            if not session.is_over:
                _train(session, resources, runtime or RayRuntime(), interrupts)
        finally:
            interrupts.ending = True
            session.end()
        with session.disk_errors():
            session.cleanup()
            write_results(run_dir, session.trials, search)
    return session.is_over


def _train(session: SearchSession, resources: Resources, runtime: RayRuntime, interrupts: Interrupts) -> None:
    """Trains until nothing is left to do, or a signal comes. Raises RunError where the search can't go on."""
    try:
        with session.disk_errors():
            session.cleanup()
            session.begin(runtime.begun)
        runtime.start(session.search.options, resources)
        _run_trials(session, runtime, resources, interrupts)
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


@contextlib.contextmanager
def _ray_log(run_dir: Path) -> Iterator[None]:
    """Within it Ray's warnings go to ray.log in the run's folder, which is written when there is one."""
    handler = logging.FileHandler(run_dir / "ray.log", encoding="utf-8", delay=True)
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


def _run_trials(session: SearchSession, runtime: RayRuntime, resources: Resources, interrupts: Interrupts) -> None:
    """Lets Ray work off the session; returns early when interrupted."""
    cpus, gpus, timeout = resources.cpus_per_trial, resources.gpus_per_trial, session.search.options.stall_timeout
    if session.search.options.command:
        timeout *= 2  # a trial whose command is silent fails first, and says why

    def check_alive() -> None:
        watchdog.check()
        if interrupts.count:  # Ray looks between its steps, and waits for a trial within one
            raise KeyboardInterrupt

    def share(config: dict[str, Any]) -> ray_tune.PlacementGroupFactory:
        """A trial's share of the machine."""
        slots = config.get(SLOTS, 1)
        return ray_tune.PlacementGroupFactory([{"CPU": cpus * slots, "GPU": gpus * slots}])

    progress = Progress(session.run_dir, session.search, session.coordinator, session.seconds_before, session.slots)
    with _ray_log(session.run_dir), progress:
        runtime.wait_until_started()
        interrupts.install()
        algorithm, shared = RaySearchAlgorithm(session, check_alive), session.search.options.address is not None
        logs = Path(runtime.address_info["session_dir"]) / "logs"
        watchdog = Watchdog(timeout, logs, ray_processes(), algorithm.signs, shared)
        trainable = ray_tune.with_parameters(
            run_trial,
            search=session.search,
            storage_root=session.storage.root,
            rung_tokens=session.coordinator.scheduler.rung_tokens,
            threads=resources.threads,
            gpus=gpus,
            processes=resources.processes,
        )
        try:
            ray_tune.run(  # not a Tuner: it pickles its arguments into the run folder, and nobody restores it
                ray_tune.with_resources(trainable, share),
                name=f"session_{session.number}",
                storage_path=session.storage.root,
                search_alg=algorithm,
                scheduler=JournalledScheduler(algorithm),
                callbacks=[Housekeeping(session, progress, watchdog)],
                reuse_actors=True,
                raise_on_failed_trial=False,
                verbose=0,
            )
        finally:
            if interrupts.before:
                signal.signal(signal.SIGUSR1, signal.SIG_DFL)
