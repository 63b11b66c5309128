"""Runs, or goes on with, the search in a folder, as tune/search.py does: python driver.py RUN_DIR SLOTS [FAULT]

FAULT `oom` makes the first trial run out of memory above 3 windows, the others at any; `own` adds a rule to the registry;
`join` makes a new start cheap, so that trials take idle slots at once.
This file is the main module, so Ray sends its functions to the workers by value.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # own_rule

from myllm.system.errors import run_command
from tune.config.resolve import Resources
from tune.config.spec import read_search
from tune.core import slots as slots_module
from tune.core.schedulers import SCHEDULERS
from tune.ray_backend.cluster import join_cluster


def out_of_memory(config, **task):
    import ray.tune as ray_tune
    import torch

    from myllm.models.gpt import GPT
    from tune.ray_backend.trainable import run_trial

    forward = GPT.forward
    windows = 3 if ray_tune.get_context().get_trial_id().startswith("t00000") else 0

    def limited(self, ids, targets=None):
        if len(ids) > windows:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return forward(self, ids, targets)

    GPT.forward = limited
    try:
        run_trial(config, **task)
    finally:
        GPT.forward = forward


def storing_often(config, **task):
    from tune.ray_backend import trainable

    trainable.CHECKPOINT_MIN_SECONDS, trainable.CHECKPOINT_SHARE = 0.1, 1e6
    trainable.run_trial(config, **task)


def main():
    run_dir, slots, *fault = sys.argv[1:]
    if fault == ["own"]:
        from own_rule import OwnRule

        SCHEDULERS["own"] = OwnRule
    search = read_search(Path(run_dir))
    if search.options.address:
        join_cluster(search.options.address)
    from tune.ray_backend import tuner  # imports Ray, which then knows whether it joins a cluster

    if fault == ["oom"]:
        tuner.run_trial = out_of_memory
    if fault == ["join"]:
        slots_module.JOIN_SECONDS = 0.01
        tuner.run_trial = storing_often
    processes = search.options.processes_a_slot
    finished = tuner.run_search(Path(run_dir), search, Resources(processes, 0, int(slots), processes))
    return 0 if finished else 130


if __name__ == "__main__":
    run_command(main)
