"""How often the intervals of a report hold the truth, and its probabilities come true: by simulation.

    python experiments/coverage.py
    python experiments/coverage.py --worlds 4 --functions 10 --seed 6

Searches are played in worlds fitted to the recorded tables (curves.py), where the expected loss of each configuration is
known: the interval of the best one's loss, that of its gain over the default (the configuration in the middle of the
ranges), and the probability that it is the best of those that came to the end. Importance: random functions with random
length scales, observed with noise at random places; the truth is Sobol's index from many points.
"""

import itertools
import random
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from curves import Surrogate, read_curves
from replay import Replay
from scipy.optimize import minimize
from scipy.special import logit

from myllm.system.errors import Parser, run_command
from tune.analysis.axes import Axis
from tune.analysis.posterior import expected_losses, interval
from tune.analysis.response_surface import ResponseSurface
from tune.analysis.results import leaderboard, posterior_summary
from tune.config.options import SearchOptions
from tune.core.search_space import LINEAR, Range
from tune.core.simulator import play

LENGTHS = (4, 8, 16, 32)
"""full trainings' worth of time a slot"""
BINS = (0.0, 0.4, 0.6, 0.8, 0.95, 1.01)


def search_in(world, length: int, order: str) -> dict | None:
    """What the report of one search says, beside the truth; None where no configuration was seen twice."""
    replay = Replay(world, SearchOptions(time_budget=1.0), 2, random.Random(order))
    replay.begin_with(world.middle)  # the default
    play(replay.coordinator, replay.loss, length * world.budget)
    trials = replay.trials
    table = leaderboard(trials)
    best = posterior_summary(table, trials.baseline_id).iloc[0]
    if np.isnan(best["low"]) or table["tokens_seen"].iloc[0] < world.budget or table["seeds"].iloc[0] < 2:
        return None
    truth = {trial_id: world.truth[trials.by_id[trial_id].config["row"]] for trial_id in table.index}
    mine = truth[table.index[0]]
    found = {
        "loss": best["low"] <= mine <= best["high"],
        "below": mine < best["low"],
        "probability": best["probability_best"],
        "odds": float(logit(best["probability_best"])),
        "is_best": mine <= min(truth.values()),
        "width": best["high"] - best["low"],
    }
    if trials.baseline_id in truth and table.index[0] != trials.baseline_id:
        found["gain"] = best["gain_low"] <= truth[trials.baseline_id] - mine <= best["gain_high"]
    return found


def fitted(rows: list[dict]) -> np.ndarray:
    """(2,) what is added to the log-odds of `probability` and what they are multiplied by, so that most comes true."""
    odds, true = (np.array([row[name] for row in rows]) for name in ("odds", "is_best"))
    return minimize(lambda w: np.logaddexp(0, np.where(true, -1, 1) * (w[0] + w[1] * odds)).mean(), [0.0, 1.0]).x


def in_theory(searches: int, rng: np.random.Generator) -> tuple[float, float]:
    """Coverage of the best's interval, and of that of a default seen once, where noise is normal and alike for all."""
    held, gains = [], []
    for _ in range(searches):
        truth = rng.normal(0, 0.03, 8)
        losses = [truth[i] + 0.02 * rng.standard_normal(4 if i in (0, 1) else 2 if i < 6 else 1) for i in range(8)]
        best = min(range(1, 6), key=lambda i: losses[i].mean())
        drawn = expected_losses(losses, baseline=7)
        low, high = interval(drawn[:, best])
        held.append(low <= truth[best] <= high)
        low, high = interval(drawn[:, 7] - drawn[:, best])
        gains.append(low <= truth[7] - truth[best] <= high)
    return float(np.mean(held)), float(np.mean(gains))


