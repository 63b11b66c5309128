"""Runs a search on Ray: hands out trials, writes the journal, asks the scheduler, shows progress.

Ray executes; it does not remember. Every run of the command is a new Ray experiment under ray/session_K that starts from
the journal: unfinished trials from their last stored checkpoint, then new ones. Ray's own restore is not used: it forgets
the scheduler (ray issue 30838), cannot add trials (42221), and unpickles what it finds.
"""

import logging
import math
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import SearchAlgorithm

from myllm.config import get_preset
from myllm.errors import InputError
from tune.journal import Journal, read_journal
from tune.results import COMPLETED, DEFAULT_TRIAL, INTERRUPTED, status_of, write_results
from tune.schedulers import STOP, Asha, Fifo
from tune.settings import Resources, task_of, write_search
from tune.spaces import get_space, sample
from tune.trainable import run_trial

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine unless the user sets Ray's own switch
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal holds what they would write
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",
}
TABLES_SECONDS = 10.0  # between rewrites of trials.csv and history.csv while a search runs


def build_scheduler(search: dict[str, Any]) -> Asha | Fifo:
    """The scheduler that search.json asks for; the reference configuration is never stopped, so that the gain shows."""
    config = search["config"]
    if config["scheduler"] == "fifo":
        return Fifo()
    return Asha(
        search["train"]["budget_tokens"],
        search["report_tokens"],
        config["grace_period"],
        config["reduction_factor"],
        protected=frozenset({DEFAULT_TRIAL}),
    )


class SearchState:
    """The search so far: the journal's events, and the scheduler fed with them."""

    def __init__(self, run_dir: Path, search: dict[str, Any]):
        self.run_dir, self.search = run_dir, search
        self.budget_tokens = search["train"]["budget_tokens"]
        self.events = read_journal(run_dir)
        self.journal = Journal(run_dir)
        self.scheduler = build_scheduler(search)
        self.configs: dict[str, dict] = {}
        self.reports: dict[str, list[dict]] = {}
        self.checkpoints: dict[str, str] = {}
        self.failed: set[str] = set()
        for event in self.events:
            self._apply(event)
            if event["event"] == "report":
                self.scheduler.report(event["trial_id"], event["tokens_seen"], event["val_loss"])

    def record(self, event: str, **values: Any) -> None:
        """Appends an event to the journal and to what is known."""
        self.events.append(self.journal.append(event, **values))
        self._apply(self.events[-1])

    def _apply(self, event: dict[str, Any]) -> None:
        trial_id = event.get("trial_id")
        if event["event"] == "trial":
            self.configs[trial_id], self.reports[trial_id] = event["config"], []
        elif event["event"] == "report":
            self.reports[trial_id].append(event)
        elif event["event"] == "checkpoint":
            self.checkpoints[trial_id] = event["path"]
        elif event["event"] == "failed":
            self.failed.add(trial_id)

    def status(self, trial_id: str) -> str:
        """One of results.STATUSES."""
        return status_of(self.reports[trial_id], trial_id in self.failed, self.budget_tokens)

    def decide(self, trial_id: str, result: dict[str, Any]) -> str:
        """The decision on a report. One made before (the trial went back to its checkpoint) is given again, not remade."""
        for known in reversed(self.reports[trial_id]):
            if known["step"] == result["step"]:
                return known["decision"]
        decision = self.scheduler.report(trial_id, result["tokens_seen"], result["val_loss"])
        names = ("step", "tokens_seen", "train_loss", "val_loss", "val_bpb", "learning_rate", "grad_norm", "train_seconds")
        metrics = {name: result[name] for name in (*names, "tok_per_sec", "diverged")}
        if result["diverged"] or result["tokens_seen"] >= self.budget_tokens:
            decision = STOP
        self.record("report", trial_id=trial_id, decision=decision, **metrics)
        return decision

    def checkpoint_path(self, trial_id: str) -> str | None:
        """The folder of the trial's latest stored state."""
        relative = self.checkpoints.get(trial_id)
        return str(self.run_dir / relative) if relative else None

    def write_tables(self) -> None:
        write_results(self.run_dir, self.events, self.search)


class JournalledTrials(SearchAlgorithm):
    """Gives Ray the trials that are not finished, then new ones, up to num_samples in all and `slots` at once."""

    def __init__(self, state: SearchState, slots: int):
        self.state, self.slots = state, slots
        self.running: set[str] = set()
        self.waiting = [trial_id for trial_id in state.configs if state.status(trial_id) == INTERRUPTED]

    def add_configurations(self, experiments: Any) -> None:
        self._experiment = experiments[0] if isinstance(experiments, list) else experiments

    @property
    def total_samples(self) -> int:
        return self.state.search["config"]["num_samples"]

    def is_finished(self) -> bool:
        return self._finished or (not self.waiting and len(self.state.configs) >= self.total_samples)

    def next_trial(self) -> Trial | None:
        if self.is_finished() or len(self.running) >= self.slots:
            return None
        if self.waiting:
            trial_id = self.waiting.pop(0)
        else:
            index = len(self.state.configs)
            config = self.state.search["config"]
            drawn = sample(get_space(config["space"]), get_preset(config["preset"]), config["seed"], index)
            trial_id = f"{index:05d}"
            self.state.record("trial", trial_id=trial_id, config=drawn)
        self.running.add(trial_id)
        spec = self._experiment.spec
        return Trial(
            self._experiment.run_identifier,
            config=dict(self.state.configs[trial_id]),
            trial_id=trial_id,
            storage=self._experiment.storage,
            placement_group_factory=spec.get("resources_per_trial"),
            checkpoint_config=spec["checkpoint_config"],
            restore_path=self.state.checkpoint_path(trial_id),
            trial_dirname_creator=lambda trial: trial.trial_id,
            max_failures=spec["max_failures"],
        )

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        self.running.discard(trial_id)


