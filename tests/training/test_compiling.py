"""Compiling: by which rule, what it leaves as it was, what is said of it, and that processes share it."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY, report

from myllm.system.errors import RunError
from myllm.system.machine import cpp_compiler
from myllm.training import compiling
from myllm.training.compiling import Compilation
from myllm.training.train import train
from tune.core.events import COMPILING
from tune.reporting.summarize import summarize_compiling
from tune.reporting.summary import Compiled
from tune.reporting.summary_text import compiled_words

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(Compilation, "known", {})


def test_compiling_must_repay_itself(monkeypatch):
    """Passes of 80 ms: 24 s of training are not worth compiling two layers for, 4,800 s are; a second run only compiles."""
    clock = iter(range(10**6))
    monkeypatch.setattr(compiling.time, "perf_counter", lambda: 0.08 * next(clock))
    switched, passes = [], []
    for total in (300, 60_000, 60_000):
        compilation = Compilation("auto", "shape", 2, switched.append, CPU)
        compilation.decide(lambda: passes.append(1), 100, total)
        if total == 60_000 and len(switched) == 1:
            found = compilation.pop_measurement()
            assert found.compiling_seconds == pytest.approx(0) and found.gain == pytest.approx(1.0)
            assert found.plain_tok_per_sec == pytest.approx(100 / 0.08) and compilation.pop_measurement() is None
    each = compiling.WARM + compiling.TIMED
    assert switched == [True, True] and len(passes) == 3 * each


def test_what_can_t_be_compiled_is_trained_plainly_or_said(capsys):
    switched = []

    def one_pass():
        if switched == [True]:
            raise torch._dynamo.exc.TorchDynamoException("no\ncompiler")

    Compilation("auto", "shape", 0, switched.append, CPU).decide(one_pass, 1, 10**6)
    assert switched == [True, False] and "without compiling, which failed: no compiler" in capsys.readouterr().err
    Compilation("auto", "shape", 0, switched.append, CPU).decide(one_pass, 1, 10**6)
    assert switched == [True, False, False]  # not tried again
    switched.clear()
    with pytest.raises(RunError, match="no compiler"):
        Compilation("on", "other", 0, switched.append, CPU).decide(one_pass, 1, 1)


def test_measuring_leaves_a_run_as_it_was(make_run):
    """Passes that were only timed draw from dropout's generator, too."""
    shape = dataclasses.replace(TINY, dropout=0.2)
    curves = []
    for mode in ("off", "auto"):
        run = make_run(shape)
        run.compilation.mode = mode
        run.compilation.set_compiled = None  # not called: it does not repay
        curves.append([seen.val_loss for seen in train(run)])
        assert run.is_prepared
    assert curves[0] == curves[1]


def test_the_summary_says_what_compiling_took():
    events = [report("00000", 100, 2.0), report("00001", 100, 2.0)]
    assert summarize_compiling(events) is None
    measured = [
        dict(zip(COMPILING, (seconds, 100.0, after), strict=True)) for seconds, after in ((30.0, 150.0), (6.0, 130.0))
    ]
    events = [dataclasses.replace(event, **values) for event, values in zip(events, measured, strict=True)]
    found = summarize_compiling(events)
    assert found == Compiled((30.0, 6.0), before=100.0, after=140.0, gain=pytest.approx(1.4))
    assert compiled_words(found) == "in 6 to 30 s in each of 2 processes; 100 -> 140 tokens/s, 1.40 times"


@pytest.mark.slow
@pytest.mark.timeout(2000)
@pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
def test_a_compiled_search_repeats_the_losses_and_a_later_session_compiles_much_less(byte_files, tmp_path):
    """Two workers, and two more in a second session: their work is on the disk by then."""
    train, val = map(str, byte_files)
    flags = [
        "--train_file",
        train,
        "--val_file",
        val,
        "--budget_tokens",
        "131072",
        "--scheduler",
        "fifo",
        "--replicate_best",
        "0",
    ]
    flags += ["--searcher", "random", "--max_concurrent", "2", "--storage_path", str(tmp_path), "--space", "v1"]
    where = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}

    def search(*more: str) -> None:
        command = [sys.executable, "tune/search.py", *more]
        done = subprocess.run(command, cwd=ROOT, env=where, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr

    def reports(name: str) -> dict[tuple[str, int], float]:
        events = map(json.loads, (tmp_path / name / "journal.jsonl").read_text().splitlines())
        return {(e["trial_id"], e["tokens_seen"]): e["val_loss"] for e in events if e["event"] == "report"}

    search(*flags, "--num_samples", "2", "--name", "on", "--set", "compile=on")
    search("--resume", str(tmp_path / "on"), "--num_samples", "4")
    search(*flags, "--num_samples", "4", "--name", "off", "--set", "compile=off")
    compiled, plain = reports("on"), reports("off")
    early = {at: pytest.approx(loss, rel=1e-6) for at, loss in plain.items() if at[1] <= 24576}
    assert {at: compiled[at] for at in early} == early
    assert compiled == {at: pytest.approx(loss, rel=0.02) for at, loss in plain.items()}  # rounding grows at high rates
    found = json.loads((tmp_path / "on" / "summary.json").read_text())["compiled"]
    first, second = found["seconds"][:2], found["seconds"][2:]
    assert len(second) == 2 and max(second) < max(first) / 2, found
    assert "compiled    in " in (tmp_path / "on" / "summary.txt").read_text()
    assert "compiled, speed" in (tmp_path / "on" / "report.html").read_text()
    assert json.loads((tmp_path / "off" / "summary.json").read_text())["compiled"] is None
