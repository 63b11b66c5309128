"""Searches with --budget_seconds: every trial has the same time, and positions are milliseconds. No Ray."""

import dataclasses
import json

import pandas as pd
import pytest
from conftest import begun, report
from helpers import SCHEMA, asha_search, config_at, search_of, write_events

from myllm.config import TIMED_REPORTS
from myllm.system.errors import InputError
from tune.analysis.results import load, write_best
from tune.analysis.speed import fastest_alike, training_speeds
from tune.config.command_line import read_experiment, read_text
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search
from tune.config.spec import read_search
from tune.core.coordinator import Coordinator
from tune.core.events import REPORTED, SessionStarted, from_json
from tune.core.schedulers.base import Clock
from tune.core.trials import CONTINUE, PAUSED, STOP, Trials
from tune.report import write_report
from tune.reporting.summarize import summarize

PART = 100  # milliseconds of a training between two reports; a training has 3.2 s


def timed(search):
    """The search with 3.2 s in place of its tokens."""
    training = dataclasses.replace(search.training, budget_tokens=None, budget_seconds=TIMED_REPORTS * PART / 1000)
    return dataclasses.replace(search, training=training, report_tokens=PART)


def result(part, tokens, loss=3.0, **more):
    """What a trial reports after so many parts of its time."""
    values = {"tokens_seen": tokens, "val_loss": loss, "diverged": False, "train_seconds": part * PART / 1000}
    return dict.fromkeys(REPORTED, 0.0) | values | {"budget_seconds": part * PART / 1000} | more


def test_trials_pause_at_shares_of_their_own_time_whatever_their_tokens():
    search, events = timed(search_of(rungs="0.03125:2,0.125:2,0.25:2")), []
    trials = Trials(search.budget_tokens, 4, events=[SessionStarted(session=0, workers=2)])
    scheduler = search.scheduler()
    assert search.budget_tokens == 3200 and scheduler.rung_tokens == (100, 400, 800)

    def append(event):
        events.append(event)
        return event

    coordinator = Coordinator(trials, scheduler, lambda index, trials, proposed: search.sample(index), append)
    fast, slow = coordinator.next_trial(Clock(0.0)), coordinator.next_trial(Clock(0.0))
    assert coordinator.on_report(fast, result(1, 70_000, loss=2.0), Clock(0.0)) in (CONTINUE, "pause")
    coordinator.on_report(slow, result(1, 3_000), Clock(0.0))
    assert fast.losses.keys() == slow.losses.keys() == {100} and slow.status == PAUSED
    assert trials.tokens == 73_000 and trials.trained == 200
    coordinator.on_report(fast, result(1, 70_000, loss=2.0), Clock(0.0))  # told again after a crash
    assert trials.tokens == 73_000
    again = Trials(search.budget_tokens, 4)
    for event in events:
        again.apply(from_json(json.loads(json.dumps(event.to_json()))))
    assert again.by_id[fast.trial_id].losses == fast.losses and again.tokens == trials.tokens


@pytest.fixture
def resolved(byte_files, tmp_path):
    """resolved(**options): a search's settings, checked."""
    train, val = ((str(path),) for path in byte_files)

    def resolve(**options):
        return resolve_search(SearchOptions(train_file=train, val_file=val, name="x", **options), tmp_path / "cache")

    return resolve


def test_a_time_becomes_equal_parts_for_batches_of_any_size(resolved, tmp_path):
    search = resolved(budget_seconds=10.0, choices=("batch_size=6,7,8",))
    assert search.report_tokens == 312 and search.training.budget_seconds == pytest.approx(9.984)
    assert search.training.budget_tokens is None and search.budget_text == "10 s of steps"
    for batch_size in (6, 7, 8):  # no report point in tokens would suit them all
        config = search.train_config(search.baseline | {"batch_size": batch_size})
        assert config.budget_seconds == search.training.budget_seconds and config.budget_tokens is None
    search.write(tmp_path)
    assert read_search(tmp_path) == search


def test_what_is_said_twice_or_is_no_time_is_one_line(resolved, tmp_path):
    with pytest.raises(InputError, match="--budget_seconds and --budget_tokens both say how long a full training is"):
        resolved(budget_seconds=10.0, budget_tokens=40_000)
    with pytest.raises(InputError, match="--budget_seconds is 0; it must be a positive number of seconds"):
        resolved(budget_seconds=0)
    with pytest.raises(InputError, match="--budget_seconds does not go with --target"):
        SearchOptions(budget_seconds=10.0, target=("micro",))
    assert read_text("budget_seconds", "10m") == 600
    (tmp_path / "a.toml").write_text('budget_seconds = "1h30m"')
    assert read_experiment(str(tmp_path / "a.toml"), {})["budget_seconds"] == 5400


