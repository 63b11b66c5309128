"""Machines as people have them: limits, read-only folders, files in the way, shells, terminals, and no silent wait."""

import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, begun, report, run_command_line
from helpers import search_of, write_events

from myllm.system import imports, machine
from myllm.system.errors import InputError, RunError
from myllm.text import commands
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_resources
from tune.core.events import SessionStarted
from tune.ray_backend import cluster, preflight, start, watchdog
from tune.ray_backend.watchdog import Watchdog, cause

SEARCH = "tune/search.py"
SMALL = ["--budget_tokens", "262144", "--num_samples", "1", "--replicate_best", "0", "--scheduler", "fifo", "--space", "v1"]


@pytest.fixture
def small(byte_files):
    """Flags of a search of one trial, seconds long."""
    return ["--train_file", *map(str, byte_files[:1]), "--val_file", str(byte_files[1]), *SMALL, "--max_concurrent", "1"]


def one_error(done, code, *words):
    """Asserts that the command ended with `code` and one line on stderr that says all `words`, progress apart."""
    lines = [line for line in done.stderr.splitlines() if " tokens" not in line]
    assert done.returncode == code and len(lines) == 1 and lines[0].startswith("error: "), done.stdout + done.stderr
    for word in words:
        assert word in lines[0], lines[0]


# No silent wait


def test_a_worker_that_can_not_import_ends_the_search_with_its_reason(small, tmp_path):
    """Where Ray's workers end before they are any, Ray itself starts them again and again."""
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import os, sys, traceback
        if any("default_worker" in word for word in sys.orig_argv):
            try:
                import a_module_that_is_not_there
            except ImportError:
                traceback.print_exc()
                os._exit(1)
        """)
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = run_command_line(
        SEARCH,
        *small,
        "--stall_timeout",
        "6",
        "--storage_path",
        tmp_path / "runs",
        "--name",
        "x",
        env=environment,
        timeout=100,
    )
    one_error(done, 1, "no trial has started for ", "No module named 'a_module_that_is_not_there'", "--resume")


def test_where_every_trial_fails_the_search_ends_early_with_the_first_reason(small, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import sys
        if any("default_worker" in word for word in sys.orig_argv):
            sys.modules["tune.ray_backend.trainable"] = None
        """)
    )
    flags = [*small, "--num_samples", "50", "--storage_path", tmp_path / "runs", "--name", "x"]
    done = run_command_line(SEARCH, *flags, env=os.environ | {"PYTHONPATH": str(tmp_path)}, timeout=150)
    one_error(
        done,
        1,
        "each of the first 3 trials failed, t00000 with: ModuleNotFoundError: ",
        "tune.ray_backend.trainable",
        "--resume",
    )
    assert "Traceback" not in done.stdout
    assert "Traceback" in (tmp_path / "runs" / "x" / "error-t00000.txt").read_text()


def test_a_process_that_can_not_be_reused_loses_no_trial(small, tmp_path):
    """Ray then gives the next trial up and tells nobody; no wait at all makes it so."""
    flags = [*small, "--num_samples", "2", "--budget_tokens", "32768", "--storage_path", tmp_path / "runs", "--name", "x"]
    done = run_command_line(SEARCH, *flags, env=os.environ | {"TUNE_FUNCTION_THREAD_TIMEOUT_S": "0"}, timeout=150)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "x"
    assert "Could not re-use actor" in (run / "ray.log").read_text()
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert {event["trial_id"] for event in events if event["event"] == "worker_lost"}
    ends = [event["trial_id"] for event in events if event.get("tokens_seen") == 32768 and event["event"] == "report"]
    assert sorted(ends) == ["t00000", "t00001"]


