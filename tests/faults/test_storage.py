"""Damaged checkpoints, full disks, memory that runs out, and how little is kept."""

import json
import os
import shutil
import subprocess

import pandas as pd
import pytest
from harness import SHORT, Search, assert_same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


def checkpoints(search):
    return sorted(search.folder.glob("ray/session_*/*/checkpoint_*/state.pt"))


def test_damaged_checkpoints_are_skipped_for_those_before_or_the_beginning(byte_files, undisturbed, tmp_path):
    whole, broken = undisturbed(**SHORT), Search(tmp_path / "broken", byte_files, **SHORT)
    process = broken.start()
    assert broken.wait_for(process, "checkpoint", 3)
    broken.kill(process)
    stored = {event["trial_id"]: event for event in broken.events() if event["event"] == "checkpoint"}
    assert set(stored) == {"00000", "00001", "00002"}  # each waited at its rung

    first = stored["00000"]
    newest = broken.folder / "ray" / first["path"]
    older = newest.with_name("checkpoint_000099")  # the same training a little earlier: here, the very same state
    shutil.copytree(newest, older)
    with open(broken.folder / "journal.jsonl", "a") as file:
        for path, tokens in ((older, first["tokens_seen"]), (newest, first["tokens_seen"] + 1)):
            changes = {"path": str(path.relative_to(broken.folder / "ray")), "tokens_seen": tokens}
            file.write(json.dumps(first | changes) + "\n")
    content = bytearray((newest / "state.pt").read_bytes())
    content[len(content) // 2] ^= 64
    (newest / "state.pt").write_bytes(content)
    for trial_id in ("00001", "00002"):
        path = broken.folder / "ray" / stored[trial_id]["path"] / "state.pt"
        if path.exists():  # that of the worst is deleted already
            os.truncate(path, path.stat().st_size // 2)

    warnings = [line for line in broken.finish().splitlines() if line.startswith("warning: ")]
    assert any("trial 00000" in line and "is damaged (checksum" in line for line in warnings), warnings
    assert any("trial 00000" not in line and "can't be read" in line for line in warnings), warnings
    assert_same(whole, broken)


def test_only_what_can_still_win_is_kept(byte_files, tmp_path):
    search = Search(tmp_path / "run", byte_files, num_samples=8, confirm=2)
    search.finish()
    trials, _ = search.tables()
    completed = trials["status"] == "completed"
    assert trials["checkpoint"][completed].all()
    most = 2 * completed.sum() + (trials["checkpoint"] & ~completed).sum()
    assert completed.sum() <= len(checkpoints(search)) <= most < 8 * 3


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for two checkpoints and a half."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_one_line_and_the_search_goes_on_when_there_is_room(byte_files, undisturbed, small_disk):
    whole, broken = undisturbed(**SHORT), Search(small_disk / "broken", byte_files, **SHORT)
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
    whole = undisturbed(**SHORT)
    broken = Search(tmp_path / "broken", byte_files, fault="oom", num_samples=2, scheduler="fifo", confirm=0)
    broken.finish()
    trials, found = broken.tables()
    _, expected = whole.tables()
    expected = expected[expected["trial_id"] == "00000"]
    pd.testing.assert_frame_equal(expected, found, check_exact=False, atol=2e-3, rtol=1e-3)
    assert trials["status"].tolist() == ["completed", "failed"] and "micro_batch_size 1" in trials["reason"][1]
    assert not any(event["event"] == "lost" for event in broken.events())  # it would only happen again
