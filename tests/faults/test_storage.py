"""Damaged checkpoints, data that changes, full disks, memory that runs out, and how little is kept."""

import contextlib
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, run_command_line
from harness import SHORT, FaultSearch, assert_same

pytestmark = pytest.mark.timeout(400)


def checkpoints(search):
    return sorted(search.folder.glob("ray/session_*/*/checkpoint_*/state.pt"))


@pytest.mark.slow
def test_damaged_checkpoints_are_skipped_for_those_before_or_the_beginning(byte_files, undisturbed, tmp_path):
    whole, broken = undisturbed(**SHORT), FaultSearch(tmp_path / "broken", byte_files, **SHORT)
    process = broken.start()
    assert broken.wait_for(process, "checkpoint", 3)
    broken.kill(process)
    stored = {event["trial_id"]: event for event in broken.events() if event["event"] == "checkpoint"}
    assert set(stored) == {"t00000", "t00001", "t00002"}  # each waited at its rung

    first = stored["t00000"]
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
    for trial_id in ("t00001", "t00002"):
        path = broken.folder / "ray" / stored[trial_id]["path"] / "state.pt"
        if path.exists():  # that of the worst is deleted already
            os.truncate(path, path.stat().st_size // 2)

    warnings = [line for line in broken.finish().splitlines() if line.startswith("warning: ")]
    assert any("trial t00000" in line and "is damaged (checksum" in line for line in warnings), warnings
    assert any("trial t00000" not in line and "can't be read" in line for line in warnings), warnings
    assert_same(whole, broken)


@pytest.mark.slow
def test_only_what_can_still_win_is_kept(byte_files, tmp_path):
    search = FaultSearch(tmp_path / "run", byte_files, num_samples=8, replicate_best=2)
    search.finish()
    trials, _ = search.tables()
    completed = trials["status"] == "completed"
    assert trials["checkpoint"][completed].all()
    most = 2 * completed.sum() + (trials["checkpoint"] & ~completed).sum()
    assert completed.sum() <= len(checkpoints(search)) <= most < 8 * 3


def losses(search):
    """{(trial, tokens seen): validation loss} of the reports in the journal."""
    return {(e["trial_id"], e["tokens_seen"]): e["val_loss"] for e in search.events() if e["event"] == "report"}


def replace(path):
    """Puts another file of the same size in the place of `path`."""
    path.with_suffix(".new").write_bytes(path.read_bytes()[1000:] + path.read_bytes()[:1000])
    os.replace(path.with_suffix(".new"), path)


def swap(path):
    """Changes the order of the ids in the file itself."""
    content = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(content[1000:] + content[:1000])


def overwrite(path):
    """Puts ids beyond the vocabulary into the file itself, which end a training with an error."""
    content = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(content[1:] + content[:1])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("train.bin", replace),
        pytest.param("train.bin", swap, marks=pytest.mark.slow),
        pytest.param("train.bin", overwrite, marks=pytest.mark.slow),
        pytest.param("train.bin", Path.unlink, marks=pytest.mark.slow),
        pytest.param("val.bin", replace, marks=pytest.mark.slow),
        pytest.param("val.bin", Path.unlink, marks=pytest.mark.slow),
    ],
)
def test_a_data_file_that_changes_ends_the_search_and_harms_no_trial(name, change, byte_files, undisturbed, tmp_path):
    options = dict(num_samples=2, replicate_best=2)  # as in test_kills
    shutil.copytree(byte_files[0].parent, tmp_path / "data")
    data = [tmp_path / "data" / path.name for path in byte_files]
    whole, broken = undisturbed(**options), FaultSearch(tmp_path / "broken", data, **options)
    changed = tmp_path / "data" / name
    process = broken.start()
    assert broken.wait_for(process, "report", 5)
    change(changed)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and broken.no_process_left()
    one_line(errors, "put that file back", "put the file back")
    assert errors.count(f"error: {changed}") == 1
    assert not {"failed", "worker_lost"} & {event["event"] for event in broken.events()}
    assert len(losses(broken)) < len(losses(whole)) and losses(broken).items() <= losses(whole).items()
    one_line(broken.finish(code=1), "put that file back")
    shutil.copyfile(byte_files[0].parent / name, changed)
    broken.finish()
    assert_same(whole, broken)


class Disk:
    """A small file system of its own, which can be filled."""

    def __init__(self, folder, size):
        self.folder, self.filler = folder, folder / "filler"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system needs root")

    def fill(self, leave=0):
        """Fills it but for `leave` bytes."""
        with open(self.filler, "ab", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"x" * 65536) == 65536:
                pass
        os.truncate(self.filler, max(0, self.filler.stat().st_size - leave))

    def empty(self):
        self.filler.unlink()

    def unmount(self):
        subprocess.run(["umount", "-l", self.folder], check=True)


