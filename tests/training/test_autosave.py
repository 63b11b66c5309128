"""An interrupted training leaves a file, and what goes on from it ends as if nothing had happened."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, run_command_line
from test_trainer_command import TRAINER, assert_same_weights

from myllm.training import trainer
from myllm.training.autosave import AutoSave, minutes


@pytest.fixture
def flags(byte_files):
    train, val = byte_files
    data = ["--train_file", train, "--val_file", val, "--max_len", "32", "--stride", "16", "--batch_size", "8"]
    how = ["--learning_rate", "3e-3", "--eval_freq", "25", "--eval_iter", "1", "--epochs", "1", "--device", "cpu"]
    return [*map(str, data), *how]


@pytest.fixture
def whole(flags, command, tmp_path):
    """The model of a training that nothing befell."""
    assert command(*flags, "--save_model", tmp_path / "whole.pth") == 0
    return tmp_path / "whole.pth"


def losses(path):
    history = torch.load(path, weights_only=True)["history"]
    return [(row["step"], row["train_loss"], row["val_loss"]) for row in history]


@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, 50), (signal.SIGTERM, 75), (signal.SIGHUP, 25)])
def test_a_signal_saves_and_a_resume_goes_on_bit_for_bit(flags, whole, tmp_path, command, monkeypatch, capsys, number, at):
    broken, report_of = tmp_path / "broken.pth", trainer.print_report

    def interrupt(job, report):
        report_of(job, report)
        if report.step == at:
            signal.raise_signal(number)

    usual = signal.signal(number, signal.SIG_DFL)  # below nohup SIGHUP is ignored
    try:
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "print_report", interrupt)
            assert command(*flags, "--save_model", broken) == 128 + number
    finally:
        signal.signal(number, usual)
    assert f"interrupted at step {at} of" in capsys.readouterr().out
    assert torch.load(broken, weights_only=True)["step"] == at
    assert command(*flags, "--save_model", broken, "--load_model", broken) == 0
    assert_same_weights(whole, broken)
    assert losses(broken) == losses(whole)


def test_between_reports_too(flags, whole, tmp_path, command, monkeypatch):
    """A step without a report is a place to stop as well."""
    broken, steps_of = tmp_path / "broken.pth", trainer.train_steps

    def interrupted(run, until):
        for report in steps_of(run, until):
            if run.step == 37:
                signal.raise_signal(signal.SIGTERM)
            yield report

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_steps", interrupted)
        assert command(*flags, "--save_model", broken) == 143
    assert torch.load(broken, weights_only=True)["step"] == 37
    assert command(*flags, "--save_model", broken, "--load_model", broken) == 0
    assert_same_weights(whole, broken)
    assert losses(broken) == losses(whole)


def test_ctrl_c_as_people_press_it(flags, tmp_path):
    path = tmp_path / "m.pth"
    command = [sys.executable, TRAINER, *flags, "--save_model", path, "--stride", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "step 25" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"--load_model {path} goes on" in out, out + err
    assert "ending after this step" in err and "Traceback" not in err
    assert torch.load(path, weights_only=True)["step"] >= 25


def test_a_kill_costs_no_more_than_the_time_between_two_saves(flags, whole, tmp_path, command):
    broken = tmp_path / "broken.pth"
    process = subprocess.Popen(
        [sys.executable, TRAINER, *flags, "--save_model", broken, "--save_every", "0.01s"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    while not broken.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 0 < torch.load(broken, weights_only=True)["step"] < torch.load(whole, weights_only=True)["step"]
    assert command(*flags, "--save_model", broken, "--load_model", broken) == 0
    assert_same_weights(whole, broken)
    assert losses(broken) == losses(whole)


def test_without_a_file_to_save_to_signals_end_as_usual(flags, command, monkeypatch):
    monkeypatch.setattr(trainer, "print_report", lambda job, report: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        command(*flags)


def test_weights_that_are_not_finite_replace_no_file(flags, tmp_path, command, monkeypatch, capsys):
    path, steps_of = tmp_path / "m.pth", trainer.train_steps

    def diverging(run, until):
        for report in steps_of(run, until):
            run.parameters[0].data[0] = float("nan")
            signal.raise_signal(signal.SIGTERM)
            yield report

    monkeypatch.setattr(trainer, "train_steps", diverging)
    assert command(*flags, "--save_model", path) == 143
    assert "not saved: weights are not finite" in capsys.readouterr().out and not path.exists()


def test_saving_takes_a_small_share_of_the_time(monkeypatch):
    now, saved = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def save():
        now[0] += 30  # seconds, to a slow disk
        saved.append(now[0])

    autosave = AutoSave(save, every=10)
    for _ in range(36_000):
        now[0] += 1
        assert not autosave.after_step()
    assert saved[0] == 630 and 0.015 < 30 * len(saved) / now[0] < 0.021


def test_durations_are_read():
    assert [minutes(text) for text in ("10", "30s", "10m", "1.5h", "1h30m")] == [10, 0.5, 10, 90, 90]


def test_what_asks_to_be_ignored_stays_ignored(flags, tmp_path):
    """As nohup does with SIGHUP."""
    code = (
        "import json, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from myllm.training import trainer\n"
        "trainer.print_report = lambda job, report: signal.raise_signal(signal.SIGHUP)\n"
        "sys.argv = json.loads(sys.argv[1])\n"
        "sys.exit(trainer.main())\n"
    )
    done = run_command_line("-c", code, json.dumps([TRAINER, *flags, "--save_model", str(tmp_path / "m.pth")]))
    assert done.returncode == 0, done.stderr
