"""The pure parts of a search: spaces, schedulers, journal, tables, resources. No Ray."""

import itertools
import json
import math
import time

import numpy as np
import pytest

from myllm.config import PRESETS
from myllm.errors import InputError
from tune.journal import FILE_NAME, Journal, read_journal
from tune.options import SearchConfig
from tune.results import best_trial, probability_best, search_seconds, standings, tables, valid_name
from tune.schedulers import CONTINUE, LADDER_OF_MANY, STOP, Asha, Fifo
from tune.session import Session
from tune.settings import settle_resources
from tune.spaces import SPACES, get_space, sample
from tune.state import REPORTED, Plan, SearchState
from tune.trainable import trial_config


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("space", SPACES)
def test_every_draw_is_a_training_that_meets_the_marks(space, preset):
    reference = PRESETS[preset]
    train = vars(reference.training(version=SPACES[space].version))
    report_tokens = reference.budget_tokens // 32
    for index in range(20):
        drawn = sample(get_space(space), reference, seed=3, index=index)
        config = trial_config(train, report_tokens, drawn)
        assert config.eval_freq * config.tokens_per_step == report_tokens
        assert 0.099 <= config.learning_rate / reference.learning_rate <= 10.01
        assert 0.25 <= config.batch_size / reference.batch_size <= 4


def test_draws_are_a_pure_function_and_the_first_is_the_reference():
    space, nano = get_space("v2"), PRESETS["nano"]
    assert sample(space, nano, 1, 5) == sample(space, nano, 1, 5) != sample(space, nano, 2, 5)
    assert sample(space, nano, 1, 5) != sample(space, nano, 1, 6)
    reference = nano.training()
    assert sample(space, nano, 1, 0) == {
        "learning_rate": reference.learning_rate,
        "batch_size": reference.batch_size,
        "warmup_ratio": reference.warmup_ratio,
        "clip_norm": reference.clip_norm,
    }


def test_draws_leave_no_holes():
    preset = PRESETS["nano"]
    for seed in range(30):
        drawn = [sample(get_space("v2"), preset, seed, index) for index in range(1, 16)]
        assert {config["batch_size"] for config in drawn} == {4, 8, 16, 32, 64}
        rates = sorted(math.log10(config["learning_rate"] / preset.learning_rate) for config in drawn)
        assert max(b - a for a, b in itertools.pairwise([-1.0, *rates, 1.0])) < 0.35  # of two decades


def test_an_unknown_hyper_parameter_is_an_error():
    with pytest.raises(InputError, match="lerning_rate"):
        trial_config(vars(PRESETS["nano"].training()), 8192, {"lerning_rate": 1})


def test_a_torn_last_line_is_dropped_and_other_damage_is_named(tmp_path):
    journal = Journal(tmp_path)
    journal.append("trial", trial_id="00000", config={})
    with pytest.raises(InputError, match="another search is running"):
        Journal(tmp_path)
    del journal
    with open(tmp_path / FILE_NAME, "a") as file:
        file.write('{"event": "rep')
    assert len(read_journal(tmp_path)) == 1
    Journal(tmp_path).append("failed", trial_id="00000", reason="x")
    assert [e["event"] for e in read_journal(tmp_path)] == ["trial", "failed"]
    with open(tmp_path / FILE_NAME, "a") as file:
        file.write("garbage\n")
    with pytest.raises(InputError, match="line 3 is damaged"):
        read_journal(tmp_path)


def state_of(events, budget_tokens=200, scheduler=None, **changes):
    """A search's state after `events`; what it records goes nowhere."""
    plan = Plan(**dict(num_samples=9, budget_tokens=budget_tokens, seed=7, draw=lambda index, state: {}) | changes)
    return SearchState(plan, scheduler or Fifo(), lambda event, **values: {"event": event} | values, events)


def report(trial_id, tokens, loss, decision=CONTINUE, **changes):
    values = dict(
        event="report", trial_id=trial_id, decision=decision, step=tokens // 10, tokens_seen=tokens, val_loss=loss
    )
    return values | dict.fromkeys(set(REPORTED) - set(values), 1.0) | {"diverged": False} | changes


def test_tables_and_statuses():
    events = [{"event": "trial", "trial_id": f"{i:05d}", "config": {"learning_rate": i}} for i in range(6)]
    events += [
        report("00000", 100, 3.0),
        report("00000", 200, 3.5, STOP),
        report("00001", 100, 2.0, STOP),
        report("00002", 100, math.nan, STOP, diverged=True),
        report("00003", 100, 1.0),
        report("00005", 200, 3.2, STOP),
        {"event": "failed", "trial_id": "00004", "reason": "boom"},
        {"event": "checkpoint", "trial_id": "00005", "step": 20, "path": "ray/x"},
    ]
    trials, history = tables(state_of(events))
    assert trials["status"].tolist() == ["completed", "stopped", "diverged", "interrupted", "failed", "completed"]
    assert trials["best_val_loss"].tolist()[:2] == [3.0, 2.0]
    assert best_trial(trials)["trial_id"] == "00005" and trials["checkpoint"][5] == "ray/x"
    assert trials["reason"][4] == "boom" and len(history) == 6
    assert best_trial(tables(state_of(json.loads(json.dumps(events[:6]))))[0]) is None


