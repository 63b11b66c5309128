"""What a search tries next: random draws, proposals, TPE, and what earlier runs hand on. No Ray."""

import dataclasses
import json
import math
import os
import shutil
import statistics
import subprocess
import sys

import numpy as np
import pytest
from conftest import BUDGET, ROOT, begun, report
from helpers import MILESTONES, NANO, asha_search, config_at, draws_of, log_rate, loss_of, searched, write_run

from myllm.config import PRESETS
from myllm.system.errors import InputError
from tune.config.spec import SearchSpec
from tune.core.gaussian_process import most_promising
from tune.core.search_space import LINEAR, SPACES, Choice, Range, get_space, sample
from tune.core.searchers import STARTUP, _known, warm_start_trials
from tune.core.trials import COMPLETED, DIVERGED, PAUSE, PAUSED, REPLICATE, RUNNING, STOP, Trials
from tune.store.journal import FILE_NAME


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
            assert values.place(values.at(place)) == pytest.approx(place, abs=0.01) or isinstance(values, Choice)
        assert values.place(values.at(0.0)) == 0 and 0 <= values.place(5.0) <= 1
    assert Choice((4, 8, 16)).place(8) == 0.5 and Choice(("cosine", "wsd")).place("wsd") == 1


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
    random, tpe = (drawn(searched(asha_search(name, num_samples=STARTUP + 4))) for name in ("random", "optuna"))
    assert random[:STARTUP] == tpe[:STARTUP] and not any(config in random for config in tpe[STARTUP + 1 :])


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
        part = json.loads(json.dumps(events[:count]))
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
        {"event": "resume", "trial_id": "goes on", "segment_end_tokens": 800},
        report("goes on", 300, 4.0),
        report("new", 100, 7.0),
        report("diverged", 200, 2.0),
        report("diverged", 300, math.nan, STOP, diverged=True),
        report("failed", 200, 2.0),
        {"event": "failed", "trial_id": "failed", "reason": "boom"},
    ]
    for of, loss in (("twice", 3.5), ("done", 9.0)):
        again = begun(f"{of}-seed", REPLICATE, config={"learning_rate": of, "seed": 8}, parent_id=of)
        events += [again, report(f"{of}-seed", BUDGET if of == "twice" else 300, loss)]
    known = _known(Trials(BUDGET, 40, events=events), [], MILESTONES)
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

        from tune.core.searchers import searcher

        searcher(asha_search("optuna"))(0, None, False)
        assert "optuna" not in sys.modules and "ray" not in sys.modules"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    )


# Warm start


THIRD = 1 / 3  # a rate whose text is long


@pytest.fixture
def two_runs(tmp_path):
    stopped = [
        begun("00009", config=config_at(5.0)),
        report("00009", 200, 4.5, PAUSE),
        begun("00010", config=config_at(9.0)),
        report("00010", 300, math.nan, STOP, diverged=True),
        begun("00011", config=config_at(0.9)),
        report("00011", 100, 4.0),
        begun("00001-seed", REPLICATE, config=config_at(0.2) | {"seed": 8}, parent_id="00001"),
        report("00001-seed", BUDGET, 3.3, STOP),
    ]
    first = write_run(tmp_path / "a", [(1.0, 2.0), (0.2, 3.1), (0.3, 3.05), (0.4, 3.3)], others=stopped)
    second = write_run(tmp_path / "b", [(1.0, 2.0), (0.3, 3.0), (THIRD, 3.4), (0.6, 3.5)])
    return [first, second]


def test_the_best_of_earlier_runs_come_right_after_the_reference(two_runs):
    search = asha_search("random", warm_start=two_runs, num_samples=16)
    search = dataclasses.replace(search, warm_start=warm_start_trials(search))
    draws = draws_of(search, None, range(16))
    # In turn: of a the one seen twice leads; b's first is 0.3, so that a's next is not tried twice.
    assert draws[:5] == [config_at(1.0), config_at(0.2), config_at(0.3), config_at(THIRD), config_at(0.4)]
    assert draws[5:] == [sample(get_space("v1"), NANO, 1, index) for index in range(5, 16)]
    told = {
        t["config"]["learning_rate"] / NANO.learning_rate: (t["status"], t["tokens_seen"], t["val_loss"])
        for t in search.warm_start
    }
    expected = {
        0.2: (COMPLETED, 3.2),
        0.3: (COMPLETED, 3.0),
        THIRD: (COMPLETED, 3.4),
        0.4: (COMPLETED, 3.3),
        0.6: (COMPLETED, 3.5),
    }
    expected = {rate: (status, BUDGET, pytest.approx(loss)) for rate, (status, loss) in expected.items()}
    expected |= {5.0: (PAUSED, 200, 4.5), 9.0: (DIVERGED, 0, None)}
    assert {round(rate, 12): standing for rate, standing in told.items()} == {round(r, 12): s for r, s in expected.items()}


