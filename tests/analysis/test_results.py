"""The pure parts of a search: spaces, journal, tables, who is best, resources, the clock. No Ray."""

import dataclasses
import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BUDGET, begun, report
from helpers import search_of

from myllm.config import GPTConfig
from myllm.presets import PRESETS
from myllm.system.errors import InputError
from tune.analysis.posterior import expected_losses, interval, probability_of_best
from tune.analysis.results import leaderboard, posterior_summary, tables
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_resources
from tune.config.spec import read_search
from tune.core.clock import SearchClock, TimeBudget, search_seconds
from tune.core.events import CheckpointStored, SessionEnded, SessionStarted, TrialFailed, TrialStarted
from tune.core.search_space import SPACES, get_space, sample
from tune.core.trials import PAUSE, REPLICATE, STOP, Trials
from tune.store.journal import FILE_NAME, Journal, read_journal


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("space", SPACES)
def test_every_draw_is_a_training_that_meets_the_marks(space, preset):
    reference, search = PRESETS[preset], search_of(preset, space)
    report_tokens = search.report_tokens
    for index in range(20):
        drawn = sample(get_space(space), reference, seed=3, index=index)
        config = search.train_config(drawn)
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
        search_of().train_config({"lerning_rate": 1})


def test_settings_are_read_back_as_they_were_written(tmp_path):
    search = search_of(name="x", rungs="0.5:2", warm_start=("a", "b"))
    search.write(tmp_path)
    assert read_search(tmp_path) == search
    values = json.loads((tmp_path / "search.json").read_text())
    for wrong, words in (
        (values | {"format": 1}, "is of format 1"),
        ({k: v for k, v in values.items() if k != "data"}, "is damaged"),
        (values | {"model": {"n_layer": 0}}, "model"),
        ([], "is damaged"),
    ):
        (tmp_path / "search.json").write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=words):
            read_search(tmp_path)
    with pytest.raises(InputError, match="no run folder"):
        read_search(tmp_path / "other")


def test_a_torn_last_line_is_dropped_and_other_damage_is_named(tmp_path):
    journal = Journal(tmp_path)
    journal.append(begun("00000"))
    with pytest.raises(InputError, match="another search is running"):
        Journal(tmp_path)
    del journal
    with open(tmp_path / FILE_NAME, "a") as file:
        file.write('{"event": "rep')
    assert len(read_journal(tmp_path)) == 1
    Journal(tmp_path).append(TrialFailed(trial_id="00000", reason="x"))
    assert [type(event) for event in read_journal(tmp_path)] == [TrialStarted, TrialFailed]
    with open(tmp_path / FILE_NAME, "a") as file:
        file.write("garbage\n")
    with pytest.raises(InputError, match="line 3 is damaged"):
        read_journal(tmp_path)


def test_the_journal_is_json_and_what_is_no_number_comes_back_as_nan(tmp_path):
    journal = Journal(tmp_path)
    numbers = {"val_loss": math.inf, "val_loss_ema": math.nan, "train_loss": 2.5}
    returned = journal.append(dataclasses.replace(report("00000", 100, 2.0), **numbers))
    (line,) = (tmp_path / FILE_NAME).read_text().splitlines()
    written = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (written["val_loss"], written["val_loss_ema"], written["train_loss"]) == (None, None, 2.5)
    (tmp_path / FILE_NAME).write_text(line + "\n" + json.dumps(written | {"val_loss": math.nan}) + "\n")
    for event in (returned, *read_journal(tmp_path)):  # the last line is of an older version
        assert math.isnan(event.val_loss) and math.isnan(event.val_loss_ema) and event.train_loss == 2.5


def trials_of(events, budget_tokens=200):
    return Trials(budget_tokens, num_samples=9, events=events)


