"""Muon against AdamW: the loss of both at each of a few learning rates, on several seeds.

    python myllm/data.py --input tinyshakespeare.txt --out_dir data --tokenizer byte
    python experiments/muon.py --name docs
    python experiments/muon.py --name shakespeare --train_file data/train_ids.bin --val_file data/val_ids.bin

Trains the preset with each optimizer, rate and seed to its full budget: 30 trainings, of nano about 15 minutes of a core,
with --batch_size 16 about 5.
Writes a line a training to experiments/runs/muon-NAME.jsonl, goes on where it stopped, and prints a table of means over
seeds: val_loss in nats per token, over 16 times as many windows as a search reads, and the CPU seconds of a training.
"""

import json
import statistics
import time
from typing import Any

import torch

from myllm.system.errors import Parser, run_command
from myllm.training.train import mean_loss, train
from tune.config.open_run import open_run
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search
from tune.config.spec import RUNS_DIR

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)


def main() -> None:
    parser = Parser(prog="muon.py", description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="builtin", help="of the results")
    parser.add_argument("--train_file", nargs="+", default=[], help="training data (default: the built-in corpus)")
    parser.add_argument("--val_file", nargs="+", default=[], help="validation data")
    parser.add_argument("--preset", default="nano", help="model and budget")
    parser.add_argument("--batch_size", type=int, default=None, help="windows a step (default: the preset's)")
    parser.add_argument("--seeds", type=int, default=3, help="of initialisation and data order")
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = {name: tuple(getattr(args, name)) for name in ("train_file", "val_file") if getattr(args, name)}
    search = resolve_search(SearchOptions(preset=args.preset, **files), RUNS_DIR)
    path = RUNS_DIR / f"muon-{args.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    done = {(row["optimizer"], row["rate"], row["seed"]) for row in rows}
    for seed in range(args.seeds):
        for rate in RATES:
            for optimizer in ("adamw", "muon"):
                if (optimizer, rate, seed) in done:
                    continue
                values: dict[str, Any] = search.baseline | {"learning_rate": rate, "optimizer": optimizer}
                values |= {"batch_size": args.batch_size} if args.batch_size else {}
                begin, run = time.process_time(), open_run(search, values, seed=seed, eval_freq=10**9)
                for _ in train(run):
                    pass
                took = time.process_time() - begin
                loss = mean_loss(run, run.val_windows, run.val_windows.spread(16 * run.config.eval_windows))
                rows.append({"optimizer": optimizer, "rate": rate, "seed": seed, "val_loss": loss, "cpu_seconds": took})
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    print("| rate | adamw | muon | CPU s, adamw | CPU s, muon |\n|-|-|-|-|-|")
    for rate in RATES:
        found = [[row for row in rows if row["optimizer"] == name and row["rate"] == rate] for name in ("adamw", "muon")]
        losses = [f"{statistics.fmean(row['val_loss'] for row in each):.4f}" for each in found]
        seconds = [f"{statistics.median(row['cpu_seconds'] for row in each):.1f}" for each in found]
        print(f"| {rate:g} | {' | '.join(losses + seconds)} |")


if __name__ == "__main__":
    run_command(main)
