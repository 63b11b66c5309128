"""Shows a search in TensorBoard, Weights & Biases and MLflow while it runs: one run a trial, fed from the journal's events.

Ray's own callbacks would open a run for each segment, of which a trial here has several.
"""

import contextlib
import functools
import math
import os
import queue
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tune.config.options import SearchOptions
from tune.core.trials import CONTINUE, PAUSE, REPORTED, Event, Trial, Trials

METRICS = tuple(name for name in REPORTED if name not in ("step", "tokens_seen", "diverged"))
CLOSE_SECONDS = 60.0  # that a slow server has to take the rest in


def metrics(event: Event) -> dict[str, float]:
    """What a report says in finite numbers."""
    return {name: float(event[name]) for name in METRICS if math.isfinite(event[name])}


@functools.cache
def without_torch() -> None:
    """Imports tensorboardX, which takes torch where it is there: two seconds of a search's start, and for nothing here."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        import tensorboardX  # noqa: F401
    finally:
        if hidden:
            del sys.modules["torch"]


class TensorBoard:
    """Writes tensorboard/TRIAL below the run's folder, one file a session: `tensorboard --logdir RUN`.

    No file stays open, and none is continued in another session: its last record may have been cut short.
    """

    def __init__(self, run_dir: Path, session: int):
        self.folder, self.session, self.begun = run_dir / "tensorboard", session, set()

    def __call__(self, event: Event) -> None:
        if event["event"] not in ("trial", "report"):
            return
        without_torch()
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event as Record

        with contextlib.suppress(OSError):  # the journal says so where the disk is full
            if event["event"] == "trial":
                values = {name: value for name, value in event["config"].items() if value is not None}
                found = summary.hparams(values, {"val_loss": 0.0})[:2]
                records = [Record(wall_time=event["time"], summary=part) for part in found]
            else:
                step, when = event["tokens_seen"], event["time"]
                parts = (summary.scalar(name, value) for name, value in metrics(event).items())
                records = [Record(wall_time=when, step=step, summary=part) for part in parts]
            self._append(event["trial_id"], event["time"], [record.SerializeToString() for record in records])

    def _append(self, trial_id: str, when: float, records: list[bytes]) -> None:
        from tensorboardX.proto.event_pb2 import Event as Record
        from tensorboardX.record_writer import masked_crc32c

        path = self.folder / trial_id / f"events.out.tfevents.{self.session:010d}.search"
        if path not in self.begun:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            records = [Record(wall_time=when, file_version="brain.Event:2").SerializeToString(), *records]
            self.begun.add(path)
        with open(path, "ab") as file:
            for data in records:
                header = struct.pack("<Q", len(data))
                file.write(
                    header + struct.pack("<I", masked_crc32c(header)) + data + struct.pack("<I", masked_crc32c(data))
                )

    def close(self) -> None:
        pass


class Service(Protocol):
    """Somebody else's place for runs; all calls come from one thread."""

    def report(self, trial_id: str, config: dict[str, Any], event: Event) -> None:
        """One report of a trial."""

    def end(self, trial_id: str, status: str) -> None:
        """A trial has reported for the last time, or waits."""


class Wandb:
    """A run NAME-TRIAL of a project, resumed under its id by a later segment; offline it lies in the run's folder."""

    def __init__(self, project: str, name: str, run_dir: Path):
        import wandb

        if os.environ.get("WANDB_MODE", "online") == "online" and not wandb.api.api_key:  # it would ask, and wait
            raise RuntimeError("no API key: run `wandb login`, or set WANDB_MODE=offline")
        self.wandb, self.project, self.name, self.run_dir, self.runs = wandb, project, name, run_dir, {}

    def report(self, trial_id: str, config: dict[str, Any], event: Event) -> None:
        if trial_id not in self.runs:
            self.runs[trial_id] = self.wandb.init(
                project=self.project,
                group=self.name,
                id=f"{self.name}-{trial_id}",
                name=f"{self.name}-{trial_id}",
                config=config,
                dir=str(self.run_dir),
                resume="allow",
                reinit="create_new",
                settings=self.wandb.Settings(console="off", silent=True),
            )
        self.runs[trial_id].log(metrics(event) | {"tokens_seen": event["tokens_seen"]}, step=event["tokens_seen"])

    def end(self, trial_id: str, status: str) -> None:
        run = self.runs.pop(trial_id, None)
        if run is not None:
            run.summary["status"] = status
            run.finish()


