"""A search is followed by trackers: a server that comes and goes, TensorBoard, W&B offline, MLflow on SQLite."""

import dataclasses
import time

import pytest
from conftest import begun, report
from helpers import search_of

from tune.config.spec import read_search
from tune.core.events import SessionEnded
from tune.core.trials import PAUSE
from tune.monitor.trackers import BackgroundLogger, Mlflow, TensorBoard, WeightsAndBiases


class Server:
    """A Tracker that fails while it is `down`."""

    def __init__(self):
        self.down, self.taken = False, []

    def make(self):
        if self.down:
            raise ConnectionError("no answer\nfrom there")
        return self

    def report(self, trial_id, config, event):
        self.make()
        self.taken.append((trial_id, config["x"], event.tokens_seen))

    def end(self, trial_id, status):
        self.make()
        self.taken.append((trial_id, status))


def told(logger, *events):
    """Hands the events over, and waits until they are worked off."""
    for event in events:
        logger(event)
    while not logger.queue.empty():
        time.sleep(0.01)
    time.sleep(0.05)


def test_what_a_server_misses_is_missing_there_and_said_once(capfd):
    server = Server()
    server.down = True
    logger = BackgroundLogger("--mlflow", server.make, {})
    told(logger, begun("00000", config={"x": 1}), report("00000", 100, 3.0), report("00000", 200, 2.0))
    server.down = False
    told(logger, report("00000", 300, 2.0), begun("00001", config={"x": 2}), report("00001", 100, 2.0, PAUSE))
    logger(SessionEnded(session=0))
    logger.close()
    assert server.taken == [("00000", 1, 300), ("00001", 2, 100), ("00001", "paused"), ("00000", "paused")]
    said = capfd.readouterr().err
    assert said == "warning: --mlflow: no answer from there; the search goes on, what fails is missing there\n"


def test_a_server_that_is_gone_does_not_hold_up_the_end(capfd):
    server = Server()
    logger = BackgroundLogger("--mlflow", server.make, {})
    told(logger, begun("00000", config={"x": 1}), report("00000", 100, 3.0))
    server.report = lambda *values: time.sleep(0.2) or 1 / 0
    for tokens in range(200, 3000, 100):
        logger(report("00000", tokens, 2.0))
    before = time.monotonic()
    logger.close()
    assert time.monotonic() - before < 2 and not logger.thread.is_alive()
    assert capfd.readouterr().err.count("\n") == 1


def follow(tracker, *losses, trial_id="00000", first=100):
    """One segment of a trial: its reports, 100 tokens apart, and its end."""
    for index, loss in enumerate(losses):
        at = first + 100 * index
        tracker.report(trial_id, {"x": 0.5}, report(trial_id, at, loss, time=1.7e9 + at))
    tracker.end(trial_id, "paused")


def test_tensorboard_keeps_one_run_a_trial_and_each_report_once(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    follow(TensorBoard(tmp_path), 3.0, 2.5, 2.4)  # a crash loses the state of the third report
    follow(TensorBoard(tmp_path), 2.3, 2.0, first=300)
    found = accumulator.EventAccumulator(str(tmp_path / "tensorboard" / "00000"))
    found.Reload()
    points = [(point.step, round(point.value, 3)) for point in found.Scalars("val_loss")]
    assert points == [(100, 3.0), (200, 2.5), (300, 2.3), (400, 2.0)]
    assert "_hparams_/session_start_info" in found.summary_metadata


def test_two_searches_of_one_name_have_runs_of_their_own_in_mlflow(tmp_path):
    tracking, uri = pytest.importorskip("mlflow.tracking"), f"sqlite:///{tmp_path}/mlflow.db"
    for run_id, losses, first in (("aaa", (3.0, 2.0), 100), ("bbb", (4.0,), 100), ("aaa", (1.5,), 300)):
        follow(Mlflow(uri, "name", run_id), *losses, first=first)
    client = tracking.MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("name").experiment_id])
    assert sorted((run.data.tags["run_id"], run.data.tags["trial_id"]) for run in runs) == [
        ("aaa", "00000"),
        ("bbb", "00000"),
    ]
    losses = {
        run.data.tags["run_id"]: [m.value for m in client.get_metric_history(run.info.run_id, "val_loss")] for run in runs
    }
    assert losses == {"aaa": [3.0, 2.0, 1.5], "bbb": [4.0]}


def test_two_searches_of_one_name_have_runs_of_their_own_in_wandb(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for run_id in ("aaa", "bbb"):
        (tmp_path / run_id).mkdir()
        follow(WeightsAndBiases("project", "name", run_id, tmp_path / run_id), 3.0)
    ids = [path.name.split("-", 3)[-1] for path in sorted(tmp_path.glob("*/wandb/offline-run-*"))]
    assert ids == ["aaa-00000", "bbb-00000"]


def test_a_search_is_known_by_its_id_and_one_of_before_by_its_provenance(tmp_path):
    search = search_of(name="name", storage_path=f"file://{tmp_path}/runs?region=here")
    one, two = (dataclasses.replace(search, origin={"run_id": run_id}) for run_id in ("aaa", "bbb"))
    assert one.storage_root(tmp_path) == f"file://{tmp_path}/runs/name-aaa?region=here"
    assert two.storage_root(tmp_path) == f"file://{tmp_path}/runs/name-bbb?region=here"
    old = dataclasses.replace(search, origin={"created": "2026-11-01 10:00:00 +0000"})
    old.write(tmp_path)
    assert old.storage_root(tmp_path) == f"file://{tmp_path}/runs/name?region=here"  # its checkpoints are there
    assert old.run_id == read_search(tmp_path).run_id != dataclasses.replace(search, origin={"created": ""}).run_id