def run_of(folder, search, rows):
    """A run folder of completed trials: (trial_id, configuration, loss, seconds, tokens) each."""
    folder.mkdir()
    events = [SessionStarted(session=0, workers=1, time=1.0)]
    end = search.budget_tokens
    for trial_id, config, loss, seconds, tokens in rows:
        seed = {"source": "replicate", "parent_id": trial_id[:6]} if "seed" in trial_id else {}
        more = {"budget_seconds": end / 1000} if search.training.budget_seconds else {}
        events += [begun(trial_id, segment_end_tokens=end, config=config, **seed)]
        events += [report(trial_id, tokens, loss, STOP, train_seconds=seconds, time=2.0, **more)]
    write_events(folder, *events)
    search.write(folder)
    return folder


def rows_of(end):
    best, small = config_at(0.8, 4), config_at(0.8, 16)
    return [
        ("t00000", config_at(1.0), 2.50, 50.0, end),
        ("t00001", best, 2.10, 92.0, end),
        ("t00001-seed", best | {"seed": 7}, 2.14, 92.0, end),
        ("t00002", small, 2.13, 40.0, end),
        ("t00002-seed", small | {"seed": 7}, 2.13, 40.0, end),
        ("t00003", config_at(0.1), 3.00, 60.0, end),
    ]


def test_the_summary_names_what_is_as_good_and_faster(tmp_path):
    search = asha_search("random", seed=99, num_samples=8)
    run = run_of(tmp_path / "run", search, rows_of(search.budget_tokens))
    said = write_report(run)
    assert "faster      batch_size 16 (trial t00002): 0.0100 behind, within the noise, 2.3 times as fast" in said
    found = json.loads((run / "summary.json").read_text())
    __import__("jsonschema").validate(found, SCHEMA)
    assert found["faster"]["trial_id"] == "t00002" and found["faster"]["times"] == pytest.approx(2.3)
    table = pd.read_csv(run / "figures" / "speed.csv", index_col="trial_id")
    assert set(table.index[table["is_front"]]) == {"t00001", "t00002"}  # the others are slower and worse
    assert "2.3 times as fast" in (run / "report.html").read_text()


def test_nothing_is_named_without_noise_or_a_real_difference_in_time():
    speeds = pd.DataFrame({"val_loss": [2.0, 2.01], "seconds": [10.0, 9.0]}, index=["a", "b"])
    low = pd.Series({"a": 1.99, "b": 1.995})
    assert fastest_alike(speeds, low) is None  # 1.1 times as fast
    speeds.loc["b", "seconds"] = 5.0
    assert fastest_alike(speeds, low) == ("b", pytest.approx(0.01), 2.0)
    assert fastest_alike(speeds, low + 0.02) is None  # beyond the noise
    assert fastest_alike(speeds, low * float("nan")) is None  # no configuration has two seeds
    assert fastest_alike(speeds.iloc[:0], low) is None


def test_a_search_at_equal_time_is_reported_in_seconds(tmp_path):
    search = timed(asha_search("random", seed=99, num_samples=8))
    run = run_of(tmp_path / "run", search, [(*row[:4], 1000 + 9 * int(row[3])) for row in rows_of(0)])
    said = write_report(run)
    assert "tokens (3.2 s a full training)" in said and "faster" not in said
    summary = summarize(run, *load(run))
    assert summary.budget_tokens is None and summary.budget_seconds == 3.2 and summary.cost.trainings == 6
    assert summary.cost.tokens == sum(1000 + 9 * seconds for seconds in (50, 92, 92, 40, 40, 60))
    curves = pd.read_csv(run / "figures" / "curves.csv")
    assert set(curves["tokens_seen"]) == {3.2}
    speeds = training_speeds(load(run)[1], in_seconds=True)
    assert list(speeds.index[speeds["is_front"]]) == ["t00001", "t00002"]
    write_best(run, load(run)[1], search)
    train = json.loads((run / "best_config.json").read_text())["train"]
    assert train["budget_seconds"] == 3.2 and train["budget_tokens"] is None
