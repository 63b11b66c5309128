"""What a search will take: times as people write them, the pace of a machine, the search played on. No Ray."""

import dataclasses

import pytest
from conftest import begun, report
from helpers import search_of

from myllm.system.errors import InputError
from myllm.text.durations import duration, parse_duration
from tune.core.trials import CONTINUE, STOP
from tune.estimate.forecast import MOST_TRIALS, Throughput, fit_throughput, is_finished, measured_throughput, simulate_rest


@pytest.mark.parametrize(
    ("text", "seconds"), [("7200", 7200), ("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("1.5h", 5400), ("1d", 86400)]
)
def test_times_are_read_as_people_write_them(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "2x", "1m2h", "-5", "1..5h", "1h30", "nan"])
def test_what_is_no_time_is_an_error(text):
    with pytest.raises(InputError, match="is no time"):
        parse_duration(text)


def test_times_are_written_in_two_units():
    found = [duration(seconds) for seconds in (0, 45, 200, 3600, 7499, 86400 + 7300)]
    assert found == ["0 s", "45 s", "3 min 20 s", "1 h", "2 h 5 min", "1 d 2 h"]


def test_the_pace_is_found_in_measurements():
    pace = Throughput(2e-5, 3e-3)
    rows = [(tokens, tokens / step, pace.seconds(tokens, step)) for tokens, step in ((1e4, 512), (2e4, 1024), (5e3, 8192))]
    found = fit_throughput(rows)
    assert (found.per_token, found.per_step) == pytest.approx((2e-5, 3e-3))
    alike = fit_throughput([(1000, 10, 2.0), (2000, 20, 4.0)])
    assert alike.seconds(1000, 100) == pytest.approx(2.0)
    events = [report("a", t, 1.0, step=t / 512, train_seconds=pace.seconds(t, 512)) for t in (1000, 3000)]
    assert measured_throughput(events).seconds(1000, 512) == pytest.approx(pace.seconds(1000, 512))
    assert measured_throughput(events[:1]) is None


def test_a_search_without_rungs_takes_what_its_trials_take():
    search, pace = search_of(scheduler="fifo", num_samples=5, replicate_best=0), Throughput(1e-5, 0.0, per_segment=2.0)
    one = search.budget_tokens * 1e-5 + 2.0
    forecast = simulate_rest(search, [], pace, workers=1)
    assert forecast.seconds == pytest.approx(5 * one) and forecast.tokens == 5 * search.budget_tokens
    assert simulate_rest(search, [], pace, workers=5, used=7.0).seconds == pytest.approx(one + 7)
    assert forecast.came == {search.budget_tokens: 5} and forecast.trials == 5 and forecast.replicates == 0


def test_rungs_fill_as_the_rule_lets_them():
    whole = simulate_rest(search_of(num_samples=16), [], Throughput(1e-5, 1e-3), workers=2)
    assert whole.trials == 16 and list(whole.came.values()) == [16, 5 + whole.replicates]  # a quarter, the baseline


def test_a_search_is_played_on_from_where_it_stands():
    search, pace = search_of(scheduler="fifo", num_samples=5, replicate_best=0), Throughput(1e-5, 0.0)
    budget, events = search.budget_tokens, []
    for index in range(3):
        trial_id = f"{index:05d}"
        events.append(begun(trial_id, segment_end_tokens=budget, config={"learning_rate": 1e-3, "batch_size": 16}))
        tokens = budget if index < 2 else budget // 2
        events.append(report(trial_id, tokens, 3.0, STOP if index < 2 else CONTINUE))
    later = simulate_rest(search, events, pace, workers=1, used=100.0)  # half of one, and two more
    assert later.trials == 5 and later.seconds == pytest.approx(100 + 2.5 * budget * 1e-5)
    assert not is_finished(search, []) and not is_finished(search, events)
    two = dataclasses.replace(search, options=dataclasses.replace(search.options, num_samples=2))
    assert is_finished(two, events[:4]) and not is_finished(two, events[:3])


def test_a_search_of_an_hour_takes_an_hour_and_a_long_one_is_played_as_a_short_one():
    pace = Throughput(1e-5, 1e-3, 0.1)
    assert 0.9 * 3600 < simulate_rest(search_of(time_budget=3600.0), [], pace, workers=2, used=10.0).seconds <= 3600
    search = search_of(scheduler="fifo", num_samples=20 * MOST_TRIALS, replicate_best=0)
    long = simulate_rest(search, [], pace, workers=4)
    assert long.trials == 20 * MOST_TRIALS and long.tokens == long.trials * search.budget_tokens
    short = dataclasses.replace(search, options=dataclasses.replace(search.options, num_samples=MOST_TRIALS))
    assert long.seconds == pytest.approx(20 * simulate_rest(short, [], pace, workers=4).seconds)
