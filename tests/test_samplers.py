"""What a search tries next: random draws, TPE, and what earlier runs hand on. No Ray."""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys

import pytest
from conftest import ROOT
from test_schedulers import BUDGET, new_state, simulate
from test_tune import report, state_of

from myllm.config import PRESETS
from myllm.errors import InputError
from tune.results import tables
from tune.samplers import STARTUP, _known, breeder, sampler, warm_start_trials
from tune.schedulers import CONTINUE, PAUSE, STOP
from tune.spaces import SPACES, LogUniform, get_space, sample
from tune.state import COMPLETED, DIVERGED, INTERRUPTED, STOPPED

LADDER = ((1 / 16, 2), (1 / 4, 4))
NANO = PRESETS["nano"]


def search_of(searcher="optuna", space="v1", preset="nano", seed=1, num_samples=40, warm_start=(), **changes):
    """What a sampler reads of a search.json."""
    config = dict(space=space, preset=preset, seed=seed, searcher=searcher, warm_start=list(warm_start))
    data = {"tokenizer": "byte", "fingerprint": {"train": {"tokens": 7}, "val": {"tokens": 5}}}
    return {
        "config": config,
        "num_samples": num_samples,
        "data": data,
        "train": {"budget_tokens": BUDGET},
        "ranges": {"learning_rate": "1 to 2"},
    } | changes


def log_rate(config, preset="nano"):
    """log10 of the learning rate over the preset's, from -1 to 1."""
    return math.log10(config["learning_rate"] / PRESETS[preset].learning_rate)


def loss_of(config, tokens, preset="nano"):
    """A made-up surface: best at 1.6 times the reference rate, more for larger batches; a fifth of the range diverges."""
    rate, batch = log_rate(config, preset), math.log2(config["batch_size"] / PRESETS[preset].batch_size)
    if rate > 0.6:
        return math.nan
    return 3 + 2 * (rate - 0.2 - 0.1 * batch) ** 2 + 0.05 * (batch + 1) ** 2 + 1 - (tokens / BUDGET) ** 0.3


def searched(search, slots=1, cut=None, events=(), **changes):
    """The search on that surface, with asha."""
    config = search["config"]
    changes = dict(num_samples=search["num_samples"], seed=config["seed"], draw=sampler(search)) | changes
    state = new_state(LADDER, events=events, **changes)
    return simulate(
        state, lambda t, tokens: loss_of(state.configs[t], tokens, config["preset"]), slots, config["seed"], cut
    )


def drawn(state):
    return [config for trial_id, config in state.configs.items() if trial_id not in state.confirms]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("space", SPACES)
def test_random_draws_depend_on_the_index_alone(space, preset):
    search = search_of("random", space, preset, seed=3)
    expected = [sample(get_space(space), PRESETS[preset], 3, index) for index in range(20)]
    assert [sampler(search)(index, None) for index in range(20)] == expected
    assert [sampler(search)(index, None) for index in reversed(range(20))] == expected[::-1]
    for new in ("searcher", "warm_start"):  # as in the search.json of a run from before they were there
        del search["config"][new]
    assert sampler(search)(7, None) == expected[7]


@pytest.mark.parametrize("space", SPACES)
def test_offspring_has_each_value_near_one_of_the_best(space):
    search = search_of("random", space, seed=3)
    state = searched(search)
    best = [state.configs[trial_id] for trial_id in state.scheduler.prospects()]
    assert len(best) >= 8
    ranges, breed, changed = get_space(space).ranges(NANO), breeder(search), 0
    for index in range(40, 80):
        config = breed(index, state)
        assert config == breed(index, state) and config.keys() == ranges.keys()
        for name, values in ranges.items():
            inherited = [parent[name] for parent in best[:8]]
            if isinstance(values, LogUniform):
                assert values.low <= config[name] <= values.high
                width = math.log(values.high / values.low)
                assert min(abs(math.log(config[name] / value)) for value in inherited) < 0.3 * width  # 4.6 deviations
                changed += config[name] not in inherited
            else:
                assert config[name] in inherited
    assert changed >= 40


