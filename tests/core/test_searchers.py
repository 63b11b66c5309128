"""What a search tries next: random draws, proposals, TPE, and what earlier runs hand on. No Ray."""

import json
import math
import os
import statistics
import subprocess
import sys

import numpy as np
import pytest
from conftest import BUDGET, ROOT, begun, report
from helpers import MILESTONES, NANO, asha_search, draws_of, log_rate, loss_of, searched

from myllm.presets import PRESETS
from tune.core.events import TrialFailed, TrialResumed, from_json
from tune.core.search_space import SPACES, Choice, Range, get_space, sample
from tune.core.searchers.gaussian_process import most_promising
from tune.core.searchers.tpe import STARTUP_TRIALS, known_configurations
from tune.core.trials import COMPLETED, DIVERGED, PAUSE, PAUSED, REPLICATE, RUNNING, STOP, Trials


def drawn(trials):
    return [trial.config for trial in trials.drawn]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("space", SPACES)
def test_random_draws_depend_on_the_index_alone(space, preset):
    for name in ("random", "gp"):
        search = asha_search(name, space, preset, seed=3)
        expected = [sample(get_space(space), PRESETS[preset], 3, index) for index in range(20)]
        assert draws_of(search, None, range(20)) == expected
        assert draws_of(search, None, reversed(range(20))) == expected[::-1]


@pytest.mark.parametrize("space", SPACES)
def test_proposals_lie_where_the_losses_are_low(space):
    search = asha_search("gp", space, seed=3)
    trials = searched(search)
    ranges = get_space(space).ranges(NANO)
    proposals = draws_of(search, trials, range(40, 60), proposed=True)
    assert proposals == draws_of(search, trials, range(40, 60), proposed=True) == json.loads(json.dumps(proposals))
    assert proposals != draws_of(search, trials, range(40, 60))
    for config in proposals:
        assert config.keys() == ranges.keys()
        for name, values in ranges.items():
            if isinstance(values, Range):
                assert values.low <= config[name] <= values.high
            else:
                assert config[name] in values.values
    losses = [loss_of(config, BUDGET) for config in proposals]
    chance = [loss_of(config, BUDGET) for config in draws_of(search, trials, range(40, 240))]
    assert np.nanmedian(losses) < np.nanquantile(chance, 0.5 if space == "v3" else 0.3)
    assert draws_of(asha_search("random", space, seed=3), trials, [40], True) == draws_of(search, trials, [40])


def test_a_place_in_a_range_is_where_at_finds_it():
    for values in (Range(1e-4, 1e-1), Choice((4, 8, 16, 32, 64))):
        for place in (0.0, 0.25, 0.5, 0.75):
            assert values.to_unit(values.from_unit(place)) == pytest.approx(place, abs=0.01) or isinstance(values, Choice)
        assert values.to_unit(values.from_unit(0.0)) == 0 and 0 <= values.to_unit(5.0) <= 1
    assert Choice((4, 8, 16)).to_unit(8) == 0.5 and Choice(("cosine", "wsd")).to_unit("wsd") == 1


def test_the_surrogate_finds_the_valley_and_believes_many_seeds_more_than_one():
    rng = np.random.default_rng(0)
    points, candidates = rng.random((30, 2)), rng.random((200, 2))
    losses = 3 + ((points - [0.3, 0.7]) ** 2).sum(axis=1)
    losses = np.log(losses)
    losses[3] = math.inf  # it diverged: that must not flatten all others
    seeds, none = np.ones(30), np.empty((0, 2))
    first = most_promising(points, losses, seeds, none, candidates)
    far = ((candidates - [0.3, 0.7]) ** 2).sum(axis=1)
    assert far[first] < np.quantile(far, 0.3)
    assert most_promising(points, losses, seeds, candidates[[first]], candidates) in range(200)
    # A lucky seed counts less than the mean of many.
    points = np.concatenate([points, [[0.9, 0.1]]])
    losses = np.append(losses, np.log(2.6))
    chosen = [most_promising(points, losses, np.r_[seeds, n], none, candidates) for n in (0.05, 1000.0)]
    assert np.abs(candidates[chosen[1]] - [0.9, 0.1]).max() < np.abs(candidates[chosen[0]] - [0.9, 0.1]).max()


@pytest.mark.parametrize("preset", ["nano", "micro", "gpt2"])
@pytest.mark.parametrize("space", SPACES)
def test_tpe_draws_within_the_space_and_always_the_same(space, preset, capfd):
    search = asha_search("optuna", space, preset, num_samples=16)
    trials = searched(search)
    reference = sample(get_space(space), PRESETS[preset], 1, 0)
    assert draws_of(search, trials, [0]) == [trials.drawn[0].config] == [reference]
    draws = draws_of(search, trials, range(16, 22))
    assert draws == draws_of(search, trials, range(16, 22)) == json.loads(json.dumps(draws))
    assert len({json.dumps(config) for config in draws}) == len(draws)
    for index, config in enumerate(draws, 16):
        assert list(config) == list(reference) and config != sample(get_space(space), PRESETS[preset], 1, index)
        for name, values in get_space(space).ranges(PRESETS[preset]).items():
            if isinstance(values, Range):
                assert values.low <= config[name] <= values.high
            else:
                assert any(config[name] is value or repr(config[name]) == repr(value) for value in values.values)
    other = draws_of(asha_search("optuna", space, preset, seed=2), trials, [16])
    assert other != draws[:1]
    assert capfd.readouterr() == ("", "")