@pytest.fixture
def disk(tmp_path):
    """disk(size): a Disk."""
    made = []

    def make(size):
        made.append(Disk(tmp_path / "disk", size))
        return made[-1]

    yield make
    for one in made:
        one.unmount()


def one_line(errors, *words):
    """Asserts that stderr has one line of error that says one of `words`. Apart: progress, and [*** of Ray's own logs."""
    lines = [line for line in errors.splitlines() if " tokens" not in line and not line.startswith(("warning: ", "[***"))]
    assert len(lines) == 1 and lines[0].startswith("error: ") and any(word in lines[0] for word in words), errors


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_search_goes_on_when_there_is_room(byte_files, undisturbed, disk):
    """Room for two checkpoints and a half."""
    whole, small = undisturbed(**SHORT), disk("400k")
    broken = FaultSearch(small.folder / "broken", byte_files, **SHORT)
    one_line(broken.finish(code=1), "the disk is full")
    assert broken.no_process_left()
    statuses = {event.get("event") for event in broken.events()}
    assert "failed" not in statuses and "lost" not in statuses
    subprocess.run(["mount", "-o", "remount,size=300m", small.folder], check=True)
    broken.finish()
    assert_same(whole, broken)


@pytest.mark.slow
@pytest.mark.parametrize("event", ["session", "report", "checkpoint", "session_end"])
def test_a_disk_that_fills_at_any_moment_is_one_line(event, byte_files, undisturbed, disk):
    """In the journal, a checkpoint, TensorBoard's files, or the tables at the end, whichever comes next."""
    whole, small = undisturbed(**SHORT), disk("24m")
    broken = FaultSearch(small.folder / "broken", byte_files, **SHORT)
    process = broken.start()
    assert broken.wait_for(process, event)
    small.fill()
    errors = process.communicate(timeout=300)[1]
    if process.returncode:  # 0: all was written before the disk was full
        assert process.returncode == 1 and broken.no_process_left()
        one_line(errors, "the disk is full")
        assert not list(broken.folder.glob(".*"))
    small.empty()
    broken.finish()
    assert_same(whole, broken)


@pytest.mark.slow
def test_a_report_on_a_full_disk_is_one_line_and_leaves_the_last_one(disk):
    """Whichever file is the first that has no room: tables, pictures, the page, the summary."""
    small = disk("24m")
    run = small.folder / "run"
    shutil.copytree(ROOT / "tests" / "recorded" / "nano-v2", run)
    first = run_command_line("tune/report.py", run)
    assert first.returncode == 0, first.stderr
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for leave in (0, 10_000, 100_000, 1_000_000, 3_000_000):
        small.fill(leave)
        done = run_command_line("tune/report.py", run)
        assert done.returncode in (1, 2), done.stdout + done.stderr
        one_line(done.stderr, "No space left on device")
        after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert after.keys() == before.keys(), leave
        cut = [path for path in before if len(after[path]) < len(before[path]) * 0.9]
        assert not cut, cut
        small.empty()
    assert run_command_line("tune/report.py", run).returncode == 0


def test_a_file_that_may_not_grow_is_one_line(byte_files, undisturbed, tmp_path):
    """Without root: the journal of a running search, and the page of a report, meet a limit to the size of files."""
    options = dict(num_samples=2, replicate_best=2)  # as in test_kills
    whole, broken = undisturbed(**options), FaultSearch(tmp_path / "broken", byte_files, **options)
    process = broken.start()
    assert broken.wait_for(process, "report", 5)
    limit = (broken.folder / "journal.jsonl").stat().st_size + 300
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, limit))
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and broken.no_process_left()
    one_line(errors, "the disk is full")
    broken.finish()
    assert_same(whole, broken)
    page = f"ulimit -f 1000; exec {shlex.quote(sys.executable)} tune/report.py {shlex.quote(str(broken.folder))}"
    done = subprocess.run(["bash", "-c", page], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    one_line(done.stderr, "report.html: File too large")
    assert not list(broken.folder.glob("*report*")) and not list(broken.folder.glob(".*"))


@pytest.mark.slow
def test_out_of_memory_ends_with_the_same_losses_or_a_clear_reason(byte_files, undisturbed, tmp_path):
    whole = undisturbed(**SHORT)
    broken = FaultSearch(tmp_path / "broken", byte_files, fault="oom", num_samples=2, scheduler="fifo", replicate_best=0)
    broken.finish()
    trials, found = broken.tables()
    _, expected = whole.tables()
    expected = expected[expected["trial_id"] == "t00000"]
    pd.testing.assert_frame_equal(expected, found, check_exact=False, atol=2e-3, rtol=1e-3)
    assert trials["status"].tolist() == ["completed", "failed"] and "micro_batch_size 1" in trials["reason"][1]
    assert not any(event["event"] == "lost" for event in broken.events())  # it would only happen again
