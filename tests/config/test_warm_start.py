"""What a search takes from earlier runs. No Ray."""

import dataclasses
import math
import shutil

import pytest
from conftest import BUDGET, begun, report
from helpers import MILESTONES, NANO, asha_search, config_at, draws_of, log_rate, searched, write_run

from myllm.system.errors import InputError
from tune.config.spec import read_search
from tune.config.warm_start import warm_start_trials
from tune.core.events import TrialResumed
from tune.core.search_space import LINEAR, Range, get_space, sample
from tune.core.searchers.tpe import known_configurations
from tune.core.trials import COMPLETED, DIVERGED, PAUSE, PAUSED, REPLICATE, STOP, Trials
from tune.store.journal import FILE_NAME


def drawn(trials):
    return [trial.config for trial in trials.drawn]


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
    search = read_search(tmp_path)
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
    known = known_configurations(trials, search.warm_start, MILESTONES)
    assert len(known) == 11 and known[0][1] == (COMPLETED, BUDGET, 3.0)
    trials.apply(report("00001", 200, 4.5, PAUSE))
    assert (
        known_configurations(trials, search.warm_start, MILESTONES)[0] == known[0]
    )  # it waits at a rung: what was known says more
    trials.apply(TrialResumed(trial_id="00001", segment_end_tokens=BUDGET))
    trials.apply(report("00001", BUDGET, 3.7))
    assert known_configurations(trials, search.warm_start, MILESTONES)[0] == (
        trials.drawn[1].config,
        (COMPLETED, BUDGET, 3.7),
    )


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
        (lambda s: dataclasses.replace(s, ranges={"dropout": Range(0.0, 1.0, LINEAR)}), "it searched dropout, and"),
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
