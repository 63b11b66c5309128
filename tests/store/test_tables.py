"""trials.csv and history.csv while a search runs: rows are added, none is rewritten, and in the end both are whole."""

import itertools

import pandas as pd
from conftest import BUDGET, new_search

from tune.analysis.results import tables
from tune.core.simulator import play
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
    play(search, lambda trial, tokens: float(trial.parent_id) + (tokens < BUDGET), watch=grows)
    growing.flush()
    assert len(contents) > 20
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
