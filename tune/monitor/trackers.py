"""Shows a search in TensorBoard, Weights & Biases and MLflow while it runs: one run a trial.

Ray's own callbacks would open a run for each segment. A trial here has several segments and one run.
"""

import contextlib
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tune.config.spec import SearchSpec
from tune.core.events import REPORTED, Event, Reported, SessionEnded, TrialFailed, TrialStarted, WorkerLost
from tune.core.trials import CONTINUE, PAUSE, Trial, Trials

METRICS = tuple(name for name in REPORTED if name not in ("step", "tokens_seen", "diverged"))
CLOSE_SECONDS = 60.0  # wait at the end of a search for a slow server


def finite_metrics(event: Reported) -> dict[str, float]:
    """The METRICS of a report that are finite numbers."""
    return {name: float(getattr(event, name)) for name in METRICS if math.isfinite(getattr(event, name))}


class TensorBoard:
    """Writes tensorboard/TRIAL below the run's folder, one file a segment: `tensorboard --logdir RUN`.

    A file is open while its trial runs. Its first record makes TensorBoard drop reports that the segment repeats.
    """

    def __init__(self, run_dir: Path):
        """Imports tensorboardX without torch, which takes 3 s and is not needed. Other threads may import torch later.

        None in `sys.modules` is Python's documented mark of a module that can't be imported.
        """
        hidden = "torch" not in sys.modules
        if hidden:
            sys.modules["torch"] = None  # type: ignore[assignment]  # the stubs do not know the mark
        try:
            from tensorboardX import RecordWriter, summary
            from tensorboardX.proto import event_pb2
        finally:
            if hidden:
                del sys.modules["torch"]
        self.summary, self.records, self.writer = summary, event_pb2, RecordWriter
        self.folder = run_dir / "tensorboard"
        self.files: dict[str, RecordWriter] = {}

    def report(self, trial_id: str, config: dict[str, Any], event: Reported) -> None:
        step = event.tokens_seen
        with contextlib.suppress(OSError):  # the journal reports a full disk
            if trial_id not in self.files:
                self._open(trial_id, config, step)
            for name, value in finite_metrics(event).items():
                self._write(trial_id, event.time, step=step, summary=self.summary.scalar(name, value))
            self.files[trial_id].flush()

    def end(self, trial_id: str, status: str) -> None:
        if trial_id in self.files:
            with contextlib.suppress(OSError):
                self.files.pop(trial_id).close()

    def _open(self, trial_id: str, config: dict[str, Any], step: int) -> None:
        """Begins a file: the trial's hyper-parameters, and a mark that reports from `step` on replace earlier ones."""
        folder, now = self.folder / trial_id, time.time()
        folder.mkdir(parents=True, exist_ok=True)
        self.files[trial_id] = self.writer(str(folder / f"events.out.tfevents.{time.time_ns()}.search"))
        self._write(trial_id, now, file_version="brain.Event:2")
        start = self.records.SessionLog(status=self.records.SessionLog.START)
        self._write(trial_id, now, step=step, session_log=start)
        values = {name: value for name, value in config.items() if value is not None}
        for part in self.summary.hparams(values, {"val_loss": 0.0})[:2]:
            self._write(trial_id, now, summary=part)

    def _write(self, trial_id: str, seconds: float, **fields: Any) -> None:
        self.files[trial_id].write(self.records.Event(wall_time=seconds, **fields).SerializeToString())


class WeightsAndBiases:
    """A run for each trial in a project, in a group for the search.

    A run's id is made of `run_id` and the trial's id, so a later segment resumes it. An offline run lies in `run_dir`.
    """

    def __init__(self, project: str, name: str, run_id: str, run_dir: Path):
        """Raises RuntimeError where a login is missing: wandb would ask for it, and wait."""
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.api.api_key:
            raise RuntimeError("no API key: run `wandb login`, or set WANDB_MODE=offline")
        self.wandb, self.project, self.name, self.run_id, self.run_dir = wandb, project, name, run_id, run_dir
        self.runs: dict[str, wandb.Run] = {}

    def report(self, trial_id: str, config: dict[str, Any], event: Reported) -> None:
        if trial_id not in self.runs:
            self.runs[trial_id] = self.wandb.init(
                project=self.project,
                group=f"{self.name}-{self.run_id}",
                id=f"{self.run_id}-{trial_id}",
                name=f"{self.name}-{trial_id}",
                config=config,
                dir=str(self.run_dir),
                resume="allow",
                reinit="create_new",
                settings=self.wandb.Settings(console="off", silent=True),
            )
        step = event.tokens_seen
        self.runs[trial_id].log(finite_metrics(event) | {"tokens_seen": step}, step=step)

    def end(self, trial_id: str, status: str) -> None:
        run = self.runs.pop(trial_id, None)
        if run is not None:
            run.summary["status"] = status
            run.finish()