class Random(ResponseSurface):
    """The surface of trials of a random function: Fourier features of a Matern 5/2 process."""

    def __init__(self, count: int, rng: np.random.Generator, dimensions: int = 4, features: int = 400):
        scales = np.exp(rng.normal(0.5, 1.0, dimensions))
        chi = rng.chisquare(5, (features, 1)) / 5  # its spectrum is a Student t with 5 degrees of freedom
        waves = rng.standard_normal((features, dimensions)) / np.sqrt(chi) / scales
        phases, weights = rng.uniform(0, 2 * np.pi, features), rng.standard_normal(features)
        self.function = lambda points: np.cos(points @ waves.T + phases) @ weights * (2 / features) ** 0.5
        self.axes = [Axis(str(i), Range(0.0, 1.0, LINEAR)) for i in range(dimensions)]
        self.points, self.count = rng.random((count, dimensions)), count
        values = self.function(self.points)
        values = values + 0.14 * values.std() * rng.standard_normal(count)
        self.mean, self.scale = values.mean(), values.std()
        self.losses = (values - self.mean) / self.scale

    def truth(self) -> np.ndarray:
        """(d,) total-order indices of the function."""
        from scipy.stats import sobol_indices, uniform

        found = sobol_indices(func=lambda x: self.function(x.T), n=4096, dists=[uniform()] * len(self.axes), rng=0)
        return np.clip(found.total_order, 0, 1)


def main() -> None:
    parser = Parser(prog="coverage.py", description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=16, help="worlds of each table")
    parser.add_argument("--seed", type=int, default=5, help="of the worlds: of another one nothing has been seen")
    parser.add_argument("--functions", type=int, default=40, help="random functions of each size")
    parser.add_argument("--searches", type=int, default=500, help="simulated searches with normal noise")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    loss, gain = in_theory(args.searches, np.random.default_rng(0))
    print(f"normal noise, alike for all: loss {loss:.3f}, gain over a default seen once {gain:.3f}", flush=True)
    every = []
    for path in sorted((Path(__file__).parent / "data").glob("*.csv.gz")):
        surrogate, rng, found = Surrogate(read_curves(path)), np.random.default_rng(args.seed), []
        for number in range(args.worlds):
            world = surrogate.world(rng, seeds=12)
            rows = [search_in(world, length, f"{length}") for length in LENGTHS]
            found += [row | {"table": path.name, "world": (path.name, number)} for row in rows if row]
        gain = np.mean([row["gain"] for row in found if "gain" in row])
        loss = np.mean([row["loss"] for row in found])
        print(f"{path.name:28} {len(found)} searches: loss {loss:.3f}, gain {gain:.3f}", flush=True)
        every += found
    gain = np.mean([row["gain"] for row in every if "gain" in row])
    table = pd.DataFrame(every)
    doubt = float(((table["loss"] - table["loss"].mean()).groupby(table["world"]).sum() ** 2).sum() ** 0.5) / len(table)
    print(f"all: loss {table['loss'].mean():.3f} +- {doubt:.3f} (searches of one world share their luck), gain {gain:.3f}")
    print(f"the truth below the loss's interval {table['below'].mean():.3f}, ", end="")
    print(f"its width: mean {table['width'].mean():.4f}, median {table['width'].median():.4f} nats")
    for low, high in itertools.pairwise(BINS):
        part = [row for row in every if low <= row["probability"] < high]
        if part:
            said, true = (np.mean([row[name] for row in part]) for name in ("probability", "is_best"))
            print(f"probability {low:.2f} to {min(high, 1):.2f}: {len(part)} searches, said {said:.2f}, true {true:.2f}")
    for name in dict.fromkeys(row["table"] for row in every):
        added, times = fitted([row for row in every if row["table"] != name])
        print(f"log-odds fitted without {name}: {added:+.2f}, times {times:.2f} (0 and 1: as posterior.py has it)")
    for count in (16, 32, 64, 128):
        rng, held, widths = np.random.default_rng(count), [], []
        for _ in range(args.functions):
            surface = Random(count, rng)
            truth = surface.truth()
            for row in surface.importance():
                held.append(row["low"] <= truth[int(row["hyper_parameter"])] <= row["high"])
                widths.append(row["high"] - row["low"])
        print(f"importance from {count} trials: {np.mean(held):.3f}, width {np.mean(widths):.3f}", flush=True)


if __name__ == "__main__":
    run_command(main)
