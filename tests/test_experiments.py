"""The scripts under experiments/: that they load, and that a replay computes what it says."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, run_command_line
from curves import Curves, read_curves

from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "path", sorted(set((ROOT / "experiments").glob("*.py")) - {ROOT / "experiments" / "fused.py"}), ids=lambda p: p.stem
)
def test_every_script_loads(path):
    assert callable(load(path.stem).main)


def test_a_curve_that_is_recorded_can_be_replayed(byte_files, tmp_path):
    train, val = ((str(path),) for path in byte_files)
    config = SearchOptions(space="v2", train_file=train, val_file=val, budget_tokens=65536)
    load("rung_metric").record(resolve_search(config, tmp_path), 1, 0, 3, tmp_path / "one.csv")
    curves = read_curves(tmp_path / "one.csv")
    assert curves.losses.shape == (1, 1, 8) and np.isfinite(curves.finals).all()


def write_curves(path, seeds):
    """Four configurations of constant loss 1, 2, 3, 4 at 4 marks, and 0.5 more on every other seed; the last diverges."""
    rows = [
        (str(config), seed, mark, float(config + 0.5 * (seed % 2)) if config < 4 or mark == 10 else float("nan"))
        for config in range(1, 5)
        for seed in range(seeds)
        for mark in (10, 20, 30, 40)
    ]
    pd.DataFrame(rows, columns=["trial_id", "seed", "tokens_seen", "val_loss"]).to_csv(path, index=False)
    return path


def test_a_replay_of_known_curves(tmp_path):
    replay = load("replay")
    curves = read_curves(write_curves(tmp_path / "h.csv", 2))
    assert curves.budget == 40 and curves.means[0] == 1.25 and curves.means[3] == 3.5  # diverged: the worst

    def regrets(scheduler, rungs=None, orders=100):
        config = SearchOptions(time_budget=1.0, scheduler=scheduler, rungs=rungs, replicate_best=0)
        return replay.regrets(curves, config, slots=1, orders=orders, lengths=(1, 2, 3, 4))

    found = regrets("fifo", orders=200)
    # After four trainings all are known: the pick is 1, on the seed that did not pick it 1 or 1.5; the mean regret is 0.
    assert found[4] == pytest.approx(0, abs=0.05) and found[1] is None  # in some orders the first one diverges
    assert found[2] > found[3] > found[4]
    halving = regrets("asha", "0.25:4")
    assert halving[2] == pytest.approx(0, abs=0.05)  # four quarters and the rest of one: 1.75 trainings
    assert halving[1] == pytest.approx(0, abs=0.06)  # nothing has ended, but all were seen at the rung
    ideal = replay.i_epoch(curves, slots=1, orders=100)
    assert ideal[2] == pytest.approx(0, abs=0.05) and ideal[1] > ideal[2]  # all at a quarter, the best in full: 1.75
    assert replay.noise(curves) == pytest.approx((3 * 2 * 0.25**2 / 4) ** 0.5)
    assert replay.rank_correlations(curves, [20])[20][0] > 0.9


def test_what_a_report_says_is_held_against_the_truth():
    coverage, rng = load("coverage"), np.random.default_rng(0)
    marks, found = np.arange(100, 3300, 100), []
    for order in range(10):  # each in a world of its own: searches of one share their luck
        truth = rng.normal(2, 0.2, 60)
        losses = truth[:, None, None] + 150 / marks - 150 / 3200 + 0.01 * rng.standard_normal((60, 6, 1))
        configs = tuple({"learning_rate": float(rate)} for rate in rng.random(60) + 0.1)
        found.append(coverage.search_in(Curves(configs, losses, tuple(marks), truth), 8, str(order)))
    assert all(0 < row["width"] < 0.5 and 0 < row["probability"] < 1 for row in found)
    assert sum(row["loss"] for row in found) >= 7 and sum(row["is_best"] for row in found) >= 7
    odds = rng.normal(0, 2, 4000)
    came_true = rng.random(4000) < 1 / (1 + np.exp(-0.8 - 0.6 * odds))
    added, times = coverage.fitted([{"odds": o, "is_best": t} for o, t in zip(odds, came_true, strict=True)])
    assert added == pytest.approx(0.8, abs=0.15) and times == pytest.approx(0.6, abs=0.1)


def test_a_rise_is_told_from_noise():
    judge = load("judge").Judge(slots=2, lengths=(1, 2, 4), known_end=True)
    levels = np.array([0.0, 0.02, 0.03])
    same = levels + np.random.default_rng(0).normal(
        0, 0.01, (100, 1)
    )  # the same draw at each length: what differs is the rule's
    assert judge.rise(same) == (pytest.approx(0.01), pytest.approx(0), "2 to 4")
    assert judge.rise(same[:, ::-1])[0] == 0
    assert judge.rise(levels + np.random.default_rng(1).normal(0, 0.1, (100, 3)))[2] == "none"


def test_the_replay_command(tmp_path):
    history = write_curves(tmp_path / "h.csv", 1)
    done = run_command_line("experiments/replay.py", "--history", history, "--orders", 5, "--json", tmp_path / "r.json")
    assert done.returncode == 0 and "one seed a configuration" in done.stderr, done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["regret"].keys() == {str(trainings) for trainings in load("replay").TRAININGS}
    assert found["regret"]["16"] == 0
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    done = run_command_line("experiments/replay.py", "--history", tmp_path / "bad.csv")
    assert done.returncode == 2 and "it lacks" in done.stderr and done.stderr.count("\n") == 1


def test_preparing_is_measured_in_every_format():
    done = run_command_line(
        "experiments/prepare.py",
        "--megabytes",
        "0.2",
        "--rounds",
        "1",
        "--tokenizer",
        "byte",
        "--formats",
        "jsonl.zst",
        "parquet",
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows[1:]] == ["jsonl.zst", "parquet"]
    assert all(float(row[3]) > 0 and float(row[5].replace(",", "")) > 50 for row in rows[1:])


def test_the_memory_of_preparing_does_not_grow_with_the_text(tmp_path):
    peaks = []
    for megabytes in (4, 80):
        path = tmp_path / f"{megabytes}.txt"
        path.write_text("some words of a text\n" * (megabytes * 10**6 // 21))
        done = run_command_line("experiments/prepare.py", "--file", path, "--tokenizer", "byte")
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout.split()[2]))
    assert peaks[1] < peaks[0] + 50, peaks  # MiB; the ids alone take 160


@pytest.mark.slow
@pytest.mark.parametrize("script", ["overhead", "scale"])
def test_the_studies_of_cost_run(script):
    done = run_command_line(f"experiments/{script}.py", "--quick")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == (5 if script == "overhead" else 3), done.stdout


def dense_curves():
    """60 configurations whose loss falls with the logarithm of the rate, at 16 marks; two seeds."""
    rates = np.geomspace(1e-4, 1e-2, 60)
    configs = tuple({"learning_rate": rate, "batch_size": 2 ** (index % 3)} for index, rate in enumerate(rates))
    levels = 3 - np.linspace(0, 1, 60)[:, None, None] + np.zeros((60, 2, 16)) + np.linspace(1, 0, 16)
    return Curves(configs, levels, tuple(range(100, 1700, 100)))


@pytest.mark.parametrize(("sampler", "pruner"), [("tpe", "sh16"), ("random", "none"), ("multivariate", "hyperband")])
def test_optuna_plays_on_a_dense_table_within_its_time(sampler, pruner):
    found = load("dense").play_optuna(dense_curves(), 3, 2, 0, sampler, pruner)
    most = 6 if pruner == "none" else 60
    assert 2 <= found["ended"] <= 6 and found["ended"] <= found["begun"] <= most + 2  # two are under way at the end
    assert 2 <= found["pick"] <= 3 and found == load("dense").play_optuna(dense_curves(), 3, 2, 0, sampler, pruner)


def test_searches_on_dense_tables_are_played_once_and_kept(tmp_path):
    dense = load("dense")
    options = SearchOptions(time_budget=1.0, replicate_best=0)
    asked = "ours", "now", dense_curves(), "made", 6, 3, 2, options
    first, counts = dense.regrets(dense.Cache(tmp_path / "c.jsonl"), *asked)
    lines = (tmp_path / "c.jsonl").read_text().splitlines()
    again, _ = dense.regrets(dense.Cache(tmp_path / "c.jsonl"), *asked)
    assert len(lines) == 3 and (tmp_path / "c.jsonl").read_text().splitlines() == lines and (first == again).all()
    assert first.mean() < 0.3 and (counts[:, 1] >= 1).all()