def test_tables_and_statuses():
    events = [begun(f"{i:05d}", config={"learning_rate": i}) for i in range(7)]
    events += [
        report("00000", 100, 3.0),
        report("00000", 200, 3.5, STOP),
        report("00001", 100, 2.0, STOP),
        report("00002", 100, math.nan, STOP, diverged=True),
        report("00003", 100, 1.0),
        report("00005", 200, 3.2, STOP),
        report("00006", 100, 2.5, PAUSE),
        TrialFailed(trial_id="00004", reason="boom"),
        CheckpointStored(trial_id="00005", tokens_seen=200, path="ray/x"),
    ]
    trials, history = tables(trials_of(events), seed=7)
    assert trials["status"].tolist() == ["completed", "stopped", "diverged", "running", "failed", "completed", "paused"]
    assert trials["best_val_loss"].tolist()[:2] == [3.0, 2.0]
    assert leaderboard(trials_of(events)).index.tolist() == ["00005", "00000"] and trials["checkpoint"][5] == "ray/x"
    assert trials["reason"][4] == "boom" and len(history) == 7 and set(trials["seed"]) == {7}
    early = leaderboard(trials_of([*events[:7], events[7], events[9], events[11]]))  # none at the end
    assert early.index.tolist() == ["00003", "00001", "00000"] and set(early["tokens_seen"]) == {100}
    assert leaderboard(trials_of([])).empty


def test_one_that_ended_alone_is_compared_where_others_have_come():
    events = [begun("00000"), begun("00001"), report("00000", 100, 3.0), report("00000", 200, 2.5, STOP)]
    assert leaderboard(trials_of(events)).index.tolist() == ["00000"]
    events.append(report("00001", 100, 2.8, PAUSE))
    table = leaderboard(trials_of(events))
    assert table.index.tolist() == ["00001", "00000"] and set(table["tokens_seen"]) == {100}


def seen_twice(losses):
    """Events of trials that ended with these losses; `00001-seed` repeats 00001."""
    events = []
    for trial_id, loss in losses.items():
        more = {"source": REPLICATE, "parent_id": trial_id[:5]} if "-" in trial_id else {}
        events += [begun(trial_id, config={"learning_rate": 1.0} | ({"seed": 8} if more else {}), **more)]
        bad = math.isnan(loss)
        events += [report(trial_id, 100 if bad else 200, loss, STOP, diverged=bad)]
    return events


def test_the_best_is_named_among_those_that_ran_on_two_seeds():
    events = seen_twice({"00000": 3.0, "00001": 2.0, "00002": 2.5, "00001-seed": 4.0, "00002-seed": 2.7, "00000-seed": 3.0})
    table = leaderboard(trials_of(events))
    assert table.index.tolist() == ["00002", "00000", "00001"]  # of equal means the earlier first
    assert table["val_loss"].tolist() == pytest.approx([2.6, 3.0, 3.0])
    assert table["spread"].tolist() == pytest.approx([0.2, 0.0, 2.0])
    belief = posterior_summary(table, "00000")
    assert belief["probability_best"].sum() == pytest.approx(1) and belief["probability_best"].idxmax() == "00002"
    assert (belief["low"] < table["val_loss"]).all() and (belief["high"] > table["val_loss"]).all()
    assert posterior_summary(leaderboard(trials_of(events[:6])), "00000").isna().all(axis=None)  # nothing seen twice
    trials, _ = tables(trials_of(events), seed=7)
    assert trials["seed"].tolist() == [7, 8, 7, 8, 7, 8] and trials["parent_id"].tolist() == [
        "",
        "00000",
        "",
        "00001",
        "",
        "00002",
    ]
    once = [event for event in events if "-" not in event.trial_id]
    assert leaderboard(trials_of(once)).index[0] == "00001"


def test_a_repetition_without_a_seed_counts_only_where_its_loss_differs():
    losses = {"00000": 3.0, "00001": 2.0, "00001-again": 2.0, "00002": 2.5, "00002-again": 2.6}
    trials = trials_of(seen_twice(losses))
    trials.has_seeds = False
    assert leaderboard(trials)["losses"].to_dict() == {"00000": [3.0], "00001": [2.0], "00002": [2.5, 2.6]}
    trials.has_seeds = True
    assert leaderboard(trials)["losses"]["00001"] == [2.0, 2.0]


def test_a_configuration_that_diverges_on_another_seed_is_not_the_best():
    table = leaderboard(trials_of(seen_twice({"00000": 2.0, "00001": 3.0, "00000-seed": math.nan, "00001-seed": 3.1})))
    assert table.index.tolist() == ["00001", "00000"] and table["val_loss"].tolist() == [pytest.approx(3.05), math.inf]