def test_both_searchers_begin_alike():
    random, tpe = (drawn(searched(asha_search(name, num_samples=STARTUP_TRIALS + 4))) for name in ("random", "optuna"))
    assert random[:STARTUP_TRIALS] == tpe[:STARTUP_TRIALS] and not any(
        config in random for config in tpe[STARTUP_TRIALS + 1 :]
    )


def test_tpe_finds_better_configurations_than_chance_and_leaves_the_region_that_diverges():
    best, divergences = {}, {}
    for name in ("random", "optuna"):
        best[name], divergences[name] = [], 0
        for seed in range(5):
            trials = searched(asha_search(name, "v2", seed=seed), workers=3)
            later = drawn(trials)[20:]
            best[name].append(min(loss_of(config, BUDGET) for config in later if log_rate(config) <= 0.6))
            divergences[name] += sum(log_rate(config) > 0.6 for config in later)
            assert {PAUSED, COMPLETED} <= {trial.status for trial in trials.drawn}
    assert statistics.median(best["optuna"]) < statistics.median(best["random"])
    assert statistics.mean(best["optuna"]) < 3.02 < statistics.mean(best["random"])
    assert divergences["random"] >= 12 and divergences["optuna"] <= 6, (divergences, best)


def test_trials_that_diverge_keep_tpe_away_even_where_none_has_completed():
    events = []
    for index in range(20):
        rate = 10 ** (-1 + 0.1 * index)
        config = {"learning_rate": NANO.learning_rate * rate, "batch_size": 16}
        events.append(begun(f"{index:05d}", config=config))
        if rate > 1:  # later than the first rung
            events.append(report(f"{index:05d}", 300, math.nan, STOP, diverged=True))
        else:
            events.append(report(f"{index:05d}", 200, 3.0 + index / 100, PAUSE))
    draws = draws_of(asha_search(), Trials(BUDGET, 40, events=events), range(20, 50))
    assert sum(log_rate(config) < 0 for config in draws) >= 28


@pytest.mark.parametrize("name", ["optuna", "gp"])
def test_a_resumed_search_draws_what_an_uninterrupted_one_would(name):
    search, events = asha_search(name, num_samples=24), []
    whole = searched(search, record=events)
    for count in (40, 180, len(events)):
        part = [from_json(json.loads(json.dumps(event.to_json()))) for event in events[:count]]
        trials = Trials(BUDGET, 24, events=part)
        index = len(trials.drawn)
        if index < 24:
            assert draws_of(search, trials, [index]) == [whole.drawn[index].config]
        assert drawn(searched(search, events=part)) == drawn(whole)
    assert len(whole.drawn) == 24


def test_what_tpe_is_told_of_each_trial():
    ids = ["done", "twice", "waits", "goes on", "new", "diverged", "failed"]
    events = [begun(t, config={"learning_rate": t}) for t in ids]
    events += [
        *(report("done", tokens, 5.0 - tokens / BUDGET) for tokens in (200, BUDGET)),
        *(report("twice", tokens, 3.0) for tokens in (200, 800, BUDGET)),
        report("waits", 100, 6.0),
        report("waits", 200, 5.5, PAUSE),
        report("goes on", 200, 5.25, PAUSE),
        TrialResumed(trial_id="goes on", segment_end_tokens=800),
        report("goes on", 300, 4.0),
        report("new", 100, 7.0),
        report("diverged", 200, 2.0),
        report("diverged", 300, math.nan, STOP, diverged=True),
        report("failed", 200, 2.0),
        TrialFailed(trial_id="failed", reason="boom"),
    ]
    for of, loss in (("twice", 3.5), ("done", 9.0)):
        again = begun(f"{of}-seed", REPLICATE, config={"learning_rate": of, "seed": 8}, parent_id=of)
        events += [again, report(f"{of}-seed", BUDGET if of == "twice" else 300, loss)]
    known = known_configurations(Trials(BUDGET, 40, events=events), [], MILESTONES)
    told = {config["learning_rate"]: standing for config, standing in known}
    assert told == {
        "done": (COMPLETED, BUDGET, 4.0),  # its repeat is not there yet
        "twice": (COMPLETED, BUDGET, 3.25),
        "waits": (PAUSED, 200, 5.5),
        "goes on": (PAUSED, 200, 5.25),
        "new": (RUNNING, 0, pytest.approx(math.nan, nan_ok=True)),
        "diverged": (DIVERGED, 0, pytest.approx(math.nan, nan_ok=True)),
    }


def test_optuna_is_loaded_by_its_first_draw_and_not_before():
    code = """if True:
        import sys
        from helpers import asha_search

        asha_search("optuna").searcher()(0, None, False)
        assert "optuna" not in sys.modules and "ray" not in sys.modules"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    )
