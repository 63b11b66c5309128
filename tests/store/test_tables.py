"""trials.csv and history.csv while a search runs: rows are added, none is rewritten, and in the end both are whole."""

import itertools

import pandas as pd
import pytest
from conftest import BUDGET, begun, index_of, new_search, report

from tune.analysis.results import tables
from tune.core.simulator import play
from tune.core.trials import REPLICATE, STOP
from tune.store.tables import HISTORY, TRIALS, GrowingTables, write_tables


def read(folder, name):
    return pd.read_csv(folder / name, dtype={"trial_id": str})


def test_tables_grow_by_rows_and_the_last_of_a_trial_counts(tmp_path):
    record = []
    search = new_search("explore-finish", num_samples=12, workers=2, confirm=1, record=record)
    growing, append, contents = GrowingTables(tmp_path, search.trials, 7), search.append, []

    def journalled(event):
        growing.see(append(event))
        return event

    def grows(worker, begin, end, trial):
        growing.flush()
        contents.append([(tmp_path / name).read_text() for name in (TRIALS, HISTORY)])

    search.append = journalled
    play(search, lambda trial, tokens: float(index_of(trial)) + (tokens < BUDGET), watch=grows)
    growing.flush()
    assert len(contents) > 15
    for before, after in itertools.pairwise(contents):  # the first time they are written whole
        assert all(new.startswith(old) for old, new in zip(before, after, strict=True))
    rows = read(tmp_path, TRIALS)
    assert rows["trial_id"].duplicated().any()
    rows, reports = rows.drop_duplicates("trial_id", keep="last"), read(tmp_path, HISTORY)
    write_tables(tmp_path, search.trials, 7)
    whole, history = read(tmp_path, TRIALS), read(tmp_path, HISTORY)
    pd.testing.assert_frame_equal(rows.sort_values("trial_id", ignore_index=True), whole, check_dtype=False)
    order = ["trial_id", "tokens_seen"]
    pd.testing.assert_frame_equal(reports.sort_values(order, ignore_index=True), history)
    expected, expected_history = tables(search.trials, 7)
    assert whole["val_loss"].tolist() == expected["val_loss"].tolist() and (whole["seed"] == 7).any()
    assert history["val_loss"].tolist() == expected_history["val_loss"].tolist() and not history.duplicated(order).any()


@pytest.mark.parametrize("replicates", [0, 2])
def test_a_plain_reader_keeps_ids_as_text(replicates, tmp_path):
    """Without the letter pandas would read 00001 as 1, and a column of parents with empty cells as 1.0."""
    search = new_search("asha", num_samples=6, confirm=replicates)
    play(search, lambda trial, tokens: 2.0 + index_of(trial) / 10)
    write_tables(tmp_path, search.trials, 7)
    table, history = pd.read_csv(tmp_path / TRIALS), pd.read_csv(tmp_path / HISTORY)
    assert table["trial_id"].tolist() == sorted(search.trials.by_id) and set(history["trial_id"]) == set(table["trial_id"])
    assert table["trial_id"].tolist()[0] == "t00000" and history["trial_id"].map(type).eq(str).all()
    repeats = table["source"] == REPLICATE
    assert repeats.any() == bool(replicates) and table["parent_id"][~repeats].isna().all()
    assert table["parent_id"][repeats].tolist() == [row.split("-")[0] for row in table["trial_id"][repeats]]


def test_a_run_whose_ids_have_no_letter_goes_on_without_one():
    events = [begun("00000"), report("00000", BUDGET, 2.0, STOP)]
    search = new_search("explore-finish", num_samples=6, confirm=1, events=events)
    play(search, lambda trial, tokens: 2.0 + index_of(trial))
    ids = list(search.trials.by_id)
    assert ids[:2] == ["00000", "00001"] and "00000-seed" in ids and all(trial_id[0] == "0" for trial_id in ids)
