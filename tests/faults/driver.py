"""Runs, or goes on with, the search in a folder, as tune/search.py does: python driver.py RUN_DIR SLOTS [FAULT]

FAULT `oom:N` makes every trial run out of memory above N windows. This file is the main module, so Ray sends its functions
to the workers by value.
"""

import json
import sys
from pathlib import Path

from myllm.errors import run_command
from tune import runner
from tune.settings import Resources
from tune.trainable import run_trial


def out_of_memory(config, task, windows):
    import torch

    from myllm.model import GPT

    forward = GPT.forward

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
    if fault and fault[0].startswith("oom:"):
        windows = int(fault[0][4:])
        runner.run_trial = lambda config, task: out_of_memory(config, task, windows)
    finished = runner.run_search(Path(run_dir), search, Resources(1, 0, int(slots)))
    return 0 if finished else 130


if __name__ == "__main__":
    run_command(main)
