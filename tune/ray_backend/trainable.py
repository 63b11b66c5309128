"""The only bridge: Ray's flat config dict -> TrainConfig -> the training loop -> Ray's reports and checkpoints."""

import functools
import gc
import math
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray import tune

from tune.config.spec import SearchSpec
from tune.store.checkpoints import STATE_FILE

CHECKPOINT_SHARE = 0.05  # of the time that checkpoints may take, rungs and the last one apart
CHECKPOINT_MIN_SECONDS = 2.0


@functools.cache
def keep_imports() -> None:
    """Takes what this process has loaded by now out of the garbage collector's sight, once.

    To look through it after every trial took 0.04 s, a tenth of a short one. The first trial loads more of torch, so this
    comes after it.
    """
    gc.freeze()


def run_trial(config: dict[str, Any], search: SearchSpec, rung_tokens: tuple[int, ...], threads: int, gpus: float) -> None:
    """Ray's function trainable: trains one configuration, from the trial's latest checkpoint where there is one.

    It stores its state at the `rung_tokens` (tokens_seen), where it may be told to pause, and now and then between them.
    """
    import torch  # here: the driver imports this module, too

    from myllm.training.train import train
    from myllm.training.train_utils import load_state, save_state
    from tune.config.open_run import open_run

    torch.set_num_threads(threads)
    device = "cuda" if gpus else "cpu"
    if 0 < gpus < 1:  # one trial's hunger is not its neighbours'
        torch.cuda.set_per_process_memory_fraction(gpus)
    run = open_run(search, config, device)
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            run.load_state_dict(load_state(Path(folder) / STATE_FILE))
    try:
        last_saved, cost = time.monotonic(), 0.0
        for report in train(run):
            metrics = asdict(report) | {"val_bpb": report.val_loss / math.log(2) / search.data.bytes_per_token}
            if compiled := run.compilation.pop_measurement():
                metrics |= asdict(compiled)
            since = time.monotonic() - last_saved
            must = report.step == run.total_steps or report.tokens_seen in rung_tokens
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
        if device == "cuda":
            torch.cuda.empty_cache()