def test_the_best_is_named_among_those_that_ran_on_two_seeds():
    losses = {"00000": 3.0, "00001": 2.0, "00002": 2.5, "00001-seed": 4.0, "00002-seed": 2.7, "00000-seed": 3.0}
    events = []
    for trial_id, loss in losses.items():
        event = {"event": "trial", "trial_id": trial_id, "config": {"learning_rate": 1.0}}
        if "-" in trial_id:
            event["config"]["seed"], event["confirms"] = 8, trial_id[:5]
        events += [event, report(trial_id, 200, loss, STOP)]
    trials, _ = tables(state_of(events))
    table = standings(trials)
    assert table.index.tolist() == ["00002", "00000", "00001"]  # of equal means the earlier first
    assert table["val_loss"].tolist() == pytest.approx([2.6, 3.0, 3.0])
    assert table["spread"].tolist() == pytest.approx([0.2, 0.0, 2.0])
    assert table["probability_best"].sum() == pytest.approx(1) and table["probability_best"].idxmax() == "00002"
    assert best_trial(trials)["trial_id"] == "00002" and trials["seed"].tolist() == [7, 8, 7, 8, 7, 8]
    assert best_trial(trials[trials["confirms"] == ""])["trial_id"] == "00001"


def test_the_probability_of_the_best_has_its_closed_forms():
    assert probability_best([[1.0], [2.0]]) == pytest.approx([math.nan, math.nan], nan_ok=True)
    assert probability_best([[1.0, 2.0], [2.0, 1.0]]) == pytest.approx([0.5, 0.5], abs=0.02)
    # Two with two seeds each: the difference is Student t with 2 degrees, whose distribution has a closed form.
    first, second = [1.0, 1.2], [1.3, 1.7]
    variance = (0.02 + 0.08) / 2
    t = 0.4 / math.sqrt(variance * (1 / 2 + 1 / 2))
    expected = 0.5 + t / (2 * math.sqrt(2 + t * t))
    assert probability_best([first, second]) == pytest.approx([expected, 1 - expected], abs=0.02)
    # Many seeds: the normal distribution, its variance all but known.
    rng = np.random.default_rng(1)
    many = [(rng.standard_normal(400) + shift).tolist() for shift in (0.0, 0.1)]
    difference = np.mean(many[1]) - np.mean(many[0])
    expected = 0.5 * (1 + math.erf(difference / math.sqrt(2 / 400) / math.sqrt(2)))
    assert probability_best(many)[0] == pytest.approx(expected, abs=0.02)
    assert sum(probability_best([[3.0, 1.0], [2.0, 1.5], [9.0, 8.0], [1.0]])) == pytest.approx(1)


def test_seconds_count_every_session_and_no_pause():
    kinds = [("session", 100), ("report", 110), ("session", 200), ("report", 203), ("session_end", 204)]
    assert search_seconds([{"event": event, "time": time} for event, time in kinds]) == 14
    assert search_seconds([]) == 0


def test_resources_share_what_there_is():
    def settle(cpus, gpus, **changes):
        found = settle_resources(SearchConfig(**changes), cpus, gpus)
        return found.cpus_per_trial, found.gpus_per_trial, found.slots

    assert settle(2, 0) == (1, 0, 2)
    assert settle(8, 0, cpus_per_trial=3) == (3, 0, 2)
    assert settle(16, 8) == (2, 1, 8)
    assert settle(16, 2, gpus_per_trial=0.5) == (4, 0.5, 4)
    assert settle(16, 8, gpus_per_trial=2) == (4, 2, 4)
    assert settle(8, 0, max_concurrent=3) == (1, 0, 3)
    assert settle(8, 4, gpus_per_trial=0) == (1, 0, 8)
    with pytest.raises(InputError, match="--gpus_per_trial is 1, but there are 0"):
        settle(2, 0, gpus_per_trial=1)
    with pytest.raises(InputError, match="--cpus_per_trial is 3"):
        settle(2, 0, cpus_per_trial=3)


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".cache", "a\n", "/etc"])
def test_names_cannot_leave_the_runs_folder(name):
    assert not valid_name(name)
    with pytest.raises(InputError, match="--name"):
        SearchConfig(name=name)


@pytest.mark.parametrize("breed", [None, lambda index, state: {}])
def test_a_slow_moment_at_the_start_closes_a_timed_search_only_until_it_is_over(tmp_path, breed):
    config = {"keep_checkpoints": "best", "time_budget": 100.0, "confirm": None, "storage_path": None}
    plan = Plan(num_samples=1000, budget_tokens=32_000, draw=lambda index, state: {}, breed=breed, confirm=3)
    scheduler = Asha(LADDER_OF_MANY, 32_000, 1000, late=True)
    state = SearchState(plan, scheduler, lambda event, **values: {"event": event, "time": time.time()} | values)
    session = Session(tmp_path, {"config": config}, state, 2)
    state.record("session", session=0, slots=2)
    session.started = 1

    def trials(count, tok_per_sec):
        for _ in range(count):
            trial_id = state.next_trial()
            state.decide(trial_id, report(trial_id, 1000, 3.0, tok_per_sec=tok_per_sec))
            state.running.discard(trial_id)

    trials(8, 500.0)  # so 16 full trainings would take 614 s of two slots
    session.watch_time()
    assert state.closed and state.confirm == 0
    state.record("reopen")
    trials(40, 10_000.0)  # by now a quarter is slow no more
    state.record("close")
    session.watch_time()
    assert not state.closed and state.confirm == 0
    session.watch_time()
    assert not state.closed and state.confirm == 3
    kinds = [event["event"] for event in state.events]
    session.watch_time()
    assert [event["event"] for event in state.events] == kinds  # settled
    state.record("close")
    session.watch_time()
    assert state.closed == bool(breed)  # what time there is goes to offspring, once that is begun
    state.record("close")
    state.record("bred")
    state.record("trial", trial_id="00003-seed", config={}, confirms="00003")
    session.watch_time()
    assert state.closed  # too late for new ones: the finalists are being chosen
