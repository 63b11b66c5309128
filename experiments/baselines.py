"""How far are the presets' baselines behind the best configuration of each recorded table?

    python experiments/baselines.py                # a minute on one core

A baseline lies between a table's configurations, so its loss is that of the smooth fit (curves.py, Surrogate). The batch is
the table's nearest in tokens a step, as a search clips it to its ranges. The best is the lowest mean loss of the table.
Printed, in nats per token: the loss of the baseline before 2026-11-30 and of today's, behind the best.
"""

import dataclasses
from pathlib import Path

import numpy as np
from curves import Surrogate, read_curves

from myllm.presets import PRESETS
from myllm.system.errors import run_command

DATA = Path(__file__).parent / "data"
SHAPES = {
    "embedded-long": ("nano", {"n_layer": 1, "n_head": 1, "n_embd": 32, "block_size": 64}),
    "docs-wsd": ("nano", {"n_layer": 3, "n_head": 1, "n_embd": 48, "block_size": 64}),
    "shakespeare-micro": ("micro", {}),
}
"""Preset and changes of the shape, of tables that are not nano's."""
BEFORE = {"embedded-long": (6e-3, 2048), "docs-wsd": (4e-3, 1024), "shakespeare-micro": (2e-3, 2048)}
"""Learning rate and tokens a step that each table's baseline had; of the others 3e-3 and 2,048."""


def main() -> None:
    print("| table | tokens | best | before | now | behind, before | behind, now |\n|-|-|-|-|-|-|-|")
    behind = []
    for path in sorted(DATA.glob("*.csv.gz")):
        name = path.name.removesuffix(".csv.gz")
        curves = read_curves(path)
        surrogate, best = Surrogate(curves), curves.means.min()
        preset, changes = SHAPES.get(name, ("nano", {}))
        model = dataclasses.replace(PRESETS[preset].model(257), **changes)
        now = PRESETS[preset].at(curves.budget, model)
        points = [BEFORE.get(name, (3e-3, 2048)), (now.learning_rate, now.batch_size * model.block_size)]
        sizes = np.unique(surrogate.columns["batch_size"])
        losses = []
        for rate, step in points:
            windows = sizes[np.abs(np.log(sizes * model.block_size / step)).argmin()]
            asked = {"learning_rate": rate, "batch_size": windows, "warmup_ratio": 0.02, "clip_norm": 1.0}
            columns = {key: np.array([float(asked[key])]) for key in surrogate.columns}
            losses.append(float(np.exp(surrogate.predict(columns)[0, -1])))
        behind.append([loss - best for loss in losses])
        figures = " | ".join(f"{value:.3f}" for value in (best, *losses, *behind[-1]))
        print(f"| {name} | {curves.budget:,} | {figures} |", flush=True)
    for title, figure in (("mean", np.mean(behind, axis=0)), ("worst", np.max(behind, axis=0))):
        print(f"| {title} | | | | | {figure[0]:.3f} | {figure[1]:.3f} |")


if __name__ == "__main__":
    run_command(main)
