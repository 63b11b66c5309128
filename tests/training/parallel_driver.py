"""One of several processes of a training; the first one prints the reports of three trainings as JSON.

python parallel_driver.py TRAIN_FILE SAVED LOADED: one in float64, one in float32, and one in float32 that begins from the
file LOADED, or saves its half to the file SAVED and ends there; "-" stands for no file.
"""

import json
import sys

import torch

from myllm.config import GPTConfig, TrainConfig
from myllm.datasets.token_file import TokenFile
from myllm.datasets.windows import Windows
from myllm.system.machine import processes_in_environment
from myllm.training.parallel import SINGLE, joined
from myllm.training.run import Run
from myllm.training.train import train
from myllm.training.train_utils import load_state, save_state

STEPS, BATCH_SIZE, MAX_LEN = 50, 16, 32
train_file, saved, loaded = sys.argv[1:]


def reports(group, dtype, last_step=STEPS, save_to="-", load_from="-"):
    torch.set_default_dtype(dtype)
    config = TrainConfig(
        learning_rate=1e-3,
        batch_size=BATCH_SIZE,
        micro_batch_size=2,
        max_len=MAX_LEN,
        stride=MAX_LEN,
        budget_tokens=STEPS * BATCH_SIZE * MAX_LEN,
        warmup_ratio=0.2,
        clip_norm=0.5,
        ema_ratio=0.1,
        eval_freq=5,
        eval_windows=7,
    )
    windows = Windows(TokenFile(train_file), MAX_LEN, MAX_LEN)
    run = Run(GPTConfig(2, 2, 32, MAX_LEN, 257), config, windows, windows, "cpu", group)
    if load_from != "-":
        run.load_state_dict(load_state(load_from))
    found = [[r.step, r.train_loss, r.val_loss, r.val_loss_ema, r.grad_norm] for r in train(run, last_step)]
    if group.leads and save_to != "-":
        save_state(run.state_dict(), save_to)
    return found


def main(group):
    parts = [reports(group, torch.float64), reports(group, torch.float32)]
    half = STEPS if loaded != "-" else STEPS // 2
    print(json.dumps([*parts, reports(group, torch.float32, half, saved, loaded)]))


torch.set_num_threads(1)
if processes_in_environment() == 1:
    main(SINGLE)
else:
    with joined("cpu") as group:
        main(group)
