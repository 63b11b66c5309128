"""Places that are written to, and terminals."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_command_line

from myllm.system import files
from myllm.system.errors import InputError
from myllm.system.files import cache_dir, check_writable, obstacle, whole_file, write_text

TRAINER = "myllm/training/trainer.py"


def test_what_can_not_be_written_is_known_beforehand(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    for place, reason in (
        (tmp_path / "file" / "x" / "model.pth", "is not a folder"),
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "pipe", "not a regular file"),
        ("/proc/model.pth", ""),
        (tmp_path / ("n" * 300), "name too long"),
        (tmp_path / "nul\0", "null"),
    ):
        assert reason in obstacle(place).lower(), place
        with pytest.raises(InputError, match="can't be written"):
            check_writable(place, "--plot")
    for place in (tmp_path / "file", tmp_path / "new", tmp_path / "new" / "er" / "model.pth"):
        assert obstacle(place) is None
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda file: calls.append(os.fstat(file).st_size))
    monkeypatch.setattr(os, "replace", lambda *names: calls.append("named") or replace(*names))
    write_text(tmp_path / "a", "text")
    assert calls == [4, "named"] and (tmp_path / "a").read_text() == "text"


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(OSError, match=f"full: '{path}'"), whole_file(path) as file:
        file.write(b"new, but the disk is")
        raise OSError(errno.ENOSPC, "full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    (tmp_path / ".a.123").write_text("left by a killed process")
    (tmp_path / ".a.124").write_text("being written by another")
    os.utime(tmp_path / ".a.123", (0, 0))
    with whole_file(path) as file:
        file.write(b"new")
    assert path.read_text() == "new" and {p.name for p in tmp_path.iterdir()} == {"a", ".a.124"}


def test_links_are_followed_and_nobody_elses_files_are_touched(tmp_path):
    (tmp_path / "disk").mkdir()
    for link, target in (("model.pth", "disk/model.pth"), ("folder", "disk/new"), ("loop", "loop")):
        os.symlink(target, tmp_path / link)
    (tmp_path / "disk" / "model.pth").write_text("old")
    for place in ("model.pth", "folder/er/model.pth"):  # to a file, and below a folder that is not there yet
        assert obstacle(tmp_path / place) is None
        write_text(tmp_path / place, "new, of caf\udce9")
    assert (tmp_path / "model.pth").is_symlink() and (tmp_path / "disk" / "model.pth").read_bytes() == rb"new, of caf\udce9"
    assert (tmp_path / "disk" / "new" / "er" / "model.pth").is_file()
    assert "is not a folder" in obstacle(tmp_path / "loop" / "model.pth")
    mine = {".env.local", ".env.1.bak", ".*.7", ".x.7"}
    for name in mine:
        (tmp_path / name).write_text("mine")
        os.utime(tmp_path / name, (0, 0))
    for name in ("env", "?", "[x]"):
        write_text(tmp_path / name, "new")
    assert mine <= {path.name for path in tmp_path.iterdir()}


def test_a_file_that_can_not_be_replaced_is_known_beforehand(tmp_path):
    """As one that is not to be changed, or that a container has mounted; both need root."""
    kept, given = tmp_path / "kept.pth", tmp_path / "of a container.pth"
    kept.touch()
    given.touch()
    if subprocess.run(["chattr", "+i", kept], capture_output=True).returncode == 0:
        reason = obstacle(kept)
        subprocess.run(["chattr", "-i", kept], check=True)
        assert "not permitted" in reason
    if subprocess.run(["mount", "--bind", kept, given], capture_output=True).returncode == 0:
        reason = obstacle(given)
        subprocess.run(["umount", "-l", given], check=True)
        assert "it is mounted there" in reason
    assert obstacle(kept) is None and obstacle(given) is None


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch, tmp_path):
    def nobody(number):
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    with pytest.raises(InputError, match="this user has no home; set XDG_CACHE_HOME"):
        cache_dir()


def test_a_read_only_checkout_uses_the_users_own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_dir() == ROOT / "experiments" / "runs" / ".cache"
    monkeypatch.setattr(files, "ROOT", tmp_path / "site-packages")  # installed: no checkout at all
    assert cache_dir() == tmp_path / "home" / "myllm"
    checkout = tmp_path / "checkout"
    (checkout / "experiments").mkdir(parents=True)
    (checkout / "pyproject.toml").touch()
    monkeypatch.setattr(files, "ROOT", checkout)
    assert cache_dir() == checkout / "experiments" / "runs" / ".cache"
    (checkout / "experiments" / "runs").touch()  # can't become a folder, whoever runs this
    assert cache_dir() == tmp_path / "home" / "myllm"
    (tmp_path / "home").touch()
    with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
        cache_dir()


def test_trainer_tries_every_place_before_it_trains(byte_files, tmp_path):
    (tmp_path / "file").write_text("")
    data = ["--train_file", byte_files[0], "--val_file", byte_files[1]]
    for flag in ("--save_model", "--plot"):
        done = run_command_line(TRAINER, *data, flag, tmp_path / "file" / "x")
        assert done.returncode == 2 and done.stderr.startswith(f"error: {flag} ") and "can't be written" in done.stderr
        assert done.stderr.count("\n") == 1 and not done.stdout


def test_a_disk_that_is_full_while_training_is_one_line_and_no_partial_file(byte_files, tmp_path):
    code = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        f"sys.argv[0] = {TRAINER!r}; runpy.run_path({TRAINER!r}, run_name='__main__')"
    )
    data = ["--train_file", byte_files[0], "--val_file", byte_files[1], "--budget_tokens", "4096", "--eval_iter", "1"]
    done = run_command_line("-c", code, *data, "--save_model", tmp_path / "out" / "m.pth")
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_terminal_gets_escapes_for_what_it_can_not_show(byte_files, tmp_path):
    folder = tmp_path / "dätä"
    folder.mkdir()
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "40"}
    data = ["--train_file", byte_files[0], "--val_file", byte_files[1], "--budget_tokens", "4096", "--eval_iter", "1"]
    done = run_command_line(TRAINER, *data, "--plot", folder / "p.png", "--start_context", "é字", env=environment)
    assert done.returncode == 0, done.stderr
    assert r"d\xe4t\xe4/p.png" in done.stdout and (folder / "p.png").exists()
    done = run_command_line(TRAINER, *data, "--plot", folder, env=environment)
    assert done.returncode == 2 and r"d\xe4t\xe4" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--budget_tokens", "40960", "--eval_freq", "1", "--eval_iter", "1"]])
def test_output_into_head_ends_quietly(byte_files, arguments):
    data = ["--train_file", byte_files[0], "--val_file", byte_files[1]]
    command = [sys.executable, ROOT / TRAINER, *map(str, data), *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) in (0, 141)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "2>/dev/full"])
def test_a_stream_that_is_closed_is_no_error(tmp_path, closed):
    (tmp_path / "a.txt").write_text("words " * 1000)
    words = f"{sys.executable} myllm/data.py --input {tmp_path}/a.txt --out_dir {tmp_path}/out --tokenizer byte {closed}"
    done = subprocess.run(["bash", "-c", words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr and (tmp_path / "out" / "val_ids.bin").exists(), done.stderr


def test_line_breaks_of_the_users_do_not_break_the_one_line(tmp_path):
    done = run_command_line(TRAINER, "--train_file", "a\nb.bin", "--val_file", "c.bin")
    assert done.returncode == 2 and done.stderr == "error: a b.bin: no such file\n"
    assert Path(ROOT / TRAINER).exists()
