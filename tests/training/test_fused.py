"""Runs that train as one end where each ends alone."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from fused import FusedRuns

from myllm.config import GPTConfig, TrainConfig
from myllm.datasets.token_file import TokenFile
from myllm.datasets.windows import Windows
from myllm.system.errors import InputError
from myllm.training.run import Run
from myllm.training.train import train

SHAPE = GPTConfig(n_layer=2, n_head=2, n_embd=16, block_size=16, vocab_size=64)
BASE = TrainConfig(
    learning_rate=1e-2,
    batch_size=4,
    max_len=16,
    stride=16,
    budget_tokens=24 * 64,
    eval_freq=8,
    eval_windows=8,
    ema_ratio=0.1,
)
OTHERS = (
    {},
    {"learning_rate": 3e-3, "clip_norm": 0.1, "seed": 1},
    {"weight_decay": 0.0, "beta2": 0.99, "warmup_ratio": 0.2, "budget_tokens": 16 * 64, "micro_batch_size": 3},
)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    path = tmp_path_factory.mktemp("fused") / "a.bin"
    np.random.default_rng(0).integers(0, 64, 4000).cumsum().__mod__(64).astype("<u2").tofile(path)
    return Windows(TokenFile(path), 16, 16)


def make_runs(windows, shape=SHAPE, changes=OTHERS):
    return [Run(shape, dataclasses.replace(BASE, **change), windows, windows) for change in changes]


def test_fused_runs_report_what_they_would_alone(windows):
    alone = [list(train(run)) for run in make_runs(windows)]
    runs = make_runs(windows)
    fused = {id(run): [] for run in runs}
    for run, report in FusedRuns(runs).train():
        fused[id(run)].append(report)
    for run, expected in zip(runs, alone, strict=True):
        assert [r.step for r in fused[id(run)]] == [r.step for r in expected]
        for ours, theirs in zip(fused[id(run)], expected, strict=True):
            for name in ("train_loss", "val_loss", "val_loss_ema", "grad_norm"):
                assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=2e-4), (ours.step, name)
            assert ours.lr == theirs.lr


def test_a_dropped_run_goes_on_alone_and_the_others_as_before(windows):
    alone = [list(train(run))[-1].val_loss for run in make_runs(windows)]
    runs = make_runs(windows)
    together = FusedRuns(runs)
    last = {}
    for run, report in together.train():
        if run is runs[0] and report.step == 8:
            together.drop(run)
            fresh = make_runs(windows)[0]  # from what would be its checkpoint
            fresh.load_state_dict(run.state_dict())
            last[0] = list(train(fresh))[-1].val_loss
        last[runs.index(run) or report.step] = report.val_loss
    assert last[0] == pytest.approx(alone[0], rel=2e-4)
    assert [last[1], last[2]] == pytest.approx(alone[1:], rel=2e-4)


def test_a_diverging_run_ends_and_harms_nobody(windows):
    changes = ({}, {"learning_rate": 1e30, "clip_norm": 1e30}, {"seed": 3})
    reports = list(FusedRuns(make_runs(windows, changes=changes)).train())
    diverged = [report for _, report in reports if report.diverged]
    assert len(diverged) == 1 and diverged[0].step == 8
    assert sum(report.step == 24 and math.isfinite(report.val_loss) for _, report in reports) == 2


@pytest.mark.parametrize(
    ("shape", "changes", "named"),
    [
        (SHAPE, ({}, {"batch_size": 8}), "batch_size is 4"),
        (dataclasses.replace(SHAPE, dropout=0.1), ({}, {}), "without dropout"),
        (SHAPE, ({}, {"ema_ratio": 0.0}), "averaged weights"),
    ],
)
def test_what_cannot_be_fused_is_refused(windows, shape, changes, named):
    with pytest.raises(InputError, match=named):
        FusedRuns(make_runs(windows, shape, changes))


@pytest.mark.gpu
def test_fused_runs_agree_on_a_gpu(windows):
    changes = [{**change, "dtype": "float32", "float32_matmul": "float32"} for change in OTHERS]

    def make():
        return [Run(SHAPE, dataclasses.replace(BASE, **change), windows, windows, "cuda") for change in changes]

    alone = [list(train(run))[-1].val_loss for run in make()]
    runs = make()
    last = {id(run): report.val_loss for run, report in FusedRuns(runs).train()}
    assert [last[id(run)] for run in runs] == pytest.approx(alone, rel=1e-3)
    assert torch.cuda.is_available()
