"""A worker's side: Ray's flat config dict -> TrainConfig -> the training loop -> Ray's reports and checkpoints."""

import gc
import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.tune as ray_tune

from tune.config.spec import SearchSpec
from tune.core.events import position_of
from tune.store.checkpoints import STATE_FILE, Storage

CHECKPOINT = "start_from_checkpoint"
"""key of a segment's config that holds the checkpoint to go on from, relative to the search's storage"""
CHECKPOINT_SHARE = 0.05  # of a trial's time, which checkpoints may take; those at rungs and at the end come on top
CHECKPOINT_MIN_SECONDS = 2.0  # between two checkpoints


def run_trial(
    config: dict[str, Any], search: SearchSpec, storage_root: str, rung_tokens: tuple[int, ...], threads: int, gpus: float
) -> None:
    """Ray's function trainable: trains one configuration, from the checkpoint that its config names where there is one.
    The state is stored at the `rung_tokens`, at the end, and now and then between them. Raises DataChanged where a data
    file no longer has the content that the search began with.
    """
    import torch  # here: the driver imports this module, too, and needs no torch

    from myllm.training.train import train
    from myllm.training.train_utils import load_state, save_state
    from tune.config.open_run import check_data, open_run

    torch.set_num_threads(threads)
    device = "cuda" if gpus else "cpu"
    if 0 < gpus < 1:  # no trial takes its neighbours' memory
        torch.cuda.set_per_process_memory_fraction(gpus)
    hyper_parameters = {name: value for name, value in config.items() if name != CHECKPOINT}
    run = open_run(search, hyper_parameters, device)
    files = {"train": run.train_windows.tokens, "val": run.val_windows.tokens}
    if CHECKPOINT in config:
        with Storage(storage_root).state_file(config[CHECKPOINT]) as file:
            run.load_state_dict(load_state(file))
    try:
        last_saved, cost = time.monotonic(), 0.0
        for report in train(run):
            check_data(search, files)  # a loss on another file is never reported
            metrics = asdict(report) | {"val_bpb": report.val_loss / math.log(2) / search.data.bytes_per_token}
            if compiled := run.compilation.pop_measurement():
                metrics |= asdict(compiled)
            since, position = time.monotonic() - last_saved, position_of(report.tokens_seen, report.budget_seconds)
            must = report.step == run.total_steps or position in rung_tokens
            if report.diverged or not (must or since > max(CHECKPOINT_MIN_SECONDS, cost / CHECKPOINT_SHARE)):
                ray_tune.report(metrics)
                continue
            with tempfile.TemporaryDirectory() as folder:
                start = time.monotonic()
                save_state(run.state_dict(), Path(folder) / STATE_FILE)
                cost = time.monotonic() - start
                ray_tune.report(metrics, checkpoint=ray_tune.Checkpoint.from_directory(folder))
            last_saved = time.monotonic()
    except Exception:
        check_data(search, files)  # other ids may be the cause
        raise
    finally:  # the process serves the next trial, and keeps nothing of this one
        del run, files
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