def test_below_uv_run_workers_are_started_as_ever(small, tmp_path):
    """Ray looks for a process `uv run` above it, packs the folder for its workers, and starts each by uv."""
    flags = [
        *small,
        "--budget_tokens",
        "32768",
        "--stall_timeout",
        "20",
        "--storage_path",
        tmp_path / "runs",
        "--name",
        "x",
    ]
    (tmp_path / "run").write_text(f"{shlex.join(map(str, [sys.executable, ROOT / SEARCH, *flags]))}\nexit $?\n")
    done = subprocess.run(["uv", "run"], executable="/bin/sh", cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_python_below_a_folder_with_a_space_and_a_small_address_space_train(small, tmp_path):
    """In one search, to save its seconds: Ray hands Python's path to a shell, and maps its object store whole."""
    venv = tmp_path / "with space, it's" / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    site = next((venv / "lib").glob("python*/site-packages"))
    site.joinpath("all.pth").write_text("\n".join([*(p for p in sys.path if "site-packages" in p), str(ROOT)]))
    run = tmp_path / "it's a run"
    command = [venv / "bin" / "python", ROOT / SEARCH, *small, "--storage_path", run, "--name", "x"]
    limited = f"ulimit -v {6 * 2**20}; exec {shlex.join(map(str, command))}"
    done = subprocess.run(["bash", "-c", limited], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    printed = [line for line in done.stdout.splitlines() if " --config " in line or "report.py" in line]
    assert len(printed) == 2
    for line in printed:  # where the user stands, through a shell, with quotes and spaces
        again = subprocess.run(
            ["bash", "-c", line[line.index("'") :] + (" --budget_tokens 4096" if "--config" in line else "")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert again.returncode == 0, line + again.stderr
    assert (tmp_path / "final.pth").is_file()


def test_too_little_address_space_is_named_before_ray_starts(small, tmp_path):
    words = shlex.join([sys.executable, SEARCH, *small, "--storage_path", str(tmp_path), "--name", "x"])
    done = subprocess.run(
        ["bash", "-c", f"ulimit -v {3 * 2**20}; exec {words}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    one_error(done, 1, "limited to 3.0 GiB (ulimit -v)", "Ray needs 4")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("raylet.err", "bash: line 1: /opt/my: No such file or directory\n", "/opt/my: No such file or directory"),
        (
            "worker-1.err",
            "Traceback (most recent call last):\n  File x\nImportError: libcuda.so.1\n",
            "ImportError: libcuda",
        ),
        (
            "raylet.err",
            "[2026-01-01 C 1 2] (raylet) shared_memory.cc:46: mmap failed\n",
            "shared_memory.cc:46: mmap failed",
        ),
        ("gcs_server.err", "terminate called\n  what():  Resource temporarily unavailable\n", "Resource temporarily"),
        (
            "raylet.err",
            "ray: error while loading shared libraries: libx.so: no\n",
            "error while loading shared libraries: libx.so",
        ),
    ],
)
def test_the_cause_is_taken_from_rays_logs(tmp_path, name, text, found):
    (tmp_path / "raylet.out").write_text("[2026-01-01 I 1 2] (raylet) main.cc:1: Started\n")
    assert cause(tmp_path) is None
    (tmp_path / "gcs_server.out").write_text("[2026-01-01 E 1 2] (gcs_server) a.cc:1: a consequence\n")
    assert "a consequence" in cause(tmp_path)
    (tmp_path / name).write_text(text)
    assert cause(tmp_path).startswith(found) and cause(tmp_path).endswith(f"({tmp_path / name})")


class Time:
    """A clock for the watchdog that a test moves."""

    now = 0.0

    def monotonic(self):
        return self.now


def wait(dog, clock, seconds):
    for _ in range(int(seconds)):
        clock.now += 1.01
        dog.check()


@pytest.fixture
def clock(monkeypatch):
    clock = Time()
    monkeypatch.setattr(watchdog, "time", clock)
    return clock


@pytest.fixture
def dog(clock, tmp_path):
    """dog(processes, shared, running): a watchdog of ten seconds. `running` holds the segments that run."""

    def make(processes=None, shared=False, running=()):
        return Watchdog(10, tmp_path, processes or {}, lambda: (frozenset(running), 0), shared)

    return make


def test_who_computes_may_be_silent_and_who_hangs_may_not(clock, monkeypatch, dog):
    busy, running = [0.0], set()
    monkeypatch.setattr(watchdog, "working_seconds", lambda: busy[0] * clock.now)
    one = dog(running=running)
    wait(one, clock, 9)
    running.add("a")
    busy[0] = 0.5
    wait(one, clock, 100)
    busy[0] = 0.0
    with pytest.raises(RunError, match=r"no trial has reported for 1\d s, and none has computed"):
        wait(one, clock, 30)
    one = dog()
    clock.now += 3600  # the machine slept
    one.check()
    with pytest.raises(RunError, match=r"no trial has started for 1\d s: Ray's logs name no cause"):
        wait(one, clock, 10)


def test_a_full_cluster_is_waited_for_aloud(clock, dog, capsys):
    running = set()
    one = dog(shared=True, running=running)
    wait(one, clock, 35)
    assert capsys.readouterr().err.count("no trial has started for 10 s; waiting (`ray status` says") == 3
    running.add("a")
    wait(one, clock, 12)
    assert capsys.readouterr().err.count("no trial has reported for 10 s; waiting") == 1


def test_a_process_of_rays_that_has_ended_ends_the_search(clock, dog):
    process = subprocess.Popen(["sleep", "100"])
    one = dog({psutil.Process(process.pid): "sleep"})
    wait(one, clock, 2)
    process.kill()
    process.wait()
    with pytest.raises(RunError, match="Ray's sleep has ended"):
        wait(one, clock, 2)


# Files in the way


COMMANDS = {
    SEARCH: ["--list_spaces"],
    "tune/report.py": ["none"],
    "myllm/training/trainer.py": ["--train_file", "none", "--val_file", "none"],
    "myllm/data.py": ["--input", "none", "--out_dir", "none"],
}
"""every command, with arguments by which it ends at once"""


@pytest.mark.parametrize("script", COMMANDS)
def test_a_file_called_like_a_module_is_named_or_harmless(script, tmp_path):
    """Those of the working folder do no harm; those on PYTHONPATH, which comes before all else, are named."""
    arguments = [sys.executable, ROOT / script, *COMMANDS[script]]

    def run(**where):
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60, **({"cwd": tmp_path} | where))

    usual = run()
    assert usual.returncode == 0 or "none" in usual.stderr, usual.stderr
    for name in ("random", *imports.PACKAGES, *imports.OURS):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('harm')")
    done = run()
    assert (done.returncode, done.stdout, done.stderr) == (usual.returncode, usual.stdout, usual.stderr)
    for name in ("random", "torch", "rich"):  # alone on PYTHONPATH; also where that has an empty entry, the working folder
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.py").write_text("raise SystemExit('harm')")
        one_error(run(cwd=ROOT, env=os.environ | {"PYTHONPATH": str(folder)}), 2, f"{folder}/{name}.py is called like")
    one_error(run(cwd=folder, env=os.environ | {"PYTHONPATH": ":/none"}), 2, f"{folder}/rich.py is called like")
    (folder / "rich.py").rename(folder / "test.py")  # of Python's, but nothing imports it
    assert run(env=os.environ | {"PYTHONPATH": str(folder)}).stderr == usual.stderr


def test_what_is_called_like_a_package_is_known(tmp_path):
    assert imports.shadow(sys.path) is None and imports.shadow([str(tmp_path)]) is None
    for name in (*imports.OURS, *imports.PACKAGES):
        (tmp_path / f"{name}.py").touch()
        assert imports.shadow([str(tmp_path)]) in (str(tmp_path / f"{name}.py"), None if name in imports.PACKAGES else "")
        (tmp_path / f"{name}.py").unlink()
    (tmp_path / "tune").mkdir()  # a mere folder of results
    assert imports.shadow([str(tmp_path)]) is None
    (tmp_path / "rich.py").touch()
    done = run_command_line("-m", "myllm.data", "--help", env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "myllm.data", "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    one_error(done, 2, f"{tmp_path}/rich.py is called like a module")


def test_the_installed_command_names_a_file_that_stands_in_the_way(tmp_path):
    script = tmp_path / "myllm-search"
    script.write_text("from tune.search import cli\ncli()\n")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rich.py").write_text("raise SystemExit('harm')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'mine'}:{ROOT}"}
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=60, env=environment)
    one_error(done, 2, f"{tmp_path / 'mine'}/rich.py is called like a module")


# Addresses


@pytest.mark.parametrize(
    "address", ["", "local", "AUTO", "127.0.0.1", "127.0.0.1:", ":6379", "h:port", "h:-1", "ray://h:1", "h:1/x"]
)
def test_what_is_no_address_is_refused_at_once(address):
    with pytest.raises(InputError, match="it must be auto, or HOST:PORT"):
        cluster.join_cluster(address)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "no.such.host.invalid:1", f"{'x' * 300}:1", "h:99999"])
