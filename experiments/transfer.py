"""Where the best learning rate lies when the model gets wider or the training longer: what trainer.py's rules are held to.

    python experiments/transfer.py transfer.csv             # trains, goes on where the file ends; two hours of one core
    python experiments/transfer.py transfer.csv --only nano # one setting
    python experiments/transfer.py transfer.csv --show      # the tables of what is there

nano at a quarter of its budget, in batches of 4 (384 steps); the same with 2 and 4 times the width, and with 4 times the
tokens. Eight rates, three seeds, a warm-up of a tenth, the built-in corpus; val_loss (nats per token) over 256 windows at
the end.
"""

import argparse
import csv
import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from myllm.datasets.load_tokens import prepare
from myllm.datasets.tokenizer import get_tokenizer
from myllm.datasets.windows import Windows
from myllm.presets import PRESETS
from myllm.training.train import Run, train

BUDGET = 196_608
SETTINGS = {"nano": (1, 1), "wide": (2, 1), "long": (1, 4), "wider": (4, 1)}
"""times the width, times the tokens"""
RATES = (5.3e-4, 7.5e-4, 1.06e-3, 1.5e-3, 2.1e-3, 3e-3, 4.2e-3, 6e-3)
SEEDS = (1, 2, 3)
COLUMNS = ("setting", "parameters", "learning_rate", "seed", "val_loss")


def open_run(width: int, length: int, rate: float, seed: int, windows: list[Windows]) -> Run:
    """nano, `width` times as wide with heads of the same size, for `length` times the tokens."""
    preset = PRESETS["nano"]
    model = dataclasses.replace(preset.model(257), n_embd=width * preset.n_embd, n_head=width * preset.n_head)
    budget = {
        "budget_tokens": length * BUDGET,
        "batch_size": 4,
        "eval_freq": 10**6,
        "eval_windows": 256,
        "warmup_ratio": 0.1,
    }
    config = preset.training(learning_rate=rate, seed=seed, train_eval_windows=1, **budget)
    return Run(model, config, *windows)


def best_rate(losses: pd.Series) -> float:
    """The lowest point of a parabola through the lowest mean and its neighbours, over the logarithm of the rate."""
    at = int(np.clip(losses.to_numpy().argmin(), 1, len(losses) - 2))
    part = losses.iloc[at - 1 : at + 2]
    a, b, _ = np.polyfit(np.log(part.index), part.to_numpy(), 2)
    return float(np.exp(-b / (2 * a)))


def show(path: str) -> None:
    table = pd.read_csv(path)
    means = table.pivot_table("val_loss", "learning_rate", "setting")[[s for s in SETTINGS if s in set(table["setting"])]]
    noise = table.groupby(["setting", "learning_rate"])["val_loss"].std().groupby("setting").mean()
    print(means.round(4).to_string(), "\n\nstandard deviation between seeds:", noise.round(4).to_dict())
    rates = {s: best_rate(means[s].dropna()) for s in means if means[s].notna().sum() == len(RATES)}
    for setting, rate in rates.items():
        by_seed = [
            best_rate(part.set_index("learning_rate")["val_loss"].sort_index())
            for _, part in table[table["setting"] == setting].groupby("seed")
            if len(part) == len(RATES)
        ]
        line = f"{setting}: best at {rate:.2e} ({', '.join(f'{r:.2e}' for r in sorted(by_seed))} by seed)"
        if setting != "nano" and "nano" in rates:
            width, length = SETTINGS[setting]
            line += f"; to the power {np.log(rate / rates['nano']) / np.log(max(width, length)):.2f} of what was multiplied"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", help="one row a training")
    parser.add_argument("--only", choices=list(SETTINGS), nargs="+", default=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--show", action="store_true", help="print what is there, and train nothing")
    args = parser.parse_args()
    if args.show:
        return show(args.csv)
    torch.set_num_threads(args.threads)
    path, tokenizer = Path(args.csv), get_tokenizer("byte")
    done = set()
    if path.exists():
        done = {(row["setting"], float(row["learning_rate"]), int(row["seed"])) for row in csv.DictReader(path.open())}
    else:
        path.write_text(",".join(COLUMNS) + "\n")
    windows = [Windows(prepare("builtin", split, "byte", tokenizer), 128, 128) for split in ("train", "val")]
    for setting in args.only:
        for seed in SEEDS:
            for rate in RATES:
                if (setting, rate, seed) in done:
                    continue
                run = open_run(*SETTINGS[setting], rate, seed, windows)
                *_, last = train(run)
                parameters = sum(p.numel() for p in run.parameters)
                with open(path, "a") as file:
                    csv.writer(file).writerow([setting, parameters, rate, seed, round(last.val_loss, 5)])
    show(args.csv)


if __name__ == "__main__":
    main()
