"""The only bridge: Ray's flat config dict -> TrainConfig -> the training loop -> Ray's reports and checkpoints."""

import functools
import gc
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from ray import tune

from myllm.config import GPTConfig, TrainConfig, from_dict
from myllm.data import TokenFile, Windows
from myllm.token_file import Spec
from myllm.training.train import Report, Run, train
from myllm.training.train_utils import load_state, save_state
from tune.storage import STATE_FILE

CHECKPOINT_SHARE = 0.05  # of the time that checkpoints may take, rungs and the last one apart
CHECKPOINT_MIN_SECONDS = 2.0


@dataclass(frozen=True)
class Task:
    """What all trials of a search share."""

    model: dict[str, Any]
    """fields of the GPTConfig"""
    train: dict[str, Any]
    """fields of the TrainConfig that are not searched, eval_freq apart"""
    train_file: Spec
    """prepared token files, absolute"""
    val_file: Spec
    """prepared token files, absolute"""
    report_tokens: int
    """tokens between reports; a multiple of every trial's step"""
    bytes_per_token: float
    """UTF-8 bytes per target token of the validation windows"""
    rungs: tuple[int, ...]
    """tokens_seen at which a trial may be stopped: its state is stored there"""
    threads: int
    """torch threads a trial"""
    device: str
    """cpu or cuda"""


def trial_config(task_train: dict[str, Any], report_tokens: int, hyper_parameters: dict[str, Any]) -> TrainConfig:
    """The TrainConfig of one trial. Raises InputError for an unknown key or a step that does not divide the marks."""
    values = task_train | hyper_parameters
    tokens_per_step = values["batch_size"] * values["max_len"]
    values["eval_freq"] = max(1, report_tokens // tokens_per_step)
    if values["micro_batch_size"] is not None:
        values["micro_batch_size"] = min(values["micro_batch_size"], values["batch_size"])
    return from_dict(TrainConfig, values, "trial")


def metrics_of(report: Report, bytes_per_token: float) -> dict[str, Any]:
    """A report as the flat dict that Ray, the journal and history.csv carry."""
    return asdict(report) | {"val_bpb": report.val_loss / math.log(2) / bytes_per_token}


@functools.cache
def keep_imports() -> None:
    """Takes what this process has loaded by now out of the garbage collector's sight, once.

    To look through it after every trial took 0.04 s, a tenth of a short one. The first trial loads more of torch, so this
    comes after it.
    """
    gc.freeze()


def run_trial(config: dict[str, Any], task: Task) -> None:
    """Ray's function trainable: trains one configuration, from the trial's latest checkpoint where there is one."""
    torch.set_num_threads(task.threads)
    train_config = trial_config(task.train, task.report_tokens, config)
    windows = [
        Windows(TokenFile(file), train_config.max_len, train_config.stride) for file in (task.train_file, task.val_file)
    ]
    run = Run(GPTConfig(**task.model), train_config, *windows, device=task.device)
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            run.load_state_dict(load_state(Path(folder) / STATE_FILE))
    try:
        last_saved, cost = time.monotonic(), 0.0
        for report in train(run):
            metrics = metrics_of(report, task.bytes_per_token)
            since = time.monotonic() - last_saved
            must = report.step == run.total_steps or report.tokens_seen in task.rungs
            if report.diverged or not (must or since > max(CHECKPOINT_MIN_SECONDS, cost / CHECKPOINT_SHARE)):
                tune.report(metrics)
                continue
            with tempfile.TemporaryDirectory() as folder:
                start = time.monotonic()
                save_state(run.state_dict(), Path(folder) / STATE_FILE)
                cost = time.monotonic() - start
                tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))
            last_saved = time.monotonic()
    finally:  # the process serves the next trial: leave it nothing of this one
        del run
        gc.collect()
        keep_imports()
        if task.device == "cuda":
            torch.cuda.empty_cache()
