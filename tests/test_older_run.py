"""A run folder of before 0.1.0, written on another machine, goes on as it would have there: tests/recorded/release-0."""

import json
import math
import shutil

import pytest
from conftest import OLDER, run_command_line

from tune.store.journal import FILE_NAME, read_journal

MEASURED = {"time", "train_seconds", "tok_per_sec", "startup_seconds", "python", "packages", "git_commit", "path"}
"""fields that differ between machines and versions"""


def decided(events):
    """The events without what is measured; NaN as None, so that they can be compared."""
    return [
        {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in event.to_json().items()
            if name not in MEASURED
        }
        for event in events
    ]


@pytest.mark.timeout(300)
def test_a_run_of_before_goes_on_reports_compares_and_writes_text(older_run, tmp_path):
    run_dir, data = older_run
    before = read_journal(run_dir)
    done = run_command_line("tune/search.py", "--resume", run_dir, "--num_samples", "9", "--max_concurrent", "1", *data)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "then").mkdir()
    shutil.copy(OLDER / "resumed.jsonl", tmp_path / "then" / FILE_NAME)
    expected, found = read_journal(tmp_path / "then"), read_journal(run_dir)
    assert found[: len(before)] == before or decided(found[: len(before)]) == decided(before)
    assert decided(found) == decided(expected) and len(found) == 282

    shown = run_command_line("tune/report.py", run_dir)
    assert shown.returncode == 0 and "9 of 9" in shown.stdout, shown.stdout + shown.stderr
    untouched = shutil.copytree(OLDER / "run", tmp_path / "untouched")
    assert json.loads((untouched / "search.json").read_text())["format"] == 2
    shown = run_command_line("tune/report.py", run_dir, untouched)
    assert shown.returncode == 0, shown.stderr
    written = run_command_line("myllm/training/trainer.py", "--from_trial", f"{run_dir}/00001", "--generate", "ab")
    assert written.returncode == 0 and written.stdout.startswith("ab"), written.stdout + written.stderr


def test_other_data_is_refused_before_anything_starts(older_run):
    run_dir, data = older_run
    (run_dir.parent / "val.txt").write_text("another text " * 1000)
    done = run_command_line("tune/search.py", "--resume", run_dir, "--num_samples", "9", *data)
    assert done.returncode == 2 and "val.txt has changed since the search began" in done.stderr, done.stderr
    assert (run_dir / "search.json").read_text() == (OLDER / "run" / "search.json").read_text()
