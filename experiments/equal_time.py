"""Searches at equal time against searches at equal tokens, and how exactly trainings with a time end.

    python myllm/data.py --input tinyshakespeare.txt --out_dir data --tokenizer byte
    python experiments/equal_time.py ends                               # 5 trainings of 20 s: about 3 minutes
    python experiments/equal_time.py picks --name docs                  # about 16 minutes on two quiet cores
    python experiments/equal_time.py picks --name shakespeare --train_file data/train_ids.bin --val_file data/val_ids.bin

`ends` trains five configurations, one after another, that differ in batch, block, optimizer and size. It prints by how much
the seconds of their steps miss --seconds, and the wall time with evaluations.

`picks` runs two searches of space v2 and preset nano for --time_budget seconds each: one at --seconds a training, the other
at the tokens that the baseline trains on in that time here. The pick of each is then trained for --seconds on seeds that no
search saw, side by side with the other, and scored by val_loss over 16 times as many validation windows.

Both write a line a result to experiments/runs/equal-time-NAME.jsonl, and go on where they stopped. Leave the machine to
them: a training with a time trains on fewer tokens beside others.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from myllm.system.errors import InputError, Parser, run_command
from myllm.text.format import format_value
from myllm.training.train import Run, mean_loss, train
from tune.config.open_run import open_run
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search
from tune.config.spec import RUNS_DIR, BuiltinSearch, read_search

ROOT = Path(__file__).resolve().parent.parent
FIVE: dict[str, dict[str, Any]] = {
    "baseline": {},
    "batch 4": {"batch_size": 4},
    "batch 64": {"batch_size": 64},
    "muon": {"optimizer": "muon"},
    "modern, 4 layers": {"norm": "rmsnorm", "position": "rotary", "mlp": "swiglu", "qk_norm": True, "n_layer": 4},
}
UNSEEN_SEED = 1001  # the first of those that trainings of the picks have


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, row: dict[str, Any]) -> None:
    """Writes a result, and prints it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print("  ".join(f"{name} {format_value(value)}" for name, value in row.items()), flush=True)


def spec_of(args: Any, **options: Any) -> BuiltinSearch:
    """The settings of a search on the data that the flags name."""
    files = {name: tuple(getattr(args, name)) for name in ("train_file", "val_file") if getattr(args, name)}
    return resolve_search(SearchOptions(budget_seconds=args.seconds, **files, **options), ROOT / "experiments" / "runs")


def trained(search: BuiltinSearch, values: dict[str, Any], seed: int, seconds: float) -> tuple[Run, float]:
    """A configuration, trained for `seconds` on a seed, and its val_loss on 16 times the usual windows."""
    run = open_run(search, values, budget_tokens=None, budget_seconds=seconds, seed=seed)
    for _ in train(run):
        pass
    return run, mean_loss(run, run.val_windows, run.val_windows.spread(16 * run.config.eval_windows))


def ends(args: Any, path: Path) -> None:
    """Trains FIVE for the time asked."""
    search = spec_of(args)
    known = {row["trained"] for row in rows_of(path) if row.get("asked") == args.seconds}
    for name, values in FIVE.items():
        if name not in known:
            run, loss = trained(search, search.baseline | values, 0, args.seconds)
            took = run.pace.seconds if run.pace else 0.0
            row = {"trained": name, "asked": args.seconds, "steps_took": took, "off": took / args.seconds - 1}
            add(path, row | {"with_evaluations": run.train_seconds, "tokens": run.tokens_seen, "val_loss": loss})
    worst = max(abs(row["off"]) for row in rows_of(path) if row.get("asked") == args.seconds)
    print(f"at most {worst:.1%} off")


def picks(args: Any, path: Path) -> None:
    """Runs both searches for each seed, and trains their picks for the same time."""
    baseline = next((row for row in rows_of(path) if "baseline_tokens" in row), None)
    if baseline is None:
        run, _ = trained(search := spec_of(args), search.baseline, 0, args.seconds)
        add(path, baseline := {"baseline_tokens": run.tokens_seen, "seconds": args.seconds})
    lengths = {"time": ["--budget_seconds", args.seconds], "tokens": ["--budget_tokens", baseline["baseline_tokens"]]}
    for seed in range(args.seeds):
        found = {}
        for kind, length in lengths.items():
            folder = RUNS_DIR / f"equal-{kind}-{args.name}-{seed}"
            if not (folder / "summary.json").exists():
                words = ["--resume", folder] if (folder / "search.json").exists() else ["--name", folder.name, *length]
                if words[0] == "--name":
                    words += ["--space", "v2", "--seed", seed, "--time_budget", args.time_budget, "--stall_timeout", 3600]
                    for name in ("train_file", "val_file"):
                        words += [f"--{name}", *getattr(args, name)] if getattr(args, name) else []
                    words += ["--max_concurrent", args.max_concurrent] if args.max_concurrent else []
                subprocess.run([sys.executable, str(ROOT / "tune" / "search.py"), *map(str, words)], check=True)
            found[kind] = read_search(folder), json.loads((folder / "summary.json").read_text())["best"]["config"]
        done = {(row["search"], row["of"], row["unseen_seed"]) for row in rows_of(path) if "search" in row}
        for unseen in range(UNSEEN_SEED, UNSEEN_SEED + args.retrainings):
            for kind, (search, config) in found.items():
                if (kind, seed, unseen) not in done:
                    run, loss = trained(search, config, unseen, args.seconds)
                    row = {"search": kind, "of": seed, "unseen_seed": unseen, "val_loss": loss}
                    add(path, row | {"tokens": run.tokens_seen} | config)
    losses = {kind: [row["val_loss"] for row in rows_of(path) if row.get("search") == kind] for kind in lengths}
    for kind, each in losses.items():
        print(f"equal {kind}: {statistics.fmean(each):.4f} ({len(each)} trainings)")


def flags() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "--name", {"default": "builtin", "help": "of the results"}
    yield "--train_file", {"nargs": "+", "default": [], "help": "training data (default: the built-in corpus)"}
    yield "--val_file", {"nargs": "+", "default": [], "help": "validation data"}
    yield "--seconds", {"type": float, "default": 20.0, "help": "of a full training"}
    yield "--time_budget", {"type": float, "default": 300.0, "help": "of each search, seconds"}
    yield "--seeds", {"type": int, "default": 1, "help": "searches of each kind"}
    yield "--retrainings", {"type": int, "default": 4, "help": "of each pick, on unseen seeds"}
    yield "--max_concurrent", {"type": int, "default": None, "help": "trainings at once in a search"}


def main() -> None:
    parser = Parser(prog="equal_time.py", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["ends", "picks"])
    for name, how in flags():
        parser.add_argument(name, **how)
    args = parser.parse_args()
    if args.seconds <= 0 or args.time_budget <= 0:
        raise InputError("--seconds and --time_budget must be above 0")
    torch.set_num_threads(1)
    path = RUNS_DIR / f"equal-time-{args.name}.jsonl"
    (ends if args.what == "ends" else picks)(args, path)


if __name__ == "__main__":
    run_command(main)