def test_where_nobody_answers_that_is_said(address):
    with pytest.raises(InputError, match="no Ray cluster answers there"):
        cluster.join_cluster(address)


@pytest.mark.slow
def test_a_server_that_is_no_ray_cluster_is_called_that():
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(InputError, match="no Ray cluster answers there"):
        cluster.join_cluster(f"127.0.0.1:{server.getsockname()[1]}")


# Places and programs


def test_a_machine_without_bash_is_one_line_before_anything_starts(small, tmp_path):
    flags = [*small, "--storage_path", tmp_path / "runs", "--name", "x"]
    done = run_command_line(SEARCH, *flags, env=os.environ | {"PATH": str(tmp_path)}, timeout=60)
    one_error(done, 2, "Ray starts its workers with bash, which is not on PATH")
    assert not (tmp_path / "runs").exists()


def test_every_place_of_a_search_is_tried_before_anything_is_written(byte_files, small, tmp_path):
    (tmp_path / "file").write_text("")
    for flags, environment, word in (
        (["--storage_path", tmp_path / "file"], {}, "is not a folder"),
        (["--storage_path", f"file://{tmp_path}/file/x"], {}, "--storage_path file://"),
        (["--storage_path", "~/file"], {"HOME": str(tmp_path)}, f"{tmp_path}/file is not a folder"),
        (["--storage_path", tmp_path], {"RAY_TMPDIR": str(tmp_path / "file")}, "set RAY_TMPDIR"),
    ):
        done = run_command_line(SEARCH, *small, *flags, "--name", "x", env=os.environ | environment)
        one_error(done, 2, word, "can't be written")
    one_error(run_command_line(SEARCH, *small, "--storage_path", "n" * 300, "--name", "x"), 2, "File name too long")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_read_only_checkout_runs_in_the_users_own_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    checkout = tmp_path / "checkout"
    (checkout / "experiments").mkdir(parents=True)
    usual = checkout / "experiments" / "runs"
    (checkout / "pyproject.toml").touch()
    assert preflight.runs_dir(usual) == usual and not capsys.readouterr().out
    usual.touch()  # can't become a folder, whoever runs this
    assert preflight.runs_dir(usual) == tmp_path / "data" / "myllm" / "runs"
    assert (
        capsys.readouterr().out == f"note: {usual} can't be written; runs are in {tmp_path / 'data' / 'myllm' / 'runs'}\n"
    )
    (tmp_path / "data").touch()
    with pytest.raises(InputError, match="give --storage_path"):
        preflight.runs_dir(usual)


