"""How a search ends: signals, a second one on the same folder, two side by side, another user's folder, growth."""

import os
import signal
import time

import pytest
from conftest import run_command_line
from harness import SHORT, FaultSearch, assert_same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def test_one_signal_ends_in_order_and_two_at_once(byte_files, undisturbed, tmp_path):
    whole, broken = undisturbed(**SHORT), FaultSearch(tmp_path / "broken", byte_files, **SHORT)
    process = broken.start()
    assert broken.wait_for_events(process, 10)
    process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    process.communicate(timeout=60)
    once = time.monotonic() - start
    assert process.returncode == 130 and once < 15 and broken.no_process_left()
    assert (broken.folder / "trials.csv").exists()

    process = broken.start()
    assert broken.wait_for_events(process, len(broken.events()) + 5)
    process.send_signal(signal.SIGINT)
    assert any("once more leaves at once" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    start = time.monotonic()
    errors = process.communicate(timeout=60)[1]
    twice = time.monotonic() - start
    assert process.returncode == 130 and twice < 3 and broken.no_process_left()
    assert "left at once; go on with" in errors
    broken.finish()
    print(f"ended {once:.1f} s after one signal, {twice:.1f} s after two")
    assert_same(whole, broken)


def test_the_second_search_on_a_folder_is_refused_and_two_folders_do_not_disturb_each_other(
    byte_files, undisturbed, tmp_path
):
    alone, first, second = (
        undisturbed(**SHORT),
        *(FaultSearch(tmp_path / n, byte_files, **SHORT) for n in ("first", "second")),
    )
    processes = [first.start(), second.start()]
    assert first.wait_for_events(processes[0], 1)
    errors = first.start().communicate(timeout=60)[1]
    assert "another search is running in this folder" in errors and errors.count("\n") == 1
    for process in processes:
        errors = process.communicate(timeout=240)[1]
        assert process.returncode == 0, errors
    assert_same(alone, first)
    assert_same(alone, second)
    assert first.no_process_left() and second.no_process_left()


def test_a_finished_search_grows_in_the_same_rungs_and_keeps_all_checkpoints_if_told_so(byte_files, tmp_path):
    search = FaultSearch(
        tmp_path / "run",
        byte_files,
        num_samples=4,
        replicate_best=2,
        scheduler="asha",
        rungs="0.125:2",
        keep_checkpoints="all",
    )
    search.finish()
    before, history = search.tables()
    grow = ["tune/search.py", "--resume", search.folder, "--num_samples", "8"]
    done = run_command_line(*grow)
    assert done.returncode == 0, done.stderr
    after, longer = search.tables()
    drawn = after[after["parent_id"].isna()]
    assert len(drawn) == 8
    assert len(history.merge(longer, how="inner")) == len(history)  # nothing of before has changed
    assert set(before["trial_id"]) <= set(after["trial_id"])
    rung = longer["tokens_seen"].max() // 8
    assert set(longer[longer["tokens_seen"] == rung]["trial_id"]) >= set(drawn["trial_id"])
    stored = [event["path"] for event in search.events() if event["event"] == "checkpoint"]
    assert len(stored) >= 8 + 4 and all((search.folder / "ray" / path / "state.pt").exists() for path in stored)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_refused_unless_trusted(byte_files, tmp_path):
    search = FaultSearch(tmp_path / "run", byte_files, num_samples=2)
    os.chown(search.folder, 12345, 12345)
    refused = run_command_line("tune/search.py", "--resume", search.folder)
    assert refused.returncode == 2 and "belongs to another user (id 12345)" in refused.stderr
    trusted = run_command_line("tune/search.py", "--resume", search.folder, "--allow_other_owner")
    assert trusted.returncode == 0, trusted.stderr
