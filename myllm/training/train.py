"""The loss, the learning-rate schedule, and the one loop behind V1 and V2: an iterator that yields reports."""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from myllm.config import TrainConfig
from myllm.datasets.windows import Windows
from myllm.training.ema import in_place_of
from myllm.training.gpu import autocast, to_device
from myllm.training.pace import prepare
from myllm.training.run import Run

__all__ = ["Report", "Run", "learning_rate_at", "mean_loss", "train"]

FINITE_CHECK_STEPS = 32
"""optimizer steps between two checks for non-finite numbers on a CPU; on a GPU, which a check would stall, reports check"""


@dataclass(frozen=True)
class Report:
    """The result of one evaluation."""

    step: int
    """optimizer steps so far"""
    tokens_seen: int
    """tokens trained on so far, repeated ones counted each time"""
    train_loss: float
    """nats per token over the fixed training windows, dropout off"""
    val_loss: float
    """nats per token over the fixed validation windows, dropout off"""
    val_loss_ema: float
    """val_loss of the averaged weights; NaN without them"""
    lr: float
    """learning rate of the last step"""
    grad_norm: float
    """global L2 norm of the last step's gradient, before clipping; NaN in V1, which does not compute it"""
    train_seconds: float
    """seconds of training and evaluating so far, over all restarts"""
    tok_per_sec: float
    """tokens trained on per second since the last report, evaluations left out"""
    diverged: bool
    """True if loss, gradients or validation loss are no longer finite: the run has ended"""
    budget_seconds: float | None = None
    """the seconds of a time budget that are done; None without one"""


def learning_rate_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """Returns the learning rate of optimizer step `step` (from 0) of `total_steps`.

    V1: constant. V2: linear warm-up that reaches the peak at the end of warmup_ratio * total_steps steps, then down to
    min_lr_ratio times the peak at the last step: along half a cosine (Loshchilov and Hutter, arXiv 1608.03983, without
    restarts), or with schedule wsd constant and then along a straight line over the last cooldown_ratio of the steps
    (Haegele et al., arXiv 2405.18392).
    """
    if config.version == "v1":
        return config.learning_rate
    warmup_steps = round(config.warmup_ratio * total_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    begin = warmup_steps
    if config.schedule == "wsd":
        begin = max(warmup_steps, total_steps - 1 - round(config.cooldown_ratio * total_steps))
    progress = min(1.0, max(0, step - begin) / max(1, total_steps - 1 - begin))
    above_floor = 1 - progress if config.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * above_floor)


@torch.no_grad()
def mean_loss(run: Run, windows: Windows, indices: np.ndarray) -> float:
    """Mean cross-entropy in nats per token over the windows `indices` (n,), dropout off. Processes share the windows."""
    own = indices[run.group.rank :: run.group.size]

    def attempt() -> torch.Tensor:
        size, total = run.eval_batch_size, torch.zeros((), dtype=torch.float64, device=run.device)
        for start in range(0, len(own), size):
            piece = own[start : start + size]
            inputs, targets = windows.batch(piece)
            with autocast(run.dtype, run.device):
                loss = run.model(to_device(inputs, run.device), to_device(targets, run.device))
            total += loss.double() * len(piece)
        return total

    run.model.eval()
    try:
        total = run.within_memory(attempt)
    finally:
        run.model.train()
    run.group.add_up([total])
    return total.item() / len(indices)


def train(run: Run, until_step: int | None = None) -> Iterator[Report]:
    """Trains `run` up to `until_step` optimizer steps (default: all); yields a Report every eval_freq steps and at the end.

    The caller decides what to do with a report, and may save the run or stop iterating at any yield. A run whose loss or
    gradient turns non-finite ends with a report that says `diverged`.
    """
    return (report for report in train_steps(run, until_step) if report is not None)


def train_steps(run: Run, until_step: int | None = None) -> Iterator[Report | None]:
    """Trains as `train` does, but yields after each optimizer step: its Report, or None where none is due."""
    config, pace = run.config, run.pace
    if until_step is None:
        until_step = sys.maxsize if pace else run.total_steps
    train_indices = run.train_windows.spread(config.train_eval_windows or config.eval_windows)
    val_indices = run.val_windows.spread(config.eval_windows)
    run.model.train()
    run.group.copy_from_first(run.model.state_dict().values())
    health = torch.zeros((), device=run.device)  # finite as long as every loss and gradient norm was
    clock = time.perf_counter()
    training_seconds, steps_since = 0.0, 0
    while run.step < until_step and not (pace and pace.is_over):
        step_start = time.perf_counter()
        batch = run.stream.next()
        step_start += prepare(run, *batch)
        rate = learning_rate_at(run.step, run.total_steps, config)
        health += run.backward(*batch)
        grad_norm = run.update(rate)
        if config.version == "v2":
            health += grad_norm
        steps_since += 1
        due = run.step == until_step or (not pace and run.step % config.eval_freq == 0)
        looks = run.device.type != "cuda" and run.step % FINITE_CHECK_STEPS == 0
        looks |= pace is not None and run.step >= pace.stop_step
        finite = math.isfinite(health.item()) if due or looks else True
        now = time.perf_counter()
        training_seconds += now - step_start
        due |= pace is not None and pace.add(run.step, now - step_start, run.group)
        if not due and finite:
            run.train_seconds += now - clock
            yield None
            clock = time.perf_counter()
            continue
        train_loss = mean_loss(run, run.train_windows, train_indices) if finite else math.nan
        val_loss = mean_loss(run, run.val_windows, val_indices) if finite else math.nan
        val_loss_ema = math.nan
        if run.average is not None and finite:
            with in_place_of(run.parameters, run.average):
                val_loss_ema = mean_loss(run, run.val_windows, val_indices)
        now = time.perf_counter()
        run.train_seconds += now - clock
        diverged = not (finite and math.isfinite(train_loss) and math.isfinite(val_loss))
        yield Report(
            step=run.step,
            tokens_seen=run.tokens_seen,
            train_loss=train_loss,
            val_loss=val_loss,
            val_loss_ema=val_loss_ema,
            lr=rate,
            grad_norm=grad_norm.item(),
            train_seconds=run.train_seconds,
            tok_per_sec=steps_since * config.tokens_per_step / training_seconds,
            diverged=diverged,
            budget_seconds=pace.done if pace else None,
        )
        if diverged:
            return
        clock = time.perf_counter()
        training_seconds, steps_since = 0.0, 0
