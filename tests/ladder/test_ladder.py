"""tune/ladder/ and experiments/ladder.py: a law that is known is found again, and intervals hold it."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import run_command_line

from myllm.scaling_laws import Size, movement, reference_point, short_training, step_law_point
from myllm.system.errors import InputError
from tune.ladder.answer import Z90, answer, plain_point
from tune.ladder.fit import LEVELS, Run, excess, fit_runs, seed_noise
from tune.ladder.prior import LAW_PRIOR, SMALL_PRIOR, prior_for

SMALL, LONG, WIDE, TARGET = Size(50e6, 1e9), Size(50e6, 4e9), Size(100e6, 1e9), Size(400e6, 10e9)


class World:
    """Surfaces whose optimum moves by a law near the prior's."""

    def __init__(self, seed=0, noise=2e-3, rate_exponents=(-0.5, 0.2), batch_exponents=(0.0, 0.5)):
        self.rng, self.noise = np.random.default_rng(seed), noise
        self.rate_exponents, self.batch_exponents = rate_exponents, batch_exponents

    def optimum(self, size):
        steps = np.array([math.log(size.params / SMALL.params), math.log(size.tokens / SMALL.tokens)])
        return np.array([math.log(4e-3) + self.rate_exponents @ steps, math.log(1e5) + self.batch_exponents @ steps])

    def lowest(self, size):
        return 3 * (size.params / SMALL.params) ** -0.06 * (size.tokens / SMALL.tokens) ** -0.05

    def runs(self, size, count):
        points = self.optimum(size) + self.rng.uniform(-1.2, 1.2, (count, 2))
        parameters = np.zeros(LEVELS)
        parameters[:4] = math.log(0.03), math.log(0.017), 0.25, 2.0
        rises = excess(parameters, *(points - self.optimum(size)).T)
        losses = self.lowest(size) * np.exp(rises) + self.noise * self.rng.standard_normal(count)
        return [Run(size, *np.exp(point), loss) for point, loss in zip(points, losses, strict=True)]


def test_a_law_is_found_again():
    world = World()
    runs = world.runs(SMALL, 40) + world.runs(LONG, 40) + world.runs(WIDE, 40)
    found, truth = answer(runs, TARGET), world.optimum(TARGET)
    assert math.log(found.learning_rate.value) == pytest.approx(truth[0], abs=0.1)
    assert math.log(found.batch_tokens.value) == pytest.approx(truth[1], abs=0.1)
    assert found.loss.value == pytest.approx(world.lowest(TARGET), rel=0.02)
    assert found.loss.low < world.lowest(TARGET) < found.loss.high
    assert 0 < found.expected_regret < 0.02 and found.method == "fit"


def test_exponents_are_learnt_from_levels_and_believed_without_them():
    world = World(rate_exponents=(-0.35, 0.2))
    one = fit_runs(world.runs(SMALL, 60), LAW_PRIOR)
    two = fit_runs(world.runs(SMALL, 60) + world.runs(Size(800e6, 1e9), 60), LAW_PRIOR)
    assert one.mean[5] == pytest.approx(-0.5, abs=1e-3) and two.mean[5] == pytest.approx(-0.35, abs=0.05)
    assert two.covariance[5, 5] < one.covariance[5, 5] / 2


def test_the_intervals_hold_optima_that_laws_of_the_prior_move():
    held = []
    for seed in range(30):
        rng = np.random.default_rng(100 + seed)
        exponents = [[rng.normal(belief.mean, belief.sd) for belief in pair] for pair in pairs(LAW_PRIOR)]
        world = World(seed, 2e-3, *exponents)
        mean, covariance = fit_runs(world.runs(SMALL, 16), LAW_PRIOR).optimum(TARGET)
        held.append(np.abs(mean - world.optimum(TARGET)) < Z90 * np.sqrt(covariance.diagonal()))
    assert (np.mean(held, axis=0) >= 0.8).all()


