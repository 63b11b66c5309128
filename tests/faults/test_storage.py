"""Damaged checkpoints, full disks, memory that runs out, and how little is kept."""

import json
import os
import shutil
import subprocess

import pandas as pd
import pytest
from harness import Search, assert_same

ONE = dict(num_samples=1, scheduler="fifo", confirm=0)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def checkpoints(search):
    return sorted(search.folder.glob("ray/session_*/*/checkpoint_*/state.pt"))


def test_a_damaged_newest_checkpoint_is_skipped_for_the_one_before(byte_files, undisturbed, tmp_path):
    whole, broken = undisturbed(**ONE), Search(tmp_path / "broken", byte_files, **ONE)
    process = broken.start()
    while process.poll() is None and sum(e["event"] == "checkpoint" for e in broken.events()) < 1:
        pass
    broken.kill(process)
    events = [event for event in broken.events() if event["event"] == "checkpoint"]
    newest = broken.folder / "ray" / events[-1]["path"]
    older = newest.with_name("checkpoint_000099")  # the same training a little earlier: here, the very same state
    shutil.copytree(newest, older)
    step = events[-1]["step"]
    with open(broken.folder / "journal.jsonl", "a") as file:
        for path, at in ((older, step), (newest, step + 1)):
            entry = {"event": "checkpoint", "time": 0, "trial_id": "00000", "step": at}
            file.write(json.dumps(entry | {"path": str(path.relative_to(broken.folder / "ray"))}) + "\n")
    content = bytearray((newest / "state.pt").read_bytes())
    content[len(content) // 2] ^= 64
    (newest / "state.pt").write_bytes(content)
    errors = broken.finish()
    assert "warning: trial 00000" in errors and "is damaged (checksum" in errors
    assert_same(whole, broken)


def test_all_checkpoints_damaged_means_from_the_beginning(byte_files, undisturbed, tmp_path):
    whole, broken = undisturbed(**ONE), Search(tmp_path / "broken", byte_files, **ONE)
    process = broken.start()
    while process.poll() is None and not any(e["event"] == "checkpoint" for e in broken.events()):
        pass
    broken.kill(process)
    for path in checkpoints(broken):
        os.truncate(path, path.stat().st_size // 2)
    assert "can't be read" in broken.finish()
    assert_same(whole, broken)


def test_only_what_can_still_win_is_kept(byte_files, tmp_path):
    search = Search(tmp_path / "run", byte_files, num_samples=8, confirm=2)
    search.finish()
    trials, _ = search.tables()
    completed = trials["status"] == "completed"
    assert trials["checkpoint"][completed].all()
    most = 2 * completed.sum() + (trials["checkpoint"] & ~completed).sum()
    assert completed.sum() <= len(checkpoints(search)) <= most < 8 * 3
    keeps_all = Search(tmp_path / "all", byte_files, num_samples=8, confirm=2, keep_checkpoints="all")
    keeps_all.finish()
    assert len(checkpoints(keeps_all)) > len(checkpoints(search))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_one_line_and_the_search_goes_on_when_there_is_room(byte_files, undisturbed, small_disk):
    options = dict(num_samples=3, confirm=2, rungs="0.25:2", keep_checkpoints="all")
    whole, broken = undisturbed(**options), Search(small_disk / "broken", byte_files, **options)
    errors = broken.finish(code=1)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "the disk is full" in lines[0] and "Traceback" not in errors, errors
    assert broken.no_process_left()
    statuses = {event.get("event") for event in broken.events()}
    assert "failed" not in statuses and "lost" not in statuses
    subprocess.run(["mount", "-o", "remount,size=300m", small_disk], check=True)
    broken.finish()
    assert_same(whole, broken)


def test_out_of_memory_ends_with_the_same_losses_or_a_clear_reason(byte_files, undisturbed, tmp_path):
    whole, halved = undisturbed(**ONE), Search(tmp_path / "halved", byte_files, fault="oom:3", **ONE)
    halved.finish()
    (_, expected), (_, found) = whole.tables(), halved.tables()
    pd.testing.assert_frame_equal(expected, found, check_exact=False, atol=2e-3, rtol=1e-3)
    hopeless = Search(tmp_path / "hopeless", byte_files, fault="oom:0", **ONE)
    hopeless.finish()
    trials, _ = hopeless.tables()
    assert set(trials["status"]) == {"failed"} and "micro_batch_size 1" in trials["reason"][0]
    assert not any(event["event"] == "lost" for event in hopeless.events())  # it would only happen again
