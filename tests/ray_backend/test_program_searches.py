"""Whole searches of training programs of the user's own: what they read, how they end, and who else follows them."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import ROOT, run_command_line
from test_programs import AS_COMMAND, COMMAND, FUNCTION, LIVE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def searched(folder, name, *words, code=0, **kwargs):
    """Runs a search below `folder`; returns (its folder, its standard output, the error lines of its standard error)."""
    done = run_command_line("tune/search.py", *words, "--storage_path", folder, "--name", name, **kwargs)
    assert done.returncode == code, done.stdout + done.stderr
    return folder / name, done.stdout, [line for line in done.stderr.splitlines() if line.startswith("error: ")]


def test_reports_come_from_a_file_of_a_program_that_can_not_go_on(tmp_path):
    words = ["--command", f"{COMMAND} --how=file", "--report_file", "metrics.jsonl", "--no_resume", *LIVE]
    run, said, _ = searched(tmp_path, "file", *words)
    trials, history = pd.read_csv(run / "trials.csv"), pd.read_csv(run / "history.csv")
    assert "scheduler asha-stop" in said and set(trials["status"]) <= {"completed", "stopped"}
    assert not history.duplicated(["trial_id", "iterations_seen"]).any() and trials["checkpoint"].isna().all()
    assert history["iterations_seen"].max() == 64 and "step" not in (run / "output" / "t00000.txt").read_text()


def test_a_report_that_does_not_fit_ends_the_search_at_once(tmp_path):
    words = ["--command", COMMAND, "--report", r"epoch (?P<step>\d+) (?P<loss>\S+)", "--no_resume", *LIVE]
    run, _, errors = searched(tmp_path, "wrong", *words, code=1)
    assert len(errors) == 1 and "trial t00000 failed with" in errors[0] and "'step 64: val loss" in errors[0], errors
    assert len(list((run / "output").iterdir())) == 1


def test_a_full_disk_of_a_program_is_one_line_and_the_search_goes_on(tmp_path):
    room = tmp_path / "room"
    full = f"{COMMAND} --how=full --room={room}"
    words = ["--command", full, *AS_COMMAND[2:], *LIVE]
    run, _, errors = searched(tmp_path, "full", *words, code=1)
    assert len(errors) == 1 and "the disk is full" in errors[0]
    room.touch()
    done = run_command_line("tune/search.py", "--resume", run)
    assert done.returncode == 0, done.stderr
    assert not pd.read_csv(run / "trials.csv")["status"].isin(["failed", "running"]).any()


def test_a_command_without_a_seed_trains_its_best_again_in_one_piece_and_its_command_confirms_it(tmp_path):
    slow = COMMAND.replace("--pause=0.02", "--pause=0.2")  # it must not end while its state is stored
    without = f"{slow} --how=noisy".replace("--seed={seed}", "")
    words = ["tune/search.py", "--command", without, *AS_COMMAND[2:], *LIVE, "--storage_path", str(tmp_path)]
    run = tmp_path / "noisy"
    with subprocess.Popen([sys.executable, *words, "--name", "noisy"], cwd=ROOT, stdout=subprocess.DEVNULL) as search:
        while True:
            journal = (run / "journal.jsonl").read_text() if (run / "journal.jsonl").exists() else ""
            reports = [line for line in journal.splitlines() if '"report"' in line and "-again" in line]
            if len(reports) > 20:
                break
            assert search.poll() is None
            time.sleep(0.05)
        search.send_signal(signal.SIGKILL)
    done = run_command_line("tune/search.py", "--resume", run)
    assert done.returncode == 0, done.stdout + done.stderr
    best = json.loads((run / "summary.json").read_text())["best"]
    assert best["seeds"] == 2 and f"val_loss {best['in_one_piece']:.4f} in one piece" in done.stdout
    assert best["low"] < best["val_loss"] < best["high"]
    output = (run / "output" / f"{best['trial_id']}-again.txt").read_text()
    assert output.count("step 0: val loss") == 2  # it began anew after the kill
    again = json.loads((run / "best_config.json").read_text())
    line = again["command"].replace(str(ROOT / "noisy-best"), str(tmp_path / "again"))
    rerun = subprocess.run(line, shell=True, cwd=again["working_folder"], capture_output=True, text=True)
    assert rerun.stdout.splitlines()[-1] == f"step 64: val loss {best['in_one_piece']:.6f}"


@pytest.mark.parametrize("program", [pytest.param(AS_COMMAND, id="command"), pytest.param(FUNCTION, id="function")])
def test_trackers_audit_comparison_and_warm_start_serve_programs(tmp_path, program):
    tracking = pytest.importorskip("mlflow.tracking")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    pytest.importorskip("wandb")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    words = [*program, *LIVE, "--audit_fraction", "1", "--wandb", "project", "--mlflow", uri]
    run, said, _ = searched(tmp_path, "followed", *words, env=os.environ | {"WANDB_MODE": "offline"})
    trials, history = pd.read_csv(run / "trials.csv"), pd.read_csv(run / "history.csv")
    followed = trials[trials["iterations_seen"] > 0]["trial_id"].tolist()
    assert sorted(path.name for path in (run / "tensorboard").iterdir()) == sorted(followed)
    names = [path.name.split("-", 4)[-1] for path in run.glob("wandb/offline-run-*")]
    assert {re.sub(r"-\d+$", "", name) for name in names} == set(followed)  # W&B numbers folders of one second
    client = tracking.MlflowClient(tracking_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("followed").experiment_id])
    assert sorted(one.data.tags["trial_id"] for one in runs) == sorted(followed)
    board = accumulator.EventAccumulator(str(run / "tensorboard" / followed[0]))
    board.Reload()
    own = history[history["trial_id"] == followed[0]]
    assert [point.step for point in board.Scalars("val_loss")] == own["iterations_seen"].tolist()
    assert "  audit " in said and any(trial_id.endswith("-audit") for trial_id in followed)

    warm, said, _ = searched(tmp_path, "warm", *program, *LIVE, "--warm_start", run)
    best = json.loads((run / "best_config.json").read_text())["settings"]["rate"]
    assert best in pd.read_csv(warm / "trials.csv")["rate"].tolist()
    compared = run_command_line("tune/report.py", run, warm)
    assert compared.returncode == 0 and "followed" in compared.stdout and "warm" in compared.stdout, compared.stderr
