"""An existing Ray cluster of several nodes, one of which dies, and checkpoints on another filesystem."""

import json
import os
import subprocess
import sys

import pytest
from harness import MARKER, SHORT, Search, assert_same

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

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


def test_a_node_dies_and_the_search_ends_complete(byte_files, undisturbed, tmp_path):
    options = dict(num_samples=4, scheduler="fifo", confirm=0)
    whole = undisturbed(2, **options)
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {MARKER: "cluster"},
    )
    try:
        address = next(line.strip() for line in cluster.stdout if ":" in line)
        broken = Search(tmp_path / "broken", byte_files, slots=2, address=address, **options)
        process = broken.start()
        assert broken.wait_for(process, "report", 12)
        cluster.stdin.write("\n")
        cluster.stdin.flush()
        errors = process.communicate(timeout=150)[1]
        assert process.returncode == 0, errors
        assert any(event["event"] == "lost" for event in broken.events())
        assert_same(whole, broken)
    finally:
        cluster.stdin.write("\n")
        cluster.stdin.close()
        cluster.wait(timeout=60)


def test_checkpoints_on_another_filesystem_survive_a_kill(byte_files, undisturbed, tmp_path):
    whole = undisturbed(**SHORT)
    uri = f"file://{tmp_path}/far"
    broken = Search(tmp_path / "broken", byte_files, storage_path=uri, **SHORT)
    process = broken.start()
    assert broken.wait_for(process, "checkpoint")
    broken.kill(process)
    broken.finish()
    assert_same(whole, broken)
    assert list((tmp_path / "far" / "broken").glob("session_*/*/checkpoint_*/state.pt"))
    assert not (broken.folder / "ray").exists()
    assert json.loads((broken.folder / "search.json").read_text())["config"]["storage_path"] == uri
