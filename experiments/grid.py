"""The loss of full trainings at each of a few learning rates and batch sizes, with each optimizer, on several seeds.

    python myllm/data.py --input tinyshakespeare.txt --out_dir data --tokenizer byte
    python experiments/grid.py --name docs --optimizers adamw muon --seeds 3
    python experiments/grid.py --name perl --train_file perl/train_ids.bin --val_file perl/val_ids.bin \\
        --preset nano-modern --rates 1e-3 2e-3 4e-3 --batch_sizes 1 2 4

A training of nano takes 15 to 30 s of a core. Writes a line a training to experiments/runs/grid-NAME.jsonl, goes on where
it stopped, and prints a table of means over seeds: val_loss in nats per token, over 16 times as many windows as a search
reads, and the CPU seconds of a training.
"""

import itertools
import json
import statistics
import time
from typing import Any

import torch

from myllm.presets import get_preset
from myllm.system.errors import Parser, run_command
from myllm.training.train import mean_loss, train
from tune.config.open_run import open_run
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search
from tune.config.spec import RUNS_DIR

POINT = ("optimizer", "batch_size", "learning_rate", "seed")


def parse() -> Any:
    """Returns the flags."""
    parser = Parser(prog="grid.py", description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="builtin", help="of the results")
    parser.add_argument("--train_file", nargs="+", default=[], help="training data (default: the built-in corpus)")
    parser.add_argument("--val_file", nargs="+", default=[], help="validation data")
    parser.add_argument("--preset", default="nano", help="model, and budget without --budget_tokens")
    parser.add_argument("--budget_tokens", type=int, default=None, help="of a full training")
    parser.add_argument("--optimizers", nargs="+", default=["adamw"], help="adamw, muon")
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2], help="learning rates")
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[], help="windows a step (default: the preset's)")
    parser.add_argument("--seeds", type=int, default=1, help="of initialisation and data order")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    files = {name: tuple(getattr(args, name)) for name in ("train_file", "val_file") if getattr(args, name)}
    length = {"budget_tokens": args.budget_tokens} if args.budget_tokens else {}
    search = resolve_search(SearchOptions(preset=args.preset, **files, **length), RUNS_DIR)
    path = RUNS_DIR / f"grid-{args.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    asked = {"preset": args.preset, "tokens": search.budget_tokens}
    rows = [row for row in rows if asked.items() <= row.items()]
    done = {tuple(row[name] for name in POINT) for row in rows}
    batch_sizes = args.batch_sizes or [get_preset(args.preset).batch_size]
    for seed, *point in itertools.product(range(args.seeds), args.optimizers, batch_sizes, args.rates):
        values: dict[str, Any] = dict(zip(POINT, (*point, seed), strict=True))
        if tuple(values.values()) in done:
            continue
        settings = search.baseline | {name: value for name, value in values.items() if name != "seed"}
        begin, run = time.process_time(), open_run(search, settings, seed=seed, eval_freq=10**9)
        for _ in train(run):
            pass
        took = time.process_time() - begin
        loss = mean_loss(run, run.val_windows, run.val_windows.spread(16 * run.config.eval_windows))
        rows.append(asked | values | {"val_loss": loss, "cpu_seconds": took})
        with path.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    print("| optimizer | windows a step | rate | val_loss | CPU s |\n|-|-|-|-|-|")
    for optimizer, windows, rate in itertools.product(args.optimizers, batch_sizes, args.rates):
        point = dict(zip(POINT, (optimizer, windows, rate), strict=False))
        found = [row for row in rows if point.items() <= row.items()]
        loss, seconds = (statistics.fmean(row[name] for row in found) for name in ("val_loss", "cpu_seconds"))
        print(f"| {optimizer} | {windows} | {rate:g} | {loss:.4f} | {seconds:.1f} |")


if __name__ == "__main__":
    run_command(main)
