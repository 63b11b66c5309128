"""Several processes train one model: as one process would, and none is left behind."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, run_command_line

from myllm.training import parallel

TRAINER = "myllm/training/trainer.py"
DRIVER = ROOT / "tests" / "training" / "parallel_driver.py"


def start(processes, *command):
    """Starts `processes` processes as torchrun would; returns them. Output of the first is captured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            cwd=ROOT,
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(started):
    """Waits for all processes; returns [(exit code, stdout, stderr)] of each."""
    found = []
    for process in started:
        out, err = process.communicate(timeout=120)
        found.append((process.returncode, out, err))
    return found


def three_trainings(processes, train_file, saved="-", loaded="-"):
    """The reports of the trainings that parallel_driver.py describes, by several processes."""
    done = finish(start(processes, DRIVER, train_file, saved, loaded))
    assert [code for code, _, _ in done] == [0] * processes, done[0][2]
    assert not any(out for _, out, _ in done[1:])  # the first one alone prints
    return json.loads(done[0][1])


def furthest(one, other):
    """The largest relative difference between the numbers of two lists of reports."""
    assert [row[0] for row in one] == [row[0] for row in other]
    return max(abs(a / b - 1) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def test_small_tensors_are_sent_together(monkeypatch):
    monkeypatch.setattr(parallel, "BUCKET_BYTES", 40)
    sizes = [3, 4, 3, 1, 11, 2]  # times 4 bytes
    tensors = [torch.zeros(size) for size in sizes] + [torch.zeros(1, dtype=torch.float64)]
    found = [[tensor.nbytes for tensor in bucket] for bucket in parallel.buckets(tensors)]
    assert found == [[12, 16, 12], [4], [44], [8], [8]] and not list(parallel.buckets([]))


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_are_those_of_one_process(processes, byte_files, tmp_path):
    """A batch's loss is a mean over all windows, whoever computes its parts; with accumulation, clipping and averages."""
    state = tmp_path / "state.pt"  # it does not know how many processes wrote it
    double, single, begun = three_trainings(processes, byte_files[0], saved=state)
    double_alone, single_alone, continued = three_trainings(1, byte_files[0], loaded=state)
    assert double[-1][1] < double[0][1] - 0.1
    assert furthest(double, double_alone) < 1e-9
    assert furthest(single, single_alone) < 1e-5
    assert furthest([*begun, *continued], single_alone) < 1e-5
    if processes == 4:
        assert furthest([*begun, *three_trainings(2, byte_files[0], loaded=state)[2]], single_alone) < 1e-5


@pytest.fixture
def flags(byte_files):
    train, val = byte_files
    data = ["--train_file", train, "--val_file", val]
    return [
        *map(str, data),
        "--max_len",
        "32",
        "--batch_size",
        "8",
        "--eval_freq",
        "50",
        "--eval_iter",
        "1",
        "--device",
        "cpu",
    ]


@pytest.mark.slow
def test_torchrun_trains_one_model(flags, tmp_path):
    """The first process prints, saves and plots; one process goes on from the file."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    model = tmp_path / "model.pth"
    command = [*torchrun, TRAINER, *flags, "--epochs", "1", "--save_model", model, "--plot", tmp_path / "p.png"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sample: ") == 1 and "in each of 2 processes" in done.stdout
    assert model.exists() and (tmp_path / "p.png").exists()
    more = run_command_line(TRAINER, *flags, "--epochs", "2", "--load_model", model)
    assert more.returncode == 0 and "resumed from" in more.stdout, more.stderr


def test_a_process_that_is_killed_ends_all_of_them(flags, tmp_path):
    started = start(2, TRAINER, *flags, "--epochs", "1000", "--save_model", tmp_path / "model.pth")
    wait_for_report(started[0])
    started[1].kill()
    (code, _, errors), _ = finish(started)
    assert code == 1
    assert errors.startswith("error: one of the 2 processes of this training ended early") and errors.count("\n") == 1


def test_a_signal_to_one_process_ends_all_after_the_same_step(flags, tmp_path):
    """A scheduler of a cluster may tell one process alone; what was trained is saved."""
    started = start(2, TRAINER, *flags, "--epochs", "1000", "--save_model", tmp_path / "model.pth")
    wait_for_report(started[0])
    started[1].send_signal(signal.SIGTERM)
    (code, out, _), (other, _, _) = finish(started)
    assert code == other == 128 + signal.SIGTERM and "interrupted at step" in out
    assert (tmp_path / "model.pth").exists()


def wait_for_report(process):
    """Reads the output of a training up to its first report."""
    deadline = time.monotonic() + 60
    for line in process.stdout:
        assert time.monotonic() < deadline
        if "train_loss" in line:
            return
    pytest.fail(process.stderr.read())


def test_wrong_input_is_said_once(flags):
    (code, _, errors), (other, _, silent) = finish(start(2, TRAINER, *flags, "--epochs", "1", "--batch_size", "7"))
    assert code == 2 and errors == "error: batch_size 7 can't be divided among 2 processes\n"
    assert other in (1, 2) and not silent
    (code, _, errors), _ = finish(start(2, TRAINER, *flags[:-1], "cuda:0", "--epochs", "1"))
    assert code == 2 and errors.startswith("error: --device cuda:0 names one GPU for all processes")


@pytest.mark.parametrize("command", [["tune/search.py", "--dry_run"], ["myllm/data.py", "--help"]])
def test_torchrun_around_another_command_is_refused(command):
    environment = os.environ | {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.startswith("error: torchrun starts") and done.stderr.count("\n") == 1