@pytest.mark.parametrize("preset", ["nano", "micro", "gpt2"])
@pytest.mark.parametrize("space", SPACES)
def test_tpe_draws_within_the_space_and_always_the_same(space, preset, capfd):
    search = search_of("optuna", space, preset, num_samples=16)
    state = searched(search)
    reference = sample(get_space(space), PRESETS[preset], 1, 0)
    assert sampler(search)(0, state) == state.configs["00000"] == reference
    draws = [sampler(search)(index, state) for index in range(16, 22)]
    assert draws == [sampler(search)(index, state) for index in range(16, 22)] == json.loads(json.dumps(draws))
    assert len({json.dumps(config) for config in draws}) == len(draws)
    for index, config in enumerate(draws, 16):
        assert list(config) == list(reference) and config != sample(get_space(space), PRESETS[preset], 1, index)
        for name, values in get_space(space).ranges(PRESETS[preset]).items():
            if isinstance(values, LogUniform):
                assert values.low <= config[name] <= values.high
            else:
                assert any(config[name] is value or repr(config[name]) == repr(value) for value in values.values)
    other = sampler(search_of("optuna", space, preset, seed=2))(16, state)
    assert other != draws[0]
    assert capfd.readouterr() == ("", "")


def test_both_searchers_begin_alike():
    random, tpe = (drawn(searched(search_of(name, num_samples=STARTUP + 4))) for name in ("random", "optuna"))
    assert random[:STARTUP] == tpe[:STARTUP] and not any(config in random for config in tpe[STARTUP + 1 :])


def test_tpe_finds_better_configurations_than_chance_and_leaves_the_region_that_diverges():
    best, divergences = {}, {}
    for name in ("random", "optuna"):
        best[name], divergences[name] = [], 0
        for seed in range(5):
            state = searched(search_of(name, "v2", seed=seed), slots=3)
            later = drawn(state)[20:]
            best[name].append(min(loss_of(config, BUDGET) for config in later if log_rate(config) <= 0.6))
            divergences[name] += sum(log_rate(config) > 0.6 for config in later)
            assert {STOPPED, COMPLETED} <= set(state.status.values())
    assert statistics.median(best["optuna"]) < statistics.median(best["random"])
    assert statistics.mean(best["optuna"]) < 3.02 < statistics.mean(best["random"])
    assert divergences["random"] >= 12 and divergences["optuna"] <= 6, (divergences, best)


def test_trials_that_diverge_keep_tpe_away_even_where_none_has_completed():
    events = []
    for index in range(20):
        rate = 10 ** (-1 + 0.1 * index)
        events.append(
            {
                "event": "trial",
                "trial_id": f"{index:05d}",
                "config": {"learning_rate": NANO.learning_rate * rate, "batch_size": 16},
            }
        )
        if rate > 1:  # later than the first rung
            events.append(report(f"{index:05d}", 300, math.nan, STOP, diverged=True))
        else:
            events.append(report(f"{index:05d}", 200, 3.0 + index / 100, PAUSE))
    state, search = new_state(LADDER, events=events), search_of()
    draws = [sampler(search)(index, state) for index in range(20, 50)]
    assert sum(log_rate(config) < 0 for config in draws) >= 28


def test_a_resumed_search_draws_what_an_uninterrupted_one_would():
    search = search_of(num_samples=24)
    whole = searched(search, confirm=2)
    events = []
    for cut in (40, 180, 150, 200):
        events = json.loads(json.dumps(searched(search, cut=len(events) + cut, events=events, confirm=2).events))
        state = new_state(LADDER, events=events)
        index = len(drawn(state))
        if index < 24:
            assert sampler(search)(index, state) == whole.configs[f"{index:05d}"]
    assert searched(search, events=events, confirm=2).configs == whole.configs
    assert len(drawn(whole)) == 24


def test_what_tpe_is_told_of_each_trial():
    ids = ["done", "twice", "waits", "goes on", "new", "diverged", "failed"]
    events = [{"event": "trial", "trial_id": t, "config": {"learning_rate": t}} for t in ids]
    events += [
        *(report("done", tokens, 5.0 - tokens / BUDGET, CONTINUE if tokens < BUDGET else STOP) for tokens in (200, BUDGET)),
        *(report("twice", tokens, 3.0, CONTINUE) for tokens in (200, 800, BUDGET)),
        report("waits", 100, 6.0),
        report("waits", 200, 5.5, PAUSE),
        report("goes on", 200, 5.25, PAUSE),
        {"event": "promote", "trial_id": "goes on", "guaranteed": False},
        report("goes on", 300, 4.0),
        report("new", 100, 7.0),
        report("diverged", 200, 2.0),
        report("diverged", 300, math.nan, STOP, diverged=True),
        report("failed", 200, 2.0),
        {"event": "failed", "trial_id": "failed", "reason": "boom"},
    ]
    for of, loss in (("twice", 3.5), ("done", 9.0)):
        again = {"event": "trial", "trial_id": f"{of}-seed", "config": {"learning_rate": of, "seed": 8}, "confirms": of}
        events += [again, report(f"{of}-seed", BUDGET if of == "twice" else 300, loss)]
    state = new_state(LADDER, events=events)
    told = {config["learning_rate"]: standing for config, standing in _known(state, [])}
    assert told == {
        "done": (COMPLETED, BUDGET, 4.0),  # its confirmation is not there yet
        "twice": (COMPLETED, BUDGET, 3.25),
        "waits": (STOPPED, 200, 5.5),
        "goes on": (STOPPED, 200, 5.25),
        "new": (INTERRUPTED, 0, pytest.approx(math.nan, nan_ok=True)),
        "diverged": (DIVERGED, 0, pytest.approx(math.nan, nan_ok=True)),
    }


