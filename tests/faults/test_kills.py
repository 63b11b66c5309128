"""SIGKILL to drivers and workers at any moment: the search ends as if nothing had happened, in every number but times.

FAULT_KILLS sets how many kills of each kind the long tests make.
"""

import os
import random
import time

import pytest
from harness import FaultSearch, assert_same, kill_drivers, kill_workers

from tune.core.schedulers import SCHEDULERS

KILLS = int(os.environ.get("FAULT_KILLS", "3"))


def test_one_kill_of_each_kind(byte_files, undisturbed, tmp_path):
    options = dict(num_samples=2, replicate_best=2)
    whole, broken = undisturbed(**options), FaultSearch(tmp_path / "broken", byte_files, **options)
    assert kill_drivers(broken, 1, seed=1, most_events=15) == 1
    process = broken.start()
    assert broken.wait_for_events(process, len(broken.events()) + 8)
    while not broken.kill_worker(random.Random(0)):
        assert process.poll() is None
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 0, errors
    assert_same(whole, broken)
    trials, _ = broken.tables()
    again = trials[trials["parent_id"].notna()]
    assert {"t00000-seed", "t00001-seed"} <= set(again["trial_id"]) and set(again["status"]) == {"completed"}
    assert {1_000_003} <= set(again["seed"])
    lost = [event for event in broken.events() if event["event"] == "worker_lost"]
    assert len(lost) == 1 and (broken.folder / f"error-{lost[0]['trial_id']}.txt").read_text().strip()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("scheduler", "slots"), [("explore-finish", 1), ("asha", 1), ("fifo", 2)])
def test_many_kills_over_a_search_of_sixteen(scheduler, slots, byte_files, undisturbed, tmp_path):
    options = dict(num_samples=16, scheduler=scheduler, max_failures=1000)
    whole, broken = undisturbed(slots, **options), FaultSearch(tmp_path / "broken", byte_files, slots, **options)
    events = len(whole.events())
    drivers = kill_drivers(broken, KILLS, seed=7, most_events=events // (2 * KILLS))
    process = broken.start()
    workers = kill_workers(broken, process, KILLS, seed=8, least=0.2, most=2.0)
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 0, errors
    print(f"{scheduler}, {slots} slots: {drivers} driver kills, {workers} worker kills, {events} events undisturbed")
    assert drivers == KILLS and workers >= KILLS // 2
    assert_same(whole, broken)


@pytest.mark.slow
def test_a_process_that_dies_again_and_again_fails_with_its_reason(byte_files, tmp_path):
    search = FaultSearch(tmp_path / "run", byte_files, num_samples=1, max_failures=1)
    process, rng = search.start(), random.Random(0)
    while process.poll() is None:
        search.kill_worker(rng)
        time.sleep(0.2)
    process.communicate()
    trials, _ = search.tables()
    assert trials["status"].tolist() == ["failed"]
    assert "died" in trials["reason"][0] or "never ran" in trials["reason"][0]  # killed while it began
    assert [event["event"] for event in search.events() if event["event"] in ("worker_lost", "failed")] == [
        "worker_lost",
        "failed",
    ]


def test_a_rule_that_somebody_adds_runs_live_and_after_a_kill(byte_files, tmp_path, monkeypatch):
    from own_rule import OwnRule

    monkeypatch.setitem(SCHEDULERS, "own", OwnRule)
    options = dict(num_samples=3, replicate_best=1, scheduler="own", fault="own")
    whole, broken = (FaultSearch(tmp_path / name, byte_files, **options) for name in ("whole", "broken"))
    whole.finish()
    assert kill_drivers(broken, 1, seed=3, most_events=40) == 1
    broken.finish()
    assert_same(whole, broken)
    trials, _ = whole.tables()
    assert sorted(trials["status"]) == ["completed"] * 4 + ["paused"]  # the best, the reference, both again