@pytest.mark.parametrize("num_samples, tried", [(1, 1), (4, 1), (8, 2), (12, 3), (400, 5)])
def test_at_most_a_quarter_is_taken_from_earlier_runs(two_runs, num_samples, tried):
    trials = warm_start_trials(asha_search("random", warm_start=two_runs, num_samples=num_samples))
    assert [trial["tried"] for trial in trials] == [True] * tried + [False] * (7 - tried)


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_nothing_drifts_when_the_earlier_runs_vanish_or_the_search_grows(two_runs, searcher, tmp_path):
    search = asha_search(searcher, warm_start=two_runs, num_samples=16)
    search = dataclasses.replace(search, warm_start=warm_start_trials(search))
    whole = searched(search)
    for folder in two_runs:
        shutil.rmtree(folder)
    search.write(tmp_path)
    search = SearchSpec.read(tmp_path)
    assert drawn(searched(search)) == drawn(whole)
    search = dataclasses.replace(search, options=dataclasses.replace(search.options, num_samples=160))
    tried = draws_of(search, whole, range(1, 6))
    assert tried[:4] == drawn(whole)[1:5] and tried[4] != config_at(0.6)  # a quarter of 160 would take that one too
    grown = draws_of(search, whole, [16])[0]
    assert (grown == sample(get_space("v1"), NANO, 1, 16)) == (searcher == "random")


def test_tpe_learns_from_earlier_runs_at_once_and_counts_a_repeated_configuration_once(tmp_path):
    rates = [(10 ** (-1 + index / 10), 3 + abs(index - 4) / 10) for index in range(10)]
    folder = write_run(tmp_path / "a", [(1.0, 3.0), *rates])
    search = asha_search(warm_start=[folder], num_samples=8)
    search = dataclasses.replace(search, warm_start=warm_start_trials(search))
    events = [begun(f"{i:05d}", config=draws_of(search, Trials(BUDGET, 8), [i])[0]) for i in range(3)]
    trials = Trials(BUDGET, 8, events=events)
    draws = [log_rate(config) for config in draws_of(search, trials, range(3, 33))]
    assert sum(-0.9 < rate < -0.3 for rate in draws) >= 16  # the best is at -0.6; by chance 9
    known = _known(trials, search.warm_start, MILESTONES)
    assert len(known) == 11 and known[0][1] == (COMPLETED, BUDGET, 3.0)
    trials.apply(report("00001", 200, 4.5, PAUSE))
    assert _known(trials, search.warm_start, MILESTONES)[0] == known[0]  # it waits at a rung: what was known says more
    trials.apply({"event": "resume", "trial_id": "00001", "segment_end_tokens": BUDGET})
    trials.apply(report("00001", BUDGET, 3.7))
    assert _known(trials, search.warm_start, MILESTONES)[0] == (trials.drawn[1].config, (COMPLETED, BUDGET, 3.7))


def with_data(search, **changes):
    return dataclasses.replace(search, data=dataclasses.replace(search.data, **changes))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: asha_search(preset="micro"), "its preset is micro, not nano"),
        (lambda s: with_data(s, tokenizer_sha256="1"), "its tokenizer's content is not that of this search"),
        (
            lambda s: with_data(s, fingerprint={"train": {"tokens": 8}, "val": {"tokens": 5}}),
            "its training data is not that of this search",
        ),
        (
            lambda s: with_data(s, fingerprint={"train": {"tokens": 7}, "val": {"tokens": 6}}),
            "its validation data is not that of",
        ),
        (
            lambda s: dataclasses.replace(s, ranges={"dropout": Range(0.0, 1.0, LINEAR)}),
            "it searched dropout, and",
        ),
    ],
)
def test_only_a_run_of_the_same_kind_can_seed_a_search(tmp_path, change, words):
    folder = write_run(tmp_path / "a", [(1.0, 3.0), (0.5, 3.0)], change(asha_search()))
    with pytest.raises(InputError) as error:
        warm_start_trials(asha_search(warm_start=[folder]))
    assert str(error.value).startswith(f"--warm_start {folder}: ") and words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_run_or_has_nothing_to_give_is_named(tmp_path):
    def refused(folder, words):
        with pytest.raises(InputError) as error:
            warm_start_trials(asha_search(warm_start=[str(folder)]))
        assert str(error.value).startswith("--warm_start") or "journal.jsonl" in str(error.value)
        assert str(folder) in str(error.value) and words in str(error.value) and "\n" not in str(error.value)

    refused(tmp_path, "no run folder")
    write_run(tmp_path / "early", [], others=[begun("00000", config=config_at(1.0)), report("00000", 200, 3.0, PAUSE)])
    refused(tmp_path / "early", "no trial of it has completed")
    write_run(tmp_path / "torn", [(1.0, 3.0)])
    (tmp_path / "torn" / FILE_NAME).write_text("{\n")
    refused(tmp_path / "torn", "line 1 is damaged")
    (tmp_path / "torn" / FILE_NAME).unlink()
    refused(tmp_path / "torn", "no trial of it has completed")
    assert warm_start_trials(asha_search()) == ()