class JournalledScheduler(FIFOScheduler):
    """Journals every report and passes the plain scheduler's decision to Ray."""

    def __init__(self, state: SearchState):
        super().__init__()
        self.state = state

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict) -> str:
        decision = self.state.decide(trial.trial_id, result)
        return TrialScheduler.STOP if decision == STOP else TrialScheduler.CONTINUE


class Progress(tune.Callback):
    """Journals checkpoints and failures, keeps the tables fresh, and shows one line of progress."""

    def __init__(self, state: SearchState):
        self.state = state
        self.start = self.last_tables = time.monotonic()
        self.last_line = 0.0
        self.live = sys.stderr.isatty()
        self.end = "" if self.live else "\n"

    def on_checkpoint(self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Any, **info: Any) -> None:
        self.state.record("checkpoint", trial_id=trial.trial_id, path=os.path.relpath(checkpoint.path, self.state.run_dir))

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        error = Path(trial.error_file).read_text().strip()
        (self.state.run_dir / f"error-{trial.trial_id}.txt").write_text(error + "\n")
        reason = error.splitlines()[-1][:200]
        self.state.record("failed", trial_id=trial.trial_id, reason=reason)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        now = time.monotonic()
        if now - self.last_tables > TABLES_SECONDS:
            self.state.write_tables()
            self.last_tables = now
        if now - self.last_line > (0.5 if self.live else 15.0):
            self.last_line = now
            print(
                f"\r\x1b[2K{self.line()}" if self.live else self.line(),
                end="" if self.live else "\n",
                file=sys.stderr,
                flush=True,
            )

    def line(self) -> str:
        """Time, trials by state, and the best loss so far (of the trials that are furthest)."""
        statuses = [self.state.status(trial_id) for trial_id in self.state.configs]
        total = self.state.search["config"]["num_samples"]
        ended = len(statuses) - statuses.count(INTERRUPTED)
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses) if s != INTERRUPTED)
        tokens = sum(reports[-1]["tokens_seen"] for reports in self.state.reports.values() if reports)
        text = f"{time.monotonic() - self.start:5.0f} s  {ended}/{total} trials ended" + (f" ({counts})" if counts else "")
        text += f", {statuses.count(INTERRUPTED)} running, {tokens / 1e6:,.1f}M tokens"
        losses = [(r[-1]["val_loss"], t) for t, r in self.state.reports.items() if self.state.status(t) == COMPLETED]
        if losses:
            text += f", best val_loss {min(losses)[0]:.4f} (trial {min(losses)[1]})"
        return text

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        if self.live:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


def run_search(run_dir: Path, search: dict[str, Any], resources: Resources) -> bool:
    """Runs, or goes on with, the search in `run_dir`; True where it ended by itself, False where it was interrupted.

    Writes search.json before anything starts. Raises InputError where another process is running it.
    """
    state = SearchState(run_dir, search)
    write_search(run_dir, search)
    trials = JournalledTrials(state, resources.slots)
    if not trials.is_finished():
        session = sum(event["event"] == "session" for event in state.events)
        state.record("session", session=session, slots=resources.slots)
        try:
            _run_trials(state, trials, resources, f"session_{session}")
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing below may be cut short
            ray.shutdown()
            state.record("session_end", session=session)
            signal.signal(signal.SIGINT, signal.default_int_handler)
    state.write_tables()
    return trials.is_finished() and all(state.status(trial_id) != INTERRUPTED for trial_id in state.configs)


def _run_trials(state: SearchState, trials: JournalledTrials, resources: Resources, session: str) -> None:
    """Starts or joins Ray and lets it work off `trials`; returns early on Ctrl-C."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(resources.slots)
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    address = state.search["config"]["address"]
    options: dict[str, Any] = dict(address=address or "local", log_to_driver=False, logging_level=logging.CRITICAL)
    if address is None:
        options |= dict(
            num_cpus=resources.slots * resources.cpus_per_trial,
            num_gpus=math.ceil(resources.slots * resources.gpus_per_trial),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
        )
    ray.init(**options)
    task = task_of(state.search, resources, state.scheduler.rungs)
    tune.run(  # not a Tuner: that pickles its arguments into the run folder, and nothing here is restored from it
        tune.with_resources(
            tune.with_parameters(run_trial, task=task),
            {"cpu": resources.cpus_per_trial, "gpu": resources.gpus_per_trial},
        ),
        name=session,
        storage_path=str(state.run_dir / "ray"),
        num_samples=trials.total_samples,
        search_alg=trials,
        scheduler=JournalledScheduler(state),
        callbacks=[Progress(state)],
        checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
        reuse_actors=True,
        raise_on_failed_trial=False,
        verbose=0,
    )


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
