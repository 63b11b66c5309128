"""Workers are forked from one process that has imported what they need, and start in the usual way without it."""

import os
import sys
from pathlib import Path

import psutil
import pytest

from myllm.system.machine import has_gpu_driver
from tune.config.options import SearchOptions
from tune.config.resolve import Resources
from tune.ray_backend.start import Engine

pytestmark = pytest.mark.skipif(has_gpu_driver(), reason="workers are forked on Linux without GPUs alone")


def test_workers_are_forked_and_start_without_the_nursery_too(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    engine = Engine()
    assert "RAY_AUTH_TOKEN" not in os.environ  # it may join a cluster, which wants the user's own
    try:
        engine.start(SearchOptions(), Resources(1, 0, 1))
        engine.wait()
        import ray

        @ray.remote(num_cpus=1, max_calls=1)
        def who() -> tuple[int, int, bool, str | None]:
            return os.getpid(), os.getppid(), "torch" in sys.modules, os.environ.get("RAY_JOB_ID")

        idle = [p for p in psutil.Process().children(recursive=True) if p.pid not in before and p.name() == "cat"]
        assert len(idle) == 2  # in the place of Ray's agents, which a search would wait for
        nursery, folder = engine._nursery.process, Path(engine._nursery.folder)
        pid, parent, has_torch, job = ray.get(who.remote())
        assert parent == nursery.pid and has_torch and job == ray.get_runtime_context().get_job_id()
        nursery.kill()
        nursery.wait()
        again, parent, has_torch, _ = ray.get(who.remote())
        assert again != pid and parent != nursery.pid and not has_torch
    finally:
        engine.stop()
    assert not folder.exists()
    _, alive = psutil.wait_procs(
        [process for process in psutil.Process().children(recursive=True) if process.pid not in before], timeout=10
    )
    assert alive == []


def test_a_new_segment_is_started_before_those_that_wait_and_once():
    """Ray would end the process that starts for one that waits, and give it that of the trial that has just ended."""
    from types import SimpleNamespace

    from tune.ray_backend.tuner import JournalledScheduler

    waiting = SimpleNamespace(get_trials=lambda: [SimpleNamespace(status="PENDING")])
    scheduler = JournalledScheduler(SimpleNamespace(newest="segment"))
    assert [scheduler.choose_trial_to_run(waiting) for _ in range(2)] == ["segment", None]
