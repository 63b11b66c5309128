"""trainer.py as people run it."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, run_command_line

from myllm.system.errors import InputError

TRAINER = "myllm/training/trainer.py"


@pytest.fixture
def flags(byte_files):
    train, val = byte_files
    data = ["--train_file", train, "--val_file", val]
    return [*map(str, data), "--max_len", "32", "--batch_size", "8", "--eval_freq", "50", "--eval_iter", "1"]


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_training_leaves_the_compiler_alone(flags, tmp_path):
    """To import torch._dynamo takes a second, also of each search."""
    arguments = [TRAINER, *flags, "--budget_tokens", "4096", "--device", "cpu", "--save_model", str(tmp_path / "model.pth")]
    code = f"""
import sys
from myllm.training.trainer import main
sys.argv = {arguments}
main()
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_killed_and_resumed_ends_in_the_same_weights(flags, tmp_path):
    flags = [*flags, "--epochs", "4", "--device", "cpu"]
    whole, broken = tmp_path / "whole.pth", tmp_path / "broken.pth"
    done = run_command_line(TRAINER, *flags, "--save_model", whole, "--plot", tmp_path / "p.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sample: ") == 4 and (tmp_path / "p.png").exists()
    assert "\r" not in done.stdout + done.stderr  # the progress bar is quiet off a terminal

    process = subprocess.Popen(
        [sys.executable, TRAINER, *flags, "--save_model", broken], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while not broken.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < torch.load(broken, weights_only=True)["step"] < torch.load(whole, weights_only=True)["step"]
    done = run_command_line(TRAINER, *flags, "--save_model", broken, "--load_model", broken)
    assert done.returncode == 0 and "resumed from" in done.stdout
    assert_same_weights(whole, broken)

    done = run_command_line(TRAINER, *flags, "--epochs", "5", "--load_model", broken, "--save_model", broken)
    assert done.returncode == 0, done.stderr
    assert "schedule: laid out anew over" in done.stdout
    assert torch.load(broken, weights_only=True)["epoch"] == 4  # the fifth, counted from 0


def test_bare_file_name_and_every_epoch_saved(flags, tmp_path):
    flags = [*flags, "--epochs", "2", "--version", "v1", "--save_model", "model.pth"]
    done = subprocess.run([sys.executable, ROOT / TRAINER, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.load(tmp_path / "model.pth", weights_only=True)["epoch"] == 1
    again = subprocess.run([sys.executable, ROOT / TRAINER, *flags], cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 2 and "exists" in again.stderr


def fails_in_one_line(*arguments):
    done = run_command_line(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr


def test_bad_input_is_one_line_and_exit_code_2(flags, tmp_path, command):
    bad = tmp_path / "config.json"
    bad.write_text(json.dumps({"train": {"learning_rat": 1}}))
    other = tmp_path / "other.pth"
    torch.save({"model_config": {"n_layer": 9}, "train_config": {}}, other)
    cases = [
        (["--learning_rate", "-1"], "learning_rate is -1.0"),
        (["--epochs", "0"], "epochs is 0"),
        (["--eval_iter", "0"], "--eval_iter is 0"),
        (["--preset", "huge"], "--preset 'huge'"),
        (["--tokenizer", "klingon"], "klingon"),
        (["--batch_size", "100000"], "larger than the data"),
        (["--load_model", "x.pth", "--version", "v1"], "belongs to v2"),
        (["--load_model", str(other), "--save_model", str(bad)], "exists; go on from it"),
        (["--load_model", str(tmp_path / "missing.pth")], "no such checkpoint"),
        (["--load_model", str(other)], "the checkpoint's model has n_layer 9"),
        (["--config", str(bad)], "learning_rat"),
        (["--start_context", ""], "--start_context"),
        (["--epoch", "1"], "unrecognized arguments"),
    ]
    for extra, word in cases:
        with pytest.raises(InputError) as error:
            command(*flags, *extra)
        assert word in str(error.value) and "\n" not in str(error.value), extra
    assert "GPUs" in fails_in_one_line(TRAINER, *flags, "--device", "cuda:99")
