"""Recorded curves and the worlds made from them: what is read, and that a world misleads as much as its table does."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from curves import Curves, Surrogate, read_curves, spearman, summary

from myllm.presets import get_preset
from myllm.system.errors import InputError
from tune.core.search_space import get_space, sample

MARKS = tuple(range(1, 9))


def table(n=40, seeds=3):
    """Losses that the rate decides, high rates being ahead early on; the noise is large at high rates, and lasts."""
    rng = np.random.default_rng(0)
    rates, batches = np.exp(rng.uniform(math.log(1e-4), math.log(1e-2), n)), rng.choice([4, 8, 16], n)
    far = np.log(rates / 1e-3)[:, None]
    share = np.array(MARKS) / len(MARKS)
    means = 2 - 0.6 * share + 0.05 * far**2 - 0.2 * far * (1 - share) + 0.02 * np.log2(batches / 8)[:, None]
    noise = 0.05 * rng.standard_normal((n, seeds, 1)) * (rates / rates.max())[:, None, None]
    configs = tuple({"learning_rate": float(r), "batch_size": int(b)} for r, b in zip(rates, batches, strict=True))
    return Curves(configs, means[:, None] + noise, MARKS)


@pytest.fixture(scope="module")
def surrogate():
    return Surrogate(table())


def write(path, curves, **columns):
    rows = [
        {"trial_id": f"{i:05d}", "seed": s, "tokens_seen": m} | config | {"val_loss": curves.losses[i, s, k]} | columns
        for i, config in enumerate(curves.configs)
        for s in range(curves.losses.shape[1])
        for k, m in enumerate(curves.marks)
    ]
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def test_a_table_is_read_as_it_was_written(tmp_path):
    written = table(5)
    written.losses[2, 1, 4:] = np.nan
    read = read_curves(write(tmp_path / "h.csv", written))
    np.testing.assert_allclose(read.losses, written.losses)
    assert read.configs == written.configs and read.marks == MARKS and read.budget == 8
    assert read.finals[2, 1] == np.nanmax(written.losses[..., -1])
    assert read.means == pytest.approx(read.finals.mean(axis=1))
    ema = read_curves(write(tmp_path / "h.csv", written, val_loss_ema=7.0), "val_loss_ema")
    assert ema.losses[0, 0, 0] == 7 and np.isnan(ema.losses[2, 1, 4])
    np.testing.assert_allclose(ema.finals, read.finals)  # whatever ranks them, val_loss is what counts in the end


def test_fewer_seeds_are_repeated_and_short_curves_refused(tmp_path):
    path = write(tmp_path / "h.csv", table(3))
    rows = pd.read_csv(path, dtype={"trial_id": str})
    rows[(rows["trial_id"] != "00001") | (rows["seed"] == 1)].to_csv(path, index=False)
    curves = read_curves(path)
    assert curves.losses.shape == (3, 3, 8) and not np.isnan(curves.losses).any()
    assert len(set(curves.finals[1])) == 1 and len(set(curves.finals[0])) == 3
    rows[(rows["trial_id"] != "00001") | (rows["tokens_seen"] < 6)].to_csv(path, index=False)
    with pytest.raises(InputError, match="trial 00001 seed 0 ends before the full budget of 8 tokens"):
        read_curves(path)
    with pytest.raises(InputError, match="it lacks val_loss_ema"):
        read_curves(path, "val_loss_ema")
    with pytest.raises(InputError, match="not a CSV file that can be read"):
        read_curves(tmp_path / "none.csv")


@pytest.mark.parametrize(
    "name, rate",
    [(n, 3e-3) for n in ("embedded-cosine", "embedded-wsd", "shakespeare-cosine")] + [("shakespeare-micro", 2e-3)],
)
def test_the_recorded_tables_are_draws_of_the_ranges_that_they_name(name, rate):
    curves = read_curves(ROOT / "experiments" / "data" / f"{name}.csv.gz")
    preset = dataclasses.replace(get_preset("nano"), learning_rate=rate, batch_size=16)  # experiments/data/README.md
    assert curves.losses.shape == (64, 3, 32) and np.isfinite(curves.losses).all()
    assert set(curves.configs[0]) == set(get_space("v2").ranges(preset))
    indices = range(64) if name != "embedded-cosine" else [0]  # the other draws are an earlier sampler's
    for index in indices:
        assert curves.configs[index] == pytest.approx(sample(get_space("v2"), preset, 20, index), rel=1e-4)


def test_worlds_are_new_and_repeatable(surrogate):
    world, same, other = (surrogate.world(np.random.default_rng(seed), 30, 4) for seed in (1, 1, 2))
    assert world.losses.shape == (30, 4, 8) and np.isfinite(world.losses).all() and world.marks == MARKS
    assert world.configs == same.configs and np.array_equal(world.losses, same.losses)
    assert world.configs != other.configs
    assert type(world.configs[0]["batch_size"]) is int and {c["batch_size"] for c in world.configs} <= {4, 8, 16}
    assert all(1e-4 <= config["learning_rate"] <= 1e-2 for config in world.configs)


def test_the_truth_of_a_world_is_the_mean_of_many_seeds(surrogate):
    world = surrogate.world(np.random.default_rng(0), 10, 2000)
    assert world.means == pytest.approx(world.finals.mean(axis=1), abs=0.003)


def test_worlds_rank_and_err_as_the_table_does(surrogate):
    world = surrogate.world(np.random.default_rng(0), 200, 3)
    found, wanted = summary(world), summary(table(200))
    for name in found:
        assert found[name] == pytest.approx(wanted[name], abs=0.15 if name.startswith("rank") else 0.02), name
    rates = [config["learning_rate"] for config in world.configs]
    assert spearman(np.array(rates), world.finals.std(axis=1)) > 0.5  # the noise is where it was


def test_a_diverged_curve_makes_a_bad_one():
    curves = table(20)
    worst = int(np.argmax([config["learning_rate"] for config in curves.configs]))
    curves.losses[worst, :, 3:] = np.nan
    curves.losses[0, 0] += 3
    world = Surrogate(curves).world(np.random.default_rng(0), 20, 2)
    assert np.isfinite(world.losses).all()