@pytest.mark.parametrize("path", ["file:/x", "file:x", "FILE:/x", "s3:bucket", "gs:/b", "file:///a#b", "a\0b"])
def test_what_is_neither_a_folder_nor_a_uri_is_refused(path):
    with pytest.raises(InputError, match="neither a folder nor a URI like file:///runs"):
        SearchOptions(storage_path=path)


def test_what_ray_can_not_write_to_is_known_beforehand(tmp_path, monkeypatch):
    search, not_utf8 = search_of(), os.fsdecode(b"caf\xe9")
    os.symlink("loop", tmp_path / "loop")
    os.symlink("gone", tmp_path / "dangling")
    for temporary, run_dir, words in (
        (tmp_path / ("t" * 90), tmp_path, "too long a name for Ray's sockets; set RAY_TMPDIR"),
        (tmp_path / not_utf8, tmp_path, "its name is not UTF-8"),
        ("", tmp_path / not_utf8, "its name is not UTF-8"),
        ("", tmp_path / "loop" / "x", "loop is not a folder"),
        (tmp_path / "loop", tmp_path, "set RAY_TMPDIR"),
    ):
        monkeypatch.setenv("RAY_TMPDIR", str(temporary))
        with pytest.raises(InputError, match=words):
            preflight.check_writable(run_dir, search)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))  # Ray would make it; Python takes another
    preflight.check_writable(tmp_path / "new", search)
    assert start.ray_folder().parent in map(Path, ("/tmp", "/var/tmp", "/usr/tmp")) and not list(tmp_path.glob("gone"))
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "dangling"))
    assert start.ray_folder() == tmp_path / "gone" / "ray"  # what Ray itself could not make
    monkeypatch.setenv("RAY_TMPDIR", "")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: os.stat("/none"))
    with pytest.raises(InputError, match="no folder for temporary files can be written"):
        preflight.check_writable(tmp_path, search)


