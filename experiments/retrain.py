"""Retrains a search's best configuration and the baseline with seeds that the search did not see.

    python experiments/retrain.py experiments/runs/NAME --seeds 1001 1002

The search's own figure is flattered by selection; this one is not. Prints val_loss (nats per token, over 16 times as many
validation windows as the search reads) of both for each seed, and the difference.
"""

import argparse
import json
from pathlib import Path

import torch

from myllm.training.train import train
from tune.analysis.results import load
from tune.config.open_run import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1001], help="seeds of initialisation and data order")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for run_dir in args.runs:
        search, trials, _ = load(run_dir)
        best = json.loads((run_dir / "best_config.json").read_text())["result"]["trial_id"]
        for seed in args.seeds:
            losses = {}
            for name, trial_id in (("best", best), ("baseline", trials.baseline_id)):
                changes = {"eval_freq": search.budget_tokens, "eval_windows": 16 * search.training.eval_windows}
                *_, last = train(open_run(search, trials.by_id[trial_id].config, seed=seed, **changes))
                losses[name] = last.val_loss
            print(
                f"{run_dir.name} seed {seed}: best {losses['best']:.4f}, baseline {losses['baseline']:.4f}, "
                f"gain {losses['baseline'] - losses['best']:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
