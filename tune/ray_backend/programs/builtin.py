"""The built-in training as a training program."""

import gc
import math
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from myllm.training.train import train
from myllm.training.train_utils import load_state, save_state
from tune.config.function import Train
from tune.config.open_run import check_data, open_run
from tune.config.spec import BuiltinSearch
from tune.ray_backend.programs.partners import GO, STOP, Job, partners
from tune.store.checkpoints import STATE_FILE


def builtin_program(search: BuiltinSearch, threads: int, gpus: float, processes: int) -> Train:
    """The contract's function for the built-in training. Its reports have all that the journal keeps.

    It raises DataChanged where a data file no longer has the content that the search began with.
    """
    device = "cuda" if gpus else "cpu"

    def train_trial(
        settings: dict[str, Any], budget: int, folder: Path, resume: bool
    ) -> Generator[dict[str, Any] | None, str | None, None]:
        torch.set_num_threads(threads)
        if 0 < gpus < 1:  # no trial takes its neighbours' memory
            torch.cuda.set_per_process_memory_fraction(gpus)
        state_file = folder / STATE_FILE if resume else None
        store = str(folder.with_name("meeting"))
        with partners(Job(search, settings, store, state_file, threads, gpus > 0), processes) as group:
            run = open_run(search, settings, device, group)
            files = {"train": run.train_windows.tokens, "val": run.val_windows.tokens}
            if state_file:
                run.load_state_dict(load_state(state_file))
            try:
                for report in train(run):
                    check_data(search, files)  # a loss on another file is never reported
                    metrics = asdict(report) | {"val_bpb": report.val_loss / math.log(2) / search.data.bytes_per_token}
                    if compiled := run.compilation.pop_measurement():
                        metrics |= asdict(compiled)
                    if (yield metrics) == "save":
                        save_state(run.state_dict(), folder / STATE_FILE)
                        yield None
                    group.that_of_first(GO)
            except GeneratorExit:  # at a report, where the other processes wait
                group.that_of_first(STOP)
            except Exception:
                check_data(search, files)  # other ids may be the cause
                raise
            finally:  # the process serves the next trial, and keeps nothing of this one
                del run, files
                gc.collect()
                if device == "cuda":
                    torch.cuda.empty_cache()

    return train_trial
