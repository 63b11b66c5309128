"""The live comparison: versus.py in six cells, a search seed of each in turn, and the paired differences over all of them.

    python experiments/cells.py --name live --corpus tinyshakespeare TRAIN VAL --corpus docs TRAIN VAL

Cells are two corpora by nano with time for 4 and for 16 trainings a slot and micro with time for 4, all of 524,288 tokens.
A cell's seconds follow from one training of the baseline in each of the slots at once, timed before its first search; they
are kept in experiments/runs/cells-NAME.json. The five seeds take some five hours, and nothing else may run. The command
goes on where it stopped; with --seeds it stops earlier; with --report it only prints.

Printed: for each cell and peer the mean of ours minus the peer over the seeds, in nats per token, with its standard error,
and the same over all searches, with how many ours won; for each method its gain over the reference; and how often the
interval of the gain that our summary gives held what came out, where the pick had come to the end.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from myllm.system.errors import Parser, run_command
from tune.config.spec import RUNS_DIR

HERE = Path(__file__).resolve().parent
BUDGET_TOKENS = 524_288
SHAPES = (("nano", 4), ("nano", 16), ("micro", 4))
"""(preset, full trainings a slot) of each corpus's cells"""
TIMED = """
import sys
from myllm.system.files import cache_dir
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search
from versus import training
preset, budget, train_file, val_file, tokenizer = sys.argv[1:]
options = dict(space="v2", preset=preset, budget_tokens=int(budget), tokenizer=tokenizer)
search = resolve_search(SearchOptions(train_file=(train_file,), val_file=(val_file,), **options), cache_dir())
for report in training(search, search.sample(0)):
    pass
print(report.train_seconds)
"""


def seconds_of_training(preset: str, train_file: str, val_file: str, slots: int) -> float:
    """Seconds of one training of the baseline, the mean over `slots` at once."""
    asked = [preset, str(BUDGET_TOKENS), train_file, val_file, "byte"]
    running = [
        subprocess.Popen([sys.executable, "-c", TIMED, *asked], cwd=HERE.parent, env=environment(), stdout=subprocess.PIPE)
        for _ in range(slots)
    ]
    return sum(float(process.communicate()[0].split()[-1]) for process in running) / slots


def environment() -> dict[str, str]:
    """The environment in which versus.py is found."""
    return os.environ | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}


def cells(args: argparse.Namespace) -> list[dict]:
    """The cells with their seconds, timed where they are not known yet."""
    path = RUNS_DIR / f"cells-{args.name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    found = []
    for corpus, train_file, val_file in args.corpus:
        for preset, trainings in SHAPES:
            timed = f"{corpus} {preset}"
            if timed not in known and not args.report:
                known[timed] = seconds_of_training(preset, train_file, val_file, args.slots)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(known, indent=2))
            name = f"{args.name}-{corpus}-{preset}-{trainings}"
            cell = {"name": name, "preset": preset, "train_file": train_file, "val_file": val_file}
            found.append(cell | {"seconds": round(trainings * known.get(timed, 0.0), 1)})
    return found


def report(args: argparse.Namespace, found: list[dict]) -> None:
    """Prints the paired differences of each cell and over all cells."""
    tables = []
    for cell in found:
        path = RUNS_DIR / f"versus-{cell['name']}" / "results.csv"
        if path.exists():
            table = pd.read_csv(path)
            tables.append(table[table["share"] == 1].assign(cell=cell["name"]))
    if not tables:
        return
    every = pd.concat(tables)
    wide = every.pivot(index=["cell", "search_seed"], columns="method", values="val_loss")
    for peer in (method for method in wide if method != "ours"):
        less = (wide["ours"] - wide[peer]).dropna()
        for cell, values in [*less.groupby(level="cell"), ("all", less)]:
            error = values.std(ddof=1) / len(values) ** 0.5
            print(
                f"{cell:36} ours minus {peer:7} {values.mean():+.4f} +- {error:.4f}, ahead in {(values < 0).sum()} of "
                f"{len(values)}"
            )
    for method, gains in every.groupby("method")["gain"]:
        print(
            f"{method:8} {gains.mean():+.4f} below the reference, worst {gains.min():+.4f}, above it in {(gains < 0).sum()}"
        )
    held = [claim for row in every[every["method"] == "ours"].itertuples() if (claim := claim_held(row)) is not None]
    print(f"the interval of the gain held what came out in {sum(held)} of {len(held)}")


def claim_held(row: Any) -> bool | None:
    """True if our interval of the gain of a row's pick holds what came out; None where there was no such interval."""
    folder = RUNS_DIR / f"versus-{row.cell}" / f"ours-{row.search_seed}" / "search"
    said = json.loads((folder / "best_config.json").read_text())["result"]
    if said["tokens_seen"] < BUDGET_TOKENS or "gain_low" not in said:
        return None
    return said["gain_low"] <= row.gain <= said["gain_high"]


def main() -> None:
    parser = Parser(prog="cells.py", description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the comparison")
    parser.add_argument("--corpus", nargs=3, action="append", required=True, metavar=("NAME", "TRAIN", "VAL"), help="twice")
    parser.add_argument("--methods", nargs="+", default=["ours", "ray", "optuna"], help="as in versus.py")
    parser.add_argument("--seeds", type=int, default=5, help="search seeds of each cell")
    parser.add_argument("--slots", type=int, default=2, help="trainings at once, a core each")
    parser.add_argument("--report", action="store_true", help="print what is there, and search nothing")
    args = parser.parse_args()
    found = cells(args)
    for seeds in range(1, args.seeds + 1 if not args.report else 1):
        for cell in found:
            flags = [part for name, value in cell.items() for part in (f"--{name}", str(value))]
            flags += ["--budget_tokens", str(BUDGET_TOKENS), "--slots", str(args.slots), "--shares", "1"]
            flags += ["--seeds", str(seeds), "--methods", *args.methods]
            print(f"{time.strftime('%H:%M:%S')} seed {seeds} of {args.seeds}, {cell['name']}", flush=True)
            subprocess.run([sys.executable, HERE / "versus.py", *flags], check=True, env=environment(), stdout=sys.stderr)
        report(args, found)
    if args.report:
        report(args, found)


if __name__ == "__main__":
    run_command(main)
