"""An existing Ray cluster of several nodes, one of which dies, and checkpoints on another filesystem."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile

import pytest
from conftest import run_command_line
from harness import MARKER, SHORT, FaultSearch, assert_same, gone, processes_with

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SEVERAL_MACHINES = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}  # tests that start a search here have set 0
CLUSTER = """
import sys, time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
node = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(node, allow_graceful=False)
print("removed", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


def test_a_node_dies_and_the_search_ends_complete(byte_files, undisturbed, tmp_path, monkeypatch):
    """Of a cluster without tokens; the user has one, for others."""
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    (tmp_path / "home" / ".ray" / "auth_token").write_text("1" * 64)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    options = dict(num_samples=4, scheduler="fifo", replicate_best=0)
    whole = undisturbed(2, **options)
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | SEVERAL_MACHINES | {MARKER: "cluster"},
    )
    try:
        address = next(line.strip() for line in cluster.stdout if ":" in line)
        broken = FaultSearch(tmp_path / "broken", byte_files, slots=2, address=address, **options)
        process = broken.start()
        assert broken.wait_for(process, "report", 12)
        cluster.stdin.write("\n")
        cluster.stdin.flush()
        errors = process.communicate(timeout=150)[1]
        assert process.returncode == 0, errors
        assert any(event["event"] == "worker_lost" for event in broken.events())
        assert_same(whole, broken)
    finally:
        cluster.stdin.write("\n")
        cluster.stdin.close()
        cluster.wait(timeout=60)


def test_checkpoints_on_another_filesystem_survive_a_kill(byte_files, undisturbed, tmp_path):
    whole = undisturbed(**SHORT)
    uri = f"file://{tmp_path}/far"
    broken = FaultSearch(tmp_path / "broken", byte_files, storage_path=uri, **SHORT)
    process = broken.start()
    assert broken.wait_for(process, "checkpoint")
    broken.kill(process)
    broken.finish()
    assert_same(whole, broken)
    assert list((tmp_path / "far").glob("broken-*/session_*/*/checkpoint_*/state.pt"))
    assert not (broken.folder / "ray").exists()
    assert json.loads((broken.folder / "search.json").read_text())["options"]["storage_path"] == uri


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start_node(*arguments, **environment):
    """`ray start` with these arguments."""
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus", "1", "--disable-usage-stats", *arguments]
    done = subprocess.run(ray, env=os.environ | SEVERAL_MACHINES | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_recipe_for_several_machines_with_its_token(byte_files, tmp_path, monkeypatch):
    """As README has it, with a head and a second node on this machine, in a home and below a folder of its own."""
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)  # a search that ran in this process has left its token
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # sockets have short names
        home = tmp_path / "home"
        home.mkdir()
        own = {"HOME": str(home), "RAY_TMPDIR": short, MARKER: f"recipe{short}"}
        token = [sys.executable, "-m", "ray.scripts.scripts", "get-auth-token", "--generate"]
        subprocess.run(token, env=os.environ | own, check=True, capture_output=True, timeout=120)
        port, mode = free_port(), own | {"RAY_AUTH_MODE": "token"}
        train, val = map(str, byte_files)
        search = ["tune/search.py", "--train_file", train, "--val_file", val, "--budget_tokens", "262144", "--space", "v1"]
        search += [
            "--num_samples",
            "2",
            "--replicate_best",
            "0",
            "--scheduler",
            "fifo",
            "--storage_path",
            str(tmp_path / "runs"),
        ]
        try:
            start_node("--head", f"--port={port}", "--include-dashboard=false", **mode)
            start_node(f"--address=127.0.0.1:{port}", **mode)
            done = run_command_line(*search, "--address", "auto", "--name", "big", env=os.environ | mode)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "2 at once" in done.stdout and "2 of 2: 2 completed" in done.stdout
            for words, changes, place in (
                (None, {}, "this one, or set RAY_AUTH_TOKEN"),
                ("0" * 64, {"RAY_AUTH_MODE": "disabled"}, "RAY_AUTH_TOKEN, and unset RAY_AUTH_MODE, which is 'disabled'"),
                ("caf\xe9", {"RAY_AUTH_MODE": "token"}, "this one"),
                (None, {"RAY_AUTH_TOKEN": "0" * 64}, "RAY_AUTH_TOKEN, which is set to another"),
                (None, {"RAY_AUTH_TOKEN_PATH": "/none"}, "/none, where RAY_AUTH_TOKEN_PATH points"),
            ):
                (home / ".ray" / "auth_token").unlink(missing_ok=True)
                if words:
                    (home / ".ray" / "auth_token").write_text(words)
                for address in ("auto", f"127.0.0.1:{port}"):
                    done = run_command_line(*search, "--address", address, "--name", "no", env=os.environ | own | changes)
                    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
                    assert f"error: --address {address}: the cluster refused this machine's token; copy" in done.stderr
                    assert place in done.stderr
            assert not (tmp_path / "runs" / "no").exists()
        finally:
            for pid in processes_with(own[MARKER]):
                os.kill(pid, signal.SIGKILL)
            assert gone(lambda: processes_with(own[MARKER]), 15.0)