class Mlflow:
    """A run for each trial, in the experiment of the search's name.

    A run is found again by its tags `run_id` (the search) and `trial_id`. Searches of one name share the experiment.
    """

    def __init__(self, uri: str, name: str, run_id: str):
        """Raises an MlflowException where no server answers."""
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its own 7 take four minutes
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a trial, across the screen
        from mlflow.tracking import MlflowClient

        self.client, self.run_id = MlflowClient(tracking_uri=uri), run_id
        self.runs: dict[str, str] = {}  # trial_id -> MLflow's id of its run
        found = self.client.get_experiment_by_name(name)
        self.experiment = found.experiment_id if found else self.client.create_experiment(name)

    def report(self, trial_id: str, config: dict[str, Any], event: Reported) -> None:
        from mlflow.entities import Metric

        if trial_id not in self.runs:
            self._open(trial_id, config)
        when, step = int(1000 * event.time), event.tokens_seen
        metrics = [Metric(name, value, when, step) for name, value in finite_metrics(event).items()]
        self.client.log_batch(self.runs[trial_id], metrics=metrics)

    def end(self, trial_id: str, status: str) -> None:
        if trial_id in self.runs:
            self.client.set_tag(self.runs[trial_id], "status", status)
            if status == "paused":
                self.client.update_run(self.runs.pop(trial_id), status="SCHEDULED")
            else:
                self.client.set_terminated(self.runs[trial_id], "FAILED" if status == "failed" else "FINISHED")

    def _open(self, trial_id: str, config: dict[str, Any]) -> None:
        """Finds the trial's run of an earlier segment, or creates it."""
        tags = {"run_id": self.run_id, "trial_id": trial_id}
        query = " and ".join(f"tags.{name} = '{value}'" for name, value in tags.items())
        if found := self.client.search_runs([self.experiment], query, max_results=1):
            self.runs[trial_id] = found[0].info.run_id
            self.client.update_run(self.runs[trial_id], status="RUNNING")
            return
        self.runs[trial_id] = self.client.create_run(self.experiment, tags=tags, run_name=trial_id).info.run_id
        for name, value in config.items():
            self.client.log_param(self.runs[trial_id], name, value)


Tracker = TensorBoard | WeightsAndBiases | Mlflow


class BackgroundLogger:
    """Feeds a Tracker from a thread, so that a slow or lost server does not delay the search. What the server refuses is
    missing there, the next report is tried again, and the first failure is printed.
    """

    def __init__(self, label: str, make: Callable[[], Tracker], trials: Mapping[str, Trial]):
        """`label` names the tracker in warnings; `make` connects to its server, and may raise any exception."""
        self.label, self.make = label, make
        self.configs = {trial_id: trial.config for trial_id, trial in trials.items()}
        self.running: set[str] = set()
        self.tracker: Tracker | None = None
        self.warned = self.failing = self.closing = False
        self.queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def __call__(self, event: Event) -> None:
        """Takes one event of the journal."""
        if isinstance(event, TrialStarted):
            self.configs[event.trial_id] = event.config
        else:
            self.queue.put(event)

    def close(self) -> None:
        """Waits until the tracker has all events. Gives up after CLOSE_SECONDS, or when a server fails."""
        self.closing = True
        self.queue.put(None)
        self.thread.join(CLOSE_SECONDS)
        if self.thread.is_alive():
            self._warn(f"not all was taken {CLOSE_SECONDS:.0f} s after the end")

    def _work(self) -> None:
        event: Event | None = Event()  # connects at once, so that an unreachable server is named early
        while event is not None and not (self.failing and self.closing):
            try:
                self.tracker = self.tracker or self.make()
                self._pass_on(self.tracker, event)
                self.failing = False
            except Exception as error:
                self.failing = True
                self._warn(" ".join(str(error).split())[:200])
            event = self.queue.get()

    def _warn(self, reason: str) -> None:
        if not self.warned:
            print(f"warning: {self.label}: {reason}; the search goes on, what fails is missing there", file=sys.stderr)
        self.warned = True

    def _pass_on(self, tracker: Tracker, event: Event) -> None:
        match event:
            case Reported(trial_id=trial_id):
                self.running.add(trial_id)
                tracker.report(trial_id, self.configs[trial_id], event)
                if event.diverged or event.decision != CONTINUE:
                    paused = event.decision == PAUSE
                    self._end(tracker, trial_id, "diverged" if event.diverged else "paused" if paused else "ended")
            case TrialFailed(trial_id=trial_id):
                self._end(tracker, trial_id, "failed")
            case WorkerLost(trial_id=trial_id):
                self._end(tracker, trial_id, "paused")
            case SessionEnded():
                for trial_id in list(self.running):
                    self._end(tracker, trial_id, "paused")

    def _end(self, tracker: Tracker, trial_id: str, status: str) -> None:
        if trial_id in self.running:
            self.running.discard(trial_id)
            tracker.end(trial_id, status)


def start_trackers(run_dir: Path, search: SearchSpec, trials: Trials) -> list[BackgroundLogger]:
    """The loggers that follow a search. Call each with every event, and close it at the end."""
    options, board = search.options, TensorBoard(run_dir)
    name, project, uri = options.name or run_dir.name, options.wandb, options.mlflow
    found: dict[str, Callable[[], Tracker]] = {"tensorboard": lambda: board}
    if project:
        found["--wandb"] = lambda: WeightsAndBiases(project, name, search.run_id, run_dir)
    if uri:
        found["--mlflow"] = lambda: Mlflow(uri, name, search.run_id)
    return [BackgroundLogger(label, make, trials.by_id) for label, make in found.items()]
