"""Idle slots: who takes them, and what they are worth in a forecast and in times. No Ray."""

import dataclasses
from types import SimpleNamespace

import pytest
from conftest import begun, report
from helpers import search_of

from tune.analysis.speed import training_speeds
from tune.core import simulator
from tune.core.clock import TimeBudget
from tune.core.events import SessionStarted, from_json
from tune.core.slots import JOIN_SECONDS, WORTH, Training, is_worth_joining, is_worth_leaving, share_idle
from tune.core.trials import STOP, Trials
from tune.estimate.forecast import Throughput, measured_throughput, simulate_rest


def test_the_training_that_ends_last_takes_what_its_batch_can_be_divided_among():
    long, short = Training(100.0, 16), Training(60.0, 16)
    assert share_idle({"a": long, "b": short}, 1) == {"a": 2, "b": 1}
    assert share_idle({"a": long, "b": short}, 2) == {"a": 2, "b": 2}  # 50 s and 60 s after the first
    assert share_idle({"a": long}, 7) == {"a": 8} and share_idle({"a": long}, 6) == {"a": 4}
    assert share_idle({"a": Training(100.0, 7), "b": short}, 1) == {"a": 1, "b": 2}  # 7 windows have no half
    assert share_idle({"a": Training(100.0, 12)}, 3, processes=2) == {"a": 3}  # 4 slots are 8 processes
    assert share_idle({"a": dataclasses.replace(long, slots=2), "b": short}, 0) == {"a": 2, "b": 1}


def test_a_new_start_must_be_worth_it():
    least = 2 * WORTH * JOIN_SECONDS  # with two slots half of the time is saved
    assert is_worth_joining(Training(least + 1, 16), 2) and not is_worth_joining(Training(least - 1, 16), 2)
    assert not is_worth_joining(Training(1e9, 16), 1) and not is_worth_joining(Training(1e9, 16, slots=2), 2)
    assert is_worth_leaving(Training(1e9, 16, slots=2)) and not is_worth_leaving(Training(1e9, 16))
    assert not is_worth_leaving(Training(JOIN_SECONDS, 16, slots=2))


def forecast(**options):
    search = search_of(scheduler="fifo", num_samples=3, replicate_best=0, max_concurrent=2, **options)
    pace = Throughput(1000.0 / search.budget_tokens, 0.0)  # 1000 s a training
    return simulate_rest(search, [], pace, workers=2)


def test_the_last_wave_of_a_forecast_is_shorter_by_the_slots_that_join():
    plain, joined = forecast(), forecast(processes_per_trial="auto")
    assert plain.seconds == pytest.approx(2000)
    assert joined.seconds == pytest.approx(1500 + JOIN_SECONDS)
    assert (joined.trials, joined.tokens, joined.came) == (plain.trials, plain.tokens, plain.came)


def test_what_sharing_takes_is_forecast(monkeypatch):
    search = search_of(scheduler="fifo", num_samples=1, replicate_best=0, processes_per_trial="auto")
    step = search.step_tokens(search.baseline)
    pace = Throughput(1000.0 / search.budget_tokens, 0.0, per_shared_step=100.0 / (search.budget_tokens / step))
    assert simulate_rest(search, [], pace, workers=4).seconds == pytest.approx(250 + 100 + JOIN_SECONDS)
    monkeypatch.setattr(simulator, "JOIN_SECONDS", 0.0)
    assert simulate_rest(search, [], pace, workers=4).seconds == pytest.approx(350)


def test_a_forecast_gives_slots_back_where_others_can_begin():
    """After the first rung of asha two trials of four have gone on; whoever joined them leaves when more may begin."""
    plain, joined = (
        simulate_rest(
            search_of(scheduler="asha", num_samples=9, replicate_best=2, processes_per_trial=processes),
            [],
            Throughput(1e-2, 0.0),
            workers=3,
        )
        for processes in (1, "auto")
    )
    assert joined.seconds < plain.seconds and joined.tokens >= 0.9 * plain.tokens


def shared(tokens, seconds, processes, **more):
    return report("a", tokens, 1.0, step=tokens / 512, train_seconds=seconds, processes=processes, **more)


def test_reports_say_how_many_processes_and_their_pace_is_that_of_one_slot():
    assert from_json(shared(512, 1.0, 4).to_json()).processes == 4
    assert "processes" not in shared(512, 1.0, 1).to_json()
    alone = [shared(512 * n, 10.0 * n, 2) for n in (1, 2, 3)]
    events = [SessionStarted(session=0, workers=2, processes=2), *alone, shared(512 * 4, 30.0 + 5.0 + 2.0, 4)]
    found = measured_throughput(events)
    assert found.seconds(512, 512) == pytest.approx(10.0) and found.per_shared_step == pytest.approx(2.0)
    trials = Trials(16384, 1, events=[events[0], begun("a", segment_end_tokens=16384, config={}), *events[1:]])
    assert trials.by_id["a"].slot_seconds == pytest.approx(30 + 2 * 7) and trials.by_id["a"].train_seconds == 37
    watch = TimeBudget(None)
    watch.see(None, SimpleNamespace(position=1000, train_seconds=5.0), slots=2)
    assert watch.seconds_per_token == pytest.approx(0.01)


def test_the_time_of_a_full_training_is_that_of_one_slot():
    events = [SessionStarted(session=0, workers=2), begun("a", segment_end_tokens=2048, config={})]
    events += [shared(1024, 20.0, 1), shared(2048, 32.0, 2, decision=STOP)]
    speeds = training_speeds(Trials(2048, 1, events=events))
    assert speeds.loc["a", "seconds"] == pytest.approx(40.0)