def test_optuna_is_loaded_by_its_first_draw_and_not_before():
    code = """if True:
        import sys
        from tune.samplers import sampler
        search = {"config": {"space": "v1", "preset": "nano", "seed": 1, "searcher": "optuna"}}
        sampler(search)(0, None)
        assert "optuna" not in sys.modules and "ray" not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


# Warm start


def config_at(rate, batch=16):
    return {"learning_rate": NANO.learning_rate * rate, "batch_size": batch}


def write_run(folder, rates_and_losses, search=None, others=()):
    """A run folder: the reference, then completed trials, then `others` (events)."""
    folder.mkdir()
    events = []
    for index, (rate, loss) in enumerate(rates_and_losses):
        events += [{"event": "trial", "trial_id": f"{index:05d}", "config": config_at(rate)}]
        events += [report(f"{index:05d}", BUDGET, loss, STOP)]
    for name, table in zip(("trials", "history"), tables(state_of([*events, *others], BUDGET)), strict=True):
        table.to_csv(folder / f"{name}.csv", index=False)
    (folder / "search.json").write_text(json.dumps(search or search_of("random", seed=99, num_samples=8)))
    return str(folder)


THIRD = 1 / 3  # a rate whose text is long


@pytest.fixture
def two_runs(tmp_path):
    stopped = [
        {"event": "trial", "trial_id": "00009", "config": config_at(5.0)},
        report("00009", 200, 4.5, STOP),
        {"event": "trial", "trial_id": "00010", "config": config_at(9.0)},
        report("00010", 300, math.nan, STOP, diverged=True),
        {"event": "trial", "trial_id": "00011", "config": config_at(0.9)},
        report("00011", 200, 4.0),
        {"event": "trial", "trial_id": "00001-seed", "config": config_at(0.2) | {"seed": 8}, "confirms": "00001"},
        report("00001-seed", BUDGET, 3.3, STOP),
    ]
    first = write_run(tmp_path / "a", [(1.0, 2.0), (0.2, 3.1), (0.3, 3.05), (0.4, 3.3)], others=stopped)
    second = write_run(tmp_path / "b", [(1.0, 2.0), (0.3, 3.0), (THIRD, 3.4), (0.6, 3.5)])
    return [first, second]


def test_the_best_of_earlier_runs_come_right_after_the_reference(two_runs):
    search = search_of("random", warm_start=two_runs, num_samples=16)
    search["warm_start"] = warm_start_trials(search)
    draws = [sampler(search)(index, None) for index in range(16)]
    # In turn: of a the confirmed one leads; b's first is 0.3, so that a's next is not tried twice.
    assert draws[:5] == [config_at(1.0), config_at(0.2), config_at(0.3), config_at(THIRD), config_at(0.4)]
    assert draws[5:] == [sample(get_space("v1"), NANO, 1, index) for index in range(5, 16)]
    told = {
        t["config"]["learning_rate"] / NANO.learning_rate: (t["status"], t["tokens_seen"], t["val_loss"])
        for t in search["warm_start"]
    }
    expected = {
        0.2: (COMPLETED, 3.2),
        0.3: (COMPLETED, 3.0),
        THIRD: (COMPLETED, 3.4),
        0.4: (COMPLETED, 3.3),
        0.6: (COMPLETED, 3.5),
    }
    expected = {rate: (status, BUDGET, pytest.approx(loss)) for rate, (status, loss) in expected.items()}
    expected |= {5.0: (STOPPED, 200, 4.5), 9.0: (DIVERGED, 300, None)}
    assert {round(rate, 12): standing for rate, standing in told.items()} == {round(r, 12): s for r, s in expected.items()}


@pytest.mark.parametrize("num_samples, tried", [(1, 1), (4, 1), (8, 2), (12, 3), (400, 5)])
def test_at_most_a_quarter_is_taken_from_earlier_runs(two_runs, num_samples, tried):
    trials = warm_start_trials(search_of("random", warm_start=two_runs, num_samples=num_samples))
    assert [trial["tried"] for trial in trials] == [True] * tried + [False] * (7 - tried)


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_nothing_drifts_when_the_earlier_runs_vanish_or_the_search_grows(two_runs, searcher):
    search = search_of(searcher, warm_start=two_runs, num_samples=16)
    search["warm_start"] = warm_start_trials(search)
    whole = searched(search)
    for folder in two_runs:
        shutil.rmtree(folder)
    search = json.loads(json.dumps(search, allow_nan=False))
    assert searched(search).configs == whole.configs
    search["num_samples"] = 160
    tried = [sampler(search)(index, whole) for index in range(1, 6)]
    assert tried[:4] == drawn(whole)[1:5] and tried[4] != config_at(0.6)  # a quarter of 160 would take that one too
    grown = sampler(search)(16, whole)
    assert (grown == sample(get_space("v1"), NANO, 1, 16)) == (searcher == "random")


def test_tpe_learns_from_earlier_runs_at_once_and_counts_a_repeated_configuration_once(tmp_path):
    rates = [(10 ** (-1 + index / 10), 3 + abs(index - 4) / 10) for index in range(10)]
    folder = write_run(tmp_path / "a", [(1.0, 3.0), *rates])
    search = search_of(warm_start=[folder], num_samples=8)
    search["warm_start"] = warm_start_trials(search)
    state = new_state(LADDER, num_samples=8, draw=sampler(search))
    for _ in range(3):
        state.next_trial()
    draws = [log_rate(sampler(search)(index, state)) for index in range(3, 33)]
    assert sum(-0.9 < rate < -0.3 for rate in draws) >= 16  # the best is at -0.6; by chance 9
    known = _known(state, search["warm_start"])
    assert len(known) == 11 and known[0][1] == (COMPLETED, BUDGET, 3.0)
    state.decide("00001", report("", 200, 4.5))
    assert _known(state, search["warm_start"])[0] == known[0]  # it waits at a rung: what was known says more
    state.record("promote", trial_id="00001", guaranteed=False)
    state.decide("00001", report("", BUDGET, 3.7))
    assert _known(state, search["warm_start"])[0] == (state.configs["00001"], (COMPLETED, BUDGET, 3.7))


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(config={"space": "v2"}), "its space is v2, not v1 as in this search"),
        (dict(config={"preset": "micro"}), "its preset is micro, not nano"),
        (dict(data={"tokenizer": "gpt2"}), "its tokenizer is gpt2, not byte"),
        (dict(train={"budget_tokens": 9}), "its budget_tokens is 9, not 3200"),
        (
            dict(data={"fingerprint": {"train": {"tokens": 8}, "val": {"tokens": 5}}}),
            "its training data is not that of this search",
        ),
        (dict(data={"fingerprint": {"train": {"tokens": 7}, "val": {"tokens": 6}}}), "its validation data is not that of"),
        (dict(ranges={"learning_rate": "1 to 3"}), "its set of ranges is not that of"),
    ],
)
def test_only_a_run_of_the_same_kind_can_seed_a_search(tmp_path, changes, words):
    earlier = search_of()
    for part, values in changes.items():
        earlier[part] |= values
    folder = write_run(tmp_path / "a", [(1.0, 3.0), (0.5, 3.0)], earlier)
    with pytest.raises(InputError) as error:
        warm_start_trials(search_of(warm_start=[folder]))
    assert str(error.value).startswith(f"--warm_start {folder}: ") and words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_run_or_has_nothing_to_give_is_named(tmp_path):
    def refused(folder, words):
        with pytest.raises(InputError) as error:
            warm_start_trials(search_of(warm_start=[str(folder)]))
        assert str(error.value).startswith("--warm_start") and str(folder) in str(error.value)
        assert words in str(error.value) and "\n" not in str(error.value)

    refused(tmp_path, "no run folder")
    early = [{"event": "trial", "trial_id": "00000", "config": config_at(1.0)}, report("00000", 200, 3.0, STOP)]
    write_run(tmp_path / "early", [], others=early)
    refused(tmp_path / "early", "no trial of it has completed")
    write_run(tmp_path / "torn", [(1.0, 3.0)])
    (tmp_path / "torn" / "trials.csv").write_text("")
    refused(tmp_path / "torn", "trials.csv or history.csv is missing or damaged")
    (tmp_path / "torn" / "trials.csv").unlink()
    refused(tmp_path / "torn", "trials.csv or history.csv is missing or damaged")
    assert warm_start_trials(search_of()) == []
