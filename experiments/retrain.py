"""Retrains a search's best configuration and the default one with seeds that the search did not see.

    python experiments/retrain.py experiments/runs/NAME --seeds 1001 1002

The search's own figure is flattered by selection; this one is not. Prints val_loss (nats per token, over 16 times as many
validation windows as the search reads) of both for each seed, and the difference.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import torch

from myllm.config import GPTConfig, from_dict
from myllm.data import Windows, prepare
from myllm.tokenizer import get_tokenizer
from myllm.training.train import Run, train
from tune.results import read_tables
from tune.state import DEFAULT_TRIAL
from tune.trainable import trial_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1001], help="seeds of initialisation and data order")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for run_dir in args.runs:
        best = json.loads((run_dir / "best_config.json").read_text())
        search = json.loads((run_dir / "search.json").read_text())
        data = best["data"]
        encoding = get_tokenizer(data["tokenizer"])
        how = {name: data.get(name) for name in ("token_dtype", "text_column")}
        trials, _ = read_tables(run_dir)
        default = trials.set_index("trial_id").loc[DEFAULT_TRIAL]
        names = [name for name in trials.columns if name in search["ranges"]]
        reference = {name: default[name].item() for name in names}
        configs = {
            "best": trial_config(search["train"], search["report_tokens"], {n: best["train"][n] for n in names}),
            "default": trial_config(search["train"], search["report_tokens"], reference),
        }
        for seed in args.seeds:
            losses = {}
            for name, config in configs.items():
                config = dataclasses.replace(
                    config, seed=seed, eval_freq=config.budget_tokens, eval_windows=16 * config.eval_windows
                )
                tokens = [
                    prepare(data[f"{split}_file"], split, data["tokenizer"], encoding, **how) for split in ("train", "val")
                ]
                windows = [Windows(ids, config.max_len, config.stride) for ids in tokens]
                *_, last = train(Run(from_dict(GPTConfig, best["model"], "model"), config, *windows))
                losses[name] = last.val_loss
            print(
                f"{run_dir.name} seed {seed}: best {losses['best']:.4f}, default {losses['default']:.4f}, "
                f"gain {losses['default'] - losses['best']:.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
