"""What a GPU is used for: the same losses as on a CPU, by the fast ways there are. Skipped where there is none."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from myllm.config import GPTConfig, TrainConfig
from myllm.datasets.token_file import TokenFile
from myllm.datasets.windows import Windows
from myllm.presets import MODERN
from myllm.training.gpu import resolve_dtype
from myllm.training.run import Run
from myllm.training.train import train

SHAPE = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=101)
CONFIG = TrainConfig(
    learning_rate=1e-2,
    batch_size=8,
    max_len=32,
    stride=32,
    budget_tokens=40 * 256,
    eval_freq=10,
    eval_windows=8,
    dtype="float32",
    float32_matmul="float32",
    compile="off",
)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "a.bin"
    (np.random.default_rng(0).integers(1, 3, 20000).cumsum() % 101).astype("<u2").tofile(path)
    return Windows(TokenFile(path), 32, 32)


def curve(windows, device="cuda", **changes):
    run = Run(SHAPE, dataclasses.replace(CONFIG, **changes), windows, windows, device)
    return [report.val_loss for report in train(run)], run


def test_auto_is_float32_on_a_cpu():
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32


@pytest.mark.gpu
def test_recorded_steps_repeat_the_cpu_curve(windows):
    expected, _ = curve(windows, "cpu")
    found, run = curve(windows, micro_batch_size=3)
    assert found == pytest.approx(expected, rel=1e-5)
    assert sorted(inputs[0] for inputs, *_ in run.recorder.recordings) == [2, 3]
    assert len(run.update_recorder.recordings) == 1


@pytest.mark.gpu
def test_recorded_steps_of_muon_and_the_modern_block_repeat_the_cpu_curve(windows):
    """Muon multiplies in bfloat16, whose sums differ between devices."""
    shape = dataclasses.replace(SHAPE, **MODERN, n_kv_head=1, tied=False)
    curves = []
    for device in ("cpu", "cuda"):
        run = Run(shape, dataclasses.replace(CONFIG, optimizer="muon"), windows, windows, device)
        curves.append([report.val_loss for report in train(run)])
    assert curves[1] == pytest.approx(curves[0], abs=0.02)
    assert run.update_recorder.records and len(run.update_recorder.recordings) == 1


@pytest.mark.gpu
def test_compiled_steps_repeat_the_curve_for_two_batch_sizes_with_one_graph(windows):
    torch._dynamo.utils.counters.clear()
    for batch_size in (8, 4):
        expected, _ = curve(windows, "cpu", batch_size=batch_size)
        assert curve(windows, compile="on", batch_size=batch_size)[0] == pytest.approx(expected, rel=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.gpu
def test_auto_is_bfloat16_and_close(windows):
    expected, _ = curve(windows, "cpu")
    found, run = curve(windows, dtype="auto")
    assert run.dtype is torch.bfloat16
    assert found == pytest.approx(expected, abs=0.02)


@pytest.mark.gpu
def test_attention_takes_the_flash_path(windows):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where it can't
        assert math.isfinite(curve(windows, dtype="bfloat16")[0][-1])


@pytest.mark.gpu
def test_a_run_goes_on_from_a_checkpoint_on_the_gpu(windows):
    expected, _ = curve(windows)
    first = Run(SHAPE, CONFIG, windows, windows, "cuda")
    list(train(first, until_step=20))
    second = Run(SHAPE, CONFIG, windows, windows, "cuda")
    second.load_state_dict(first.state_dict())
    assert list(train(second))[-1].val_loss == pytest.approx(expected[-1], rel=1e-4)


@pytest.mark.gpu
def test_steps_between_reports_never_wait_for_the_gpu(windows):
    run = Run(SHAPE, CONFIG, windows, windows, "cuda")
    steps = train(run)
    next(steps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            run.backward(*run.stream.next())
            run.update(1e-2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