def pairs(prior):
    return (prior.rate_params, prior.rate_tokens), (prior.batch_params, prior.batch_tokens)


def test_far_runs_and_an_outlier_move_the_optimum_little():
    world = World()
    runs = world.runs(SMALL, 24)
    with_outlier = [*runs, Run(SMALL, 0.03, 1e5, 9.0)]
    near, far = (fit_runs(some, LAW_PRIOR).optimum(SMALL)[0] for some in (runs, with_outlier))
    assert np.abs(near - far).max() < 0.15


def test_two_answers_are_the_same_and_too_few_runs_take_the_carrying_rule():
    runs = World().runs(SMALL, 12)
    assert answer(runs, TARGET) == answer(runs, TARGET)
    few = answer(runs[:2], TARGET)
    assert few.method == "carrying rule" and "carrying rule" in few.notes[0]
    assert math.log(few.learning_rate.value) == pytest.approx(plain_point(runs[:2], TARGET)[0])
    more = answer(runs, TARGET)
    assert few.share_from_runs["learning_rate"] < more.share_from_runs["learning_rate"] < 1


def test_the_carrying_rule_and_the_laws():
    move = movement(Size(50e6, 1e9), Size(200e6, 100e9))
    assert math.exp(move.log_rate) == pytest.approx(4**-0.5 * 100**0.2)
    assert math.exp(move.log_batch) == pytest.approx(100**0.5)
    assert movement(Size(1e6, 1e9), Size(4e6, 1e9)).log_rate_sd > movement(Size(50e6, 1e9), Size(200e6, 1e9)).log_rate_sd
    assert prior_for(Size(9e6, 1e9), TARGET) is SMALL_PRIOR and prior_for(Size(1e7, 1e9), TARGET) is LAW_PRIOR
    rate, batch = step_law_point(Size(1e9, 1e11))
    assert rate == pytest.approx(1.79 * 1e9**-0.713 * 1e11**0.307) and batch == pytest.approx(0.58 * 1e11**0.571)
    assert step_law_point(Size(1e6, 1e8))[0] == 3e-3


def test_a_small_target_is_believed_to_lie_near_the_point_of_small_trainings():
    assert reference_point(TARGET) == step_law_point(TARGET)
    small, large = Size(1e5, 5e5), Size(1e6, 5e6)
    assert reference_point(large)[0] == pytest.approx(2e-3, rel=0.5) and 256 < reference_point(large)[1] < 1024
    world = World()
    runs = [replace(run, size=small, learning_rate=5 * run.learning_rate) for run in world.runs(SMALL, 12)]
    alone, near = (fit_runs(runs, SMALL_PRIOR, target).optimum(large) for target in (None, large))
    reference = np.log(reference_point(large))
    assert (np.abs(near[0] - reference) < np.abs(alone[0] - reference)).all()
    assert (near[1].diagonal() < alone[1].diagonal()).all()
    assert (fit_runs(runs, LAW_PRIOR, large).mean == fit_runs(runs, LAW_PRIOR).mean).all()  # laws from 10M on


def test_the_best_rate_of_a_short_training_lies_above_the_rule_and_is_not_carried_to_a_long_one():
    short, long = Size(3e4, 2e4), Size(3e4, 1e6)
    assert short_training(short) > 0.9 and short_training(long) < 0.01 and short_training(Size(5e7, 2e4)) == 0
    rate, batch = reference_point(short)
    runs = [
        Run(short, rate * factor, batch * times, 3 * math.exp(0.06 * math.log(factor) ** 2 + 0.03 * math.log(times) ** 2))
        for factor, times in ((0.5, 1), (0.7, 0.5), (1, 1), (1.4, 2), (2, 1), (1, 0.5), (1, 2))
    ]
    fit = fit_runs(runs, SMALL_PRIOR)
    assert math.exp(fit.optimum(short)[0][0]) == pytest.approx(rate, rel=0.2)
    assert math.exp(fit.optimum(long)[0][0]) == pytest.approx(reference_point(long)[0], rel=0.2)