def test_beliefs_where_the_answer_is_known():
    assert expected_losses([]) is None and expected_losses([[1.0], [2.0]]) is None
    same = expected_losses([[1.0, 2.0], [2.0, 1.0]])
    assert (same.argmin(axis=1) == 0).mean() == pytest.approx(0.5, abs=0.05)
    far = expected_losses([[1.0, 1.01], [2.0, 2.01], [3.0, 3.01], [4.0]])
    assert (far.argmin(axis=1) == 0).mean() == pytest.approx(1, abs=0.02)
    assert np.ptp(interval(far[:, 3])) > 1.5 * np.ptp(interval(far[:, 2]))  # seen once: less is known
    low, high = interval(far[:, 2])  # it was let pass, so its seeds are the luckier ones
    assert high - 3.005 > 1.5 * (3.005 - low)
    # A lead within the noise is pulled towards the others; that of a reference, whom nobody picked, is not.
    rng = np.random.default_rng(0)
    alike = [(rng.standard_normal(2) / 10).tolist() for _ in range(10)]
    best = int(np.argmin([np.mean(losses) for losses in alike]))
    assert np.mean(alike[best]) < expected_losses(alike)[:, best].mean() - 0.03
    assert expected_losses(alike, baseline=best)[:, best].mean() == pytest.approx(np.mean(alike[best]), abs=0.02)


def test_nobody_is_the_best_for_sure():
    sure = probability_of_best(np.repeat([[1.0, 2.0, 3.0]], 100, axis=0))
    assert sure.sum() == pytest.approx(1) and 0.98 < sure[0] < 0.995
    even = probability_of_best(np.random.default_rng(0).random((10_000, 2)))
    assert even.sum() == pytest.approx(1) and even[0] == pytest.approx(0.7, abs=0.02)  # it was ahead at the rungs, too


def test_intervals_hold_as_often_as_they_say_where_noise_is_normal():
    import coverage  # of experiments/

    loss, gain = coverage.in_theory(150, np.random.default_rng(0))
    assert 0.85 <= loss <= 0.95 and gain >= 0.85


def test_seconds_count_every_session_and_no_pause():
    sessions = [SessionStarted(time=time, session=0, workers=1) for time in (100, 200)]
    reports = [report("00000", 100, 2.0, time=time) for time in (110, 203)]
    ended = SessionEnded(time=204, session=1)
    assert search_seconds([sessions[0], reports[0], sessions[1], reports[1], ended]) == 14
    assert search_seconds([]) == 0
    back = [
        SessionStarted(time=100, session=0, workers=1, startup_seconds=2.5),
        report("00000", 100, 2.0, time=90),
        report("00000", 200, 2.0, time=95),
    ]
    spent = SearchClock(back)  # the clock was set back by ten seconds
    assert (spent.search, spent.starting) == (7.5, 2.5)


def test_resources_share_what_there_is():
    def settle(cpus, gpus, **changes):
        found = resolve_resources(SearchOptions(**changes), cpus, gpus)
        return found.cpus_per_trial, found.gpus_per_trial, found.workers

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
    with pytest.raises(InputError, match="--name"):
        SearchOptions(name=name)


def test_the_stopwatch_counts_tokens_at_the_pace_of_the_slower_reports():
    watch = TimeBudget(100.0)
    assert watch.read(10.0, 4.0).left == math.inf  # nothing is measured yet
    for index in range(8):
        pace = 100.0 if index < 4 else 50.0
        before = SimpleNamespace(position=1000, train_seconds=5.0)
        watch.see(before, SimpleNamespace(position=2000, train_seconds=5.0 + 1000 / pace))
    clock = watch.read(40.0, 4.0)
    assert clock.used == pytest.approx(36 * 50) and clock.left == pytest.approx(60 * 50)
    later = watch.read(70.0, 4.0)  # while workers wait: what is shared out stays what it is
    assert later.used + later.left == pytest.approx(clock.used + clock.left)
    assert watch.read(130.0, 4.0).left == 0.0
    assert TimeBudget(None).read(1e9, 4.0).left == math.inf


def test_search_configurations_are_frozen():
    search = search_of()
    with pytest.raises(dataclasses.FrozenInstanceError):
        search.report_tokens = 5
    assert isinstance(search.model, GPTConfig) and search.budget_tokens != BUDGET