@pytest.mark.parametrize("script", ["tune/report.py", "myllm/training/trainer.py"])
def test_a_working_folder_that_is_gone_is_one_line(script, tmp_path):
    words = f"mkdir here; cd here; rmdir ../here; exec {shlex.join([sys.executable, str(ROOT / script), 'x'])}"
    done = subprocess.run(["bash", "-c", words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    one_error(done, 2, "the working folder is gone")


# GPUs

TOO_MANY = ",".join(map(str, range(9)))


@pytest.fixture
def four_gpus(monkeypatch):
    """four_gpus(CUDA_VISIBLE_DEVICES): the names of those that count, on a machine of four."""
    import torch

    monkeypatch.setattr(machine, "has_gpu_driver", lambda: True)
    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", lambda: 4)
    monkeypatch.setattr(torch.cuda, "_raw_device_uuid_nvml", lambda: [f"GPU-{name}" for name in ("aa", "ab", "b", "c")])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"the {index}th that is shown")

    def found(visible):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        return machine.gpu_names.__wrapped__()

    return found


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        *[(None, 4), ("", 0), ("-1", 0), ("2", 1), ("0,3", 2), ("1,-1,2", 1), ("NoDevFiles", 0), (" 1, 2", 2), ("0,", 1)],
        *[("3,2,1,0", 4), (TOO_MANY, 4), ("1,9,2", 1), ("0,,1", 1), ("0 1", 1), ("+1", 1), ("1abc", 1), ("GPU-b", 1)],
        *[("GPU-b,GPU-c", 2), ("GPU-b,1", 1)],
    ],
)
def test_only_visible_gpus_count(four_gpus, capsys, visible, count):
    assert len(four_gpus(visible)) == count and not capsys.readouterr().err
    resources = resolve_resources(SearchOptions(), 8, count)
    assert (resources.gpus_per_trial, resources.workers) == (int(count > 0), count or 8)


@pytest.mark.parametrize("visible", ["7", "0,0", "abc", "void", " ", "GPU-zz", "GPU-a", "GPU-b,GPU-b", ",1"])
def test_where_a_list_shows_no_gpu_that_is_said(four_gpus, capsys, visible):
    assert four_gpus(visible) == []
    assert capsys.readouterr().err == (
        f"warning: CUDA_VISIBLE_DEVICES is {visible!r}, which shows no GPU of this machine: the CPU trains\n"
    )


@pytest.mark.parametrize("visible", ["+", "-", "0,-", "²"])
def test_gpus_that_can_not_be_used_are_one_line(four_gpus, visible, monkeypatch):
    """A list that torch can't read; a driver that is older than what torch was built for."""
    with pytest.raises(
        RunError, match=r"torch can't use it: .*; mend that, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
    ):
        four_gpus(visible)
    import torch

    def too_old(index):
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 11040)")

    monkeypatch.setattr(torch.cuda, "get_device_name", too_old)
    with pytest.raises(RunError, match=r"torch can't use it: The NVIDIA driver on your system is too old \(found"):
        four_gpus("0")


# Commands and terminals