def test_below_ten_million_parameters_the_intervals_are_wide_and_the_notes_say_so():
    world = World()
    small, large = Size(1e6, 1e8), Size(4e6, 4e8)
    found = answer(world.runs(small, 16), large)
    above = answer(world.runs(SMALL, 16), Size(4 * SMALL.params, 4 * SMALL.tokens))
    wide, narrow = (math.log(one.learning_rate.high / one.learning_rate.low) for one in (found, above))
    assert wide > 1.3 * narrow
    assert any("Below 10M" in note for note in found.notes)


def test_a_target_with_few_tokens_a_parameter_is_warned_of():
    runs = World().runs(SMALL, 8)
    few, enough = (answer(runs, Size(8 * SMALL.params, times * SMALL.tokens)).notes for times in (2, 4))
    assert "4 times fewer tokens a parameter" in " ".join(few) and "fewer tokens" not in " ".join(enough)


def test_replicates_tell_the_noise():
    runs = [Run(SMALL, 1e-3, 1e5, loss) for loss in 3 + 0.05 * np.random.default_rng(0).standard_normal(40)]
    assert seed_noise(runs, 2.5e-3) == pytest.approx(0.05, rel=0.3)
    assert seed_noise(runs[:1], 2.5e-3) == pytest.approx(2.5e-3)


def test_bad_targets():
    runs = World().runs(SMALL, 8)
    for target in (Size(40e6, 1e12), Size(50e6, 0.9e9)):
        with pytest.raises(InputError, match="smaller than a level"):
            answer(runs, target)
    with pytest.raises(InputError, match="no runs"):
        answer([], TARGET)


def write(path, runs, drop=None):
    rows = [
        {
            "params": run.size.params,
            "tokens": run.size.tokens,
            "learning_rate": run.learning_rate,
            "batch_tokens": run.batch_tokens,
            "loss": run.loss,
        }
        for run in runs
    ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != drop], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path


def command(path, *more):
    flags = {"--history": path, "--target_params": TARGET.params, "--target_tokens": TARGET.tokens}
    return run_command_line("experiments/ladder.py", *[str(word) for pair in flags.items() for word in pair], *more)


def test_the_command(tmp_path):
    runs = World().runs(SMALL, 12)
    path = write(tmp_path / "runs.csv", [*runs, Run(SMALL, 0.1, 1e5, math.nan)])
    done = command(path, "--json", str(tmp_path / "answer.json"))
    assert done.returncode == 0, done.stderr
    assert "1 of 13 runs" in done.stderr and "learning rate" in done.stdout
    found = json.loads((tmp_path / "answer.json").read_text())
    assert found == answer(runs, TARGET).as_dict()
    assert set(found) >= {"learning_rate", "batch_tokens", "loss", "expected_regret", "share_from_runs"}
    assert set(found["learning_rate"]) == {"value", "low", "high"}


@pytest.mark.parametrize("wrong, says", [("column", "no column loss"), ("no runs", "no run with"), ("text", "line 2")])
def test_a_bad_table_is_one_line(tmp_path, wrong, says):
    path = write(tmp_path / "runs.csv", World().runs(SMALL, 2), drop="loss" if wrong == "column" else None)
    if wrong == "no runs":
        path.write_text(path.read_text().splitlines()[0] + "\n")
    if wrong == "text":
        path.write_text(path.read_text().replace("50000000.0", "fifty", 1))
    done = command(path)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: --history") and says in done.stderr


def test_the_benchmark_runs_on_the_public_table():
    done = run_command_line("experiments/ladder_benchmark.py", "--draws", "2")
    assert done.returncode == 0, done.stderr
    fit, _, rule, *_ = (float(cell.split()[0]) for cell in done.stdout.split("| all of 268M | ")[1].split(" | ")[:4])
    assert fit < rule
