"""Runs, or goes on with, the search in a folder, as tune/search.py does: python driver.py RUN_DIR SLOTS [FAULT]

FAULT `oom` makes the first trial run out of memory above 3 windows, the others at any. This file is the main module, so Ray
sends its functions to the workers by value.
"""

import json
import sys
from pathlib import Path

from myllm.errors import run_command
from tune import runner
from tune.settings import Resources
from tune.state import DEFAULT_TRIAL
from tune.trainable import run_trial


def out_of_memory(config, task):
    import torch
    from ray import tune

    from myllm.model import GPT

    forward = GPT.forward
    windows = 3 if tune.get_context().get_trial_id().startswith(DEFAULT_TRIAL) else 0

    def limited(self, ids, targets=None):
        if len(ids) > windows:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return forward(self, ids, targets)

    GPT.forward = limited
    try:
        run_trial(config, task)
    finally:
        GPT.forward = forward


def main():
    run_dir, slots, *fault = sys.argv[1:]
    search = json.loads((Path(run_dir) / "search.json").read_text())
    if fault == ["oom"]:
        runner.run_trial = out_of_memory
    finished = runner.run_search(Path(run_dir), search, Resources(1, 0, int(slots)))
    return 0 if finished else 130


if __name__ == "__main__":
    run_command(main)
