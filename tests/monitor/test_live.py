"""One search in real terminals of 80, 40 and 120 columns: seen, interrupted, resumed, and followed by three trackers."""

import shutil
import signal
import time

import pandas as pd
import pytest
from conftest import ROOT
from terminal import Terminal

pytest.importorskip("pyte")
HIDE_CURSOR, OTHER_SCREEN = b"\x1b[?25l", b"\x1b[?1049h"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_screen_in_terminals_of_three_widths(byte_files, tmp_path):
    train, val = byte_files
    name, database = f"test-live-{time.time_ns()}", tmp_path / "mlflow.db"
    run = ROOT / "experiments" / "runs" / name
    flags = [
        "--train_file",
        train,
        "--val_file",
        val,
        "--budget_tokens",
        "262144",
        "--num_samples",
        "2",
        "--replicate_best",
        "0",
    ]
    flags += ["--scheduler", "asha", "--max_concurrent", "1", "--name", name]
    flags += ["--wandb", "project", "--mlflow", f"sqlite:///{database}"]
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    try:
        first = Terminal(80, ["tune/search.py", *flags], offline)
        first.read_until(lambda text: "val_loss" in text and "t00000" in text)
        seen = "\n".join(first.screen.display)
        for word in ("search", "trials", "best", "rungs", "workers", "0 diverged, 0 failed"):
            assert word in seen, seen
        first.process.send_signal(signal.SIGINT)
        first.read_until(lambda text: False)
        assert first.process.returncode == 130, first.text
        second = Terminal(40, ["tune/search.py", "--resume", run], offline)
        second.read_until(lambda text: "val_loss" in text and "workers  t0000" in text)
        narrow = "\n".join(second.screen.display)
        second.process.send_signal(signal.SIGINT)
        second.read_until(lambda text: False)
        third = Terminal(120, ["tune/search.py", "--resume", run], offline)
        third.read_until(lambda text: False)
        assert third.process.returncode == 0, third.text
        assert "workers  t0000" in narrow and "0 diverged" in narrow, narrow
        for terminal in (first, second, third):
            assert HIDE_CURSOR not in terminal.raw and OTHER_SCREEN not in terminal.raw
            # The screen is gone, what was said before and after is whole.
            assert "workers  " not in terminal.text, terminal.text
            assert "best        trial" in terminal.text and "go on  " in terminal.text, terminal.text
            assert "Failed to fetch" not in terminal.text and "Token auth" not in terminal.text
        assert "stopping; once more leaves at once" in first.text and "interrupted; go on with" in first.text
        assert "2 trials of space v2" in first.text
        assert "Stop signal" in (run / "ray.log").read_text()
        assert f"report: {(run / 'report.html').as_uri()}" in third.text
        read_until = time.monotonic() + 200
        while (run / "report.log").exists() and time.monotonic() < read_until:
            time.sleep(0.1)  # the rest of the report is written behind the prompt
        assert 'http-equiv="refresh"' not in (run / "report.html").read_text()
        check_tensorboard(run)
        check_mlflow(database, name, run)
        folders = sorted(path.name.rsplit("-", 1)[-1] for path in (run / "wandb").glob("offline-run-*"))
        assert set(folders) == {"t00000", "t00001"}, folders
    finally:
        shutil.rmtree(run, ignore_errors=True)


def marks(run, trial_id):
    """tokens_seen of a trial's reports."""
    history = pd.read_csv(run / "history.csv", dtype={"trial_id": str})
    return history["tokens_seen"][history["trial_id"] == trial_id].tolist()


def check_tensorboard(run):
    """One series a trial, each mark once, over all sessions; and its hyper-parameters."""
    records = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for trial_id in ("t00000", "t00001"):
        found = records.EventAccumulator(str(run / "tensorboard" / trial_id))
        found.Reload()
        steps = [scalar.step for scalar in found.Scalars("val_loss")]
        assert steps == marks(run, trial_id), (trial_id, steps)
        assert "_hparams_/session_start_info" in found.summary_metadata


def check_mlflow(database, name, folder):
    """One run a trial, each with all its marks."""
    tracking = pytest.importorskip("mlflow.tracking")
    client = tracking.MlflowClient(tracking_uri=f"sqlite:///{database}")
    runs = client.search_runs([client.get_experiment_by_name(name).experiment_id])
    assert sorted(run.data.tags["trial_id"] for run in runs) == ["t00000", "t00001"]
    for run in runs:
        assert run.info.status == ("SCHEDULED" if run.data.tags["status"] == "paused" else "FINISHED")
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val_loss")]
        assert steps == marks(folder, run.data.tags["trial_id"])
        assert float(run.data.params["learning_rate"]) > 0