def test_printed_commands_work_from_where_the_user_stands(tmp_path, monkeypatch):
    run = tmp_path / "a b" / "it's"
    for folder, script in ((ROOT, "tune/report.py"), (ROOT / "tune", "report.py"), (tmp_path, None)):
        monkeypatch.chdir(folder)
        words = shlex.split(commands.command("tune/report.py", run))
        assert words[0] == sys.orig_argv[0] and script in (None, words[1])
        assert Path(words[1]).resolve() == ROOT / "tune" / "report.py" and Path(words[2]).resolve() == run


ASCII = {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "COLUMNS": "40"}


@pytest.mark.slow
def test_a_running_search_in_ascii_then_into_head(small, tmp_path):
    """From a folder full of files that are called like modules, which Ray's workers could import; on a file whose name is
    no UTF-8."""
    folder = tmp_path / "dätä"
    folder.mkdir()
    for end in (".bin", ".json"):
        os.symlink(Path(small[1]).with_suffix(end), folder / os.fsdecode(b"caf\xe9" + end.encode()))
    small[1] = folder / os.fsdecode(b"caf\xe9.bin")
    for name in ("random", "statistics", *imports.PACKAGES, *imports.OURS):
        (folder / f"{name}.py").write_text("raise SystemExit('harm')")
    command = [sys.executable, ROOT / SEARCH, *small, "--storage_path", ".", "--name", "x"]
    environment = os.environ | ASCII
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0 and not done.stderr.replace(b"M tokens", b"").count(b"Traceback"), done.stderr
    assert b"best        trial t00000" in done.stdout and done.stdout.isascii() and done.stderr.isascii()
    grow = [*command[:2], "--resume", "x", "--num_samples", "2"]
    quiet = f"{shlex.join(map(str, grow))} 2>errors | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", quiet], cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("2 trials of space v1") and done.stdout.splitlines()[-1] in ("0", "141"), done.stdout
    errors = [line for line in (folder / "errors").read_text().splitlines() if " tokens" not in line]
    assert not errors, errors
    trials = (folder / "x" / "trials.csv").read_text()
    assert trials.count("completed") == 2 and (folder / "x" / "summary.txt").exists()  # the search went on to its end


def test_preparing_data_into_ascii_and_head(tmp_path):
    folder = tmp_path / "dätä"
    folder.mkdir()
    (folder / "é字.txt").write_text("words " * 1000)
    command = ["myllm/data.py", "--tokenizer", "byte", "--out_dir", folder, "--input"]
    done = run_command_line(*command, folder / "é字.txt", env=os.environ | ASCII)
    assert done.returncode == 0 and r"d\xe4t\xe4/train_ids.bin: 5400 tokens" in done.stdout, done.stderr
    done = run_command_line(*command, folder / "字.txt", env=os.environ | ASCII)
    one_error(done, 2, r"d\xe4t\xe4/\u5b57.txt: no such file")
    words = shlex.join(map(str, [sys.executable, *command, folder / "é字.txt"]))
    quiet = f"PYTHONUNBUFFERED=1 {words} | head -c 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", quiet], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == "" and done.stdout.splitlines()[-1].endswith(("0", "141")), done


@pytest.mark.parametrize("arguments", [[SEARCH, "--list_spaces"], [SEARCH, "--help"], ["tune/report.py", "RUN"]])
def test_output_into_head_and_into_ascii(arguments, tmp_path, request):
    if "RUN" in arguments:
        run = tmp_path / "dätä"
        run.mkdir()
        search = search_of(name="x")
        search.write(run)
        config = {"learning_rate": 1e-3, "batch_size": 8, "warmup_ratio": 0.1, "clip_norm": 1.0}
        events = [SessionStarted(session=0, workers=1), begun("t00000", config=config), report("t00000", 100, 2.0)]
        write_events(run, *(dataclasses.replace(event, time=1.0) for event in events))
        arguments = [arguments[0], str(run)]
        done = run_command_line(*arguments, env=os.environ | ASCII)
        assert done.returncode == 0 and r"d\xe4t\xe4" in done.stdout, done.stderr
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) in (0, 141)
