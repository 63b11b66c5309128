"""Ray's start and end, and the order in which segments are started."""

import os
from types import SimpleNamespace

import psutil

from tune.config.options import SearchOptions
from tune.config.resources import Resources
from tune.ray_backend.start import Engine
from tune.ray_backend.tuner import JournalledScheduler


def test_ray_starts_without_what_no_search_needs_and_leaves_no_process(monkeypatch):
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before = {process.pid for process in psutil.Process().children(recursive=True)}

    def new_processes():
        return [process for process in psutil.Process().children(recursive=True) if process.pid not in before]

    engine = Engine()
    assert "RAY_AUTH_TOKEN" not in os.environ  # it may join a cluster, which wants the user's own
    try:
        engine.start(SearchOptions(), Resources(1, 0, 1))
        engine.wait()
        commands = [" ".join(process.cmdline()) for process in new_processes()]
        assert not [command for command in commands if "dashboard" in command or "monitor" in command]
    finally:
        engine.stop()
    _, alive = psutil.wait_procs(new_processes(), timeout=10)
    assert alive == []


def test_a_new_segment_is_started_before_those_that_wait_and_once():
    """Ray would end the process that starts for one that waits, and give it that of the trial that has just ended."""
    waiting = SimpleNamespace(get_trials=lambda: [SimpleNamespace(status="PENDING")])
    scheduler = JournalledScheduler(SimpleNamespace(newest="segment"))
    assert [scheduler.choose_trial_to_run(waiting) for _ in range(2)] == ["segment", None]