class Mlflow:
    """A run TRIAL of the experiment NAME, found again by its tag."""

    def __init__(self, uri: str, name: str):
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # its own 7 take four minutes where nobody answers
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a trial, through the screen
        from mlflow.tracking import MlflowClient

        self.client, self.runs = MlflowClient(tracking_uri=uri), {}
        found = self.client.get_experiment_by_name(name)
        self.experiment = found.experiment_id if found else self.client.create_experiment(name)

    def report(self, trial_id: str, config: dict[str, Any], event: Event) -> None:
        from mlflow.entities import Metric

        run = self._run(trial_id, config)
        when, step = int(1000 * event["time"]), event["tokens_seen"]
        self.client.log_batch(run, metrics=[Metric(name, value, when, step) for name, value in metrics(event).items()])

    def end(self, trial_id: str, status: str) -> None:
        if trial_id in self.runs:
            self.client.set_tag(self.runs[trial_id], "status", status)
            if status == "paused":
                self.client.update_run(self.runs.pop(trial_id), status="SCHEDULED")
            else:
                self.client.set_terminated(self.runs[trial_id], "FAILED" if status == "failed" else "FINISHED")

    def _run(self, trial_id: str, config: dict[str, Any]) -> str:
        if trial_id not in self.runs:
            found = self.client.search_runs([self.experiment], f"tags.trial_id = '{trial_id}'", max_results=1)
            if found:
                self.runs[trial_id] = found[0].info.run_id
                self.client.update_run(self.runs[trial_id], status="RUNNING")
            else:
                run = self.client.create_run(self.experiment, tags={"trial_id": trial_id}, run_name=trial_id)
                self.runs[trial_id] = run.info.run_id
                for name, value in config.items():
                    self.client.log_param(self.runs[trial_id], name, value)
        return self.runs[trial_id]


class HandOver:
    """Hands events to a Service in a thread of its own: a slow or a lost server does not hold up the search.

    What a server fails to take is missing there; the next event is tried again, as it may be back. The first failure is
    said.
    """

    def __init__(self, flag: str, make: Callable[[], Service], trials: Mapping[str, Trial]):
        self.flag, self.make = flag, make
        self.configs = {trial_id: trial.config for trial_id, trial in trials.items()}
        self.running: set[str] = set()
        self.service: Service | None = None
        self.warned = self.failing = self.closing = False
        self.queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def __call__(self, event: Event) -> None:
        if event["event"] == "trial":
            self.configs[event["trial_id"]] = event["config"]
        else:
            self.queue.put(event)

    def close(self) -> None:
        """Waits until all is handed over, for CLOSE_SECONDS at most, or until a server fails."""
        self.closing = True
        self.queue.put(None)
        self.thread.join(CLOSE_SECONDS)
        if self.thread.is_alive():
            self._warn(f"not all was taken {CLOSE_SECONDS:.0f} s after the end")

    def _work(self) -> None:
        event: Event | None = {"event": "begun"}  # a server that can't be reached is named at once
        while event is not None and not (self.failing and self.closing):
            try:
                self.service = self.service or self.make()
                self._tell(self.service, event)
                self.failing = False
            except Exception as error:
                self.failing = True
                self._warn(" ".join(str(error).split())[:200])
            event = self.queue.get()

    def _warn(self, what: str) -> None:
        if not self.warned:
            print(f"warning: {self.flag}: {what}; the search goes on, what fails is missing there", file=sys.stderr)
        self.warned = True

    def _tell(self, service: Service, event: Event) -> None:
        trial_id = event.get("trial_id", "")
        if event["event"] == "report":
            self.running.add(trial_id)
            service.report(trial_id, self.configs[trial_id], event)
            if event["diverged"] or event["decision"] != CONTINUE:
                self.running.discard(trial_id)
                paused = event["decision"] == PAUSE
                service.end(trial_id, "diverged" if event["diverged"] else "paused" if paused else "ended")
        elif event["event"] == "failed":
            self.running.discard(trial_id)
            service.end(trial_id, "failed")
        elif event["event"] == "session_end":
            while self.running:
                service.end(self.running.pop(), "paused")


def loggers(run_dir: Path, config: SearchOptions, trials: Trials, session: int) -> list[TensorBoard | HandOver]:
    """Those that follow a search; each is called with every event, and closed at the end."""
    found: list[TensorBoard | HandOver] = [TensorBoard(run_dir, session)]
    name = config.name or run_dir.name
    if config.wandb:
        found.append(HandOver("--wandb", lambda: Wandb(config.wandb, name, run_dir), trials.by_id))
    if config.mlflow:
        found.append(HandOver("--mlflow", lambda: Mlflow(config.mlflow, name), trials.by_id))
    return found
