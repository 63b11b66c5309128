"""Trials that take idle slots: the session's decisions, and a search of two processes end to end, killed and resumed."""

from types import SimpleNamespace

import pytest
from harness import FaultSearch, gone

from tune.config.spec import read_search
from tune.core.events import REPORTED
from tune.core.slots import JOIN_SECONDS
from tune.core.trials import CONTINUE, RUNNING, STOP
from tune.ray_backend.programs import partners
from tune.ray_backend.session import SearchSession

OPTIONS = dict(num_samples=3, replicate_best=0, scheduler="fifo", processes_per_trial="auto", set=("batch_size=4",))


def reported(search, trial, mark, seconds=10 * JOIN_SECONDS, **more):
    """The result of a trial at a report point, of which each took some seconds."""
    values = {
        "tokens_seen": mark * search.report_tokens,
        "diverged": False,
        "train_seconds": mark * seconds,
        "val_loss": 3.0,
    }
    return dict.fromkeys(REPORTED, 0.0) | values | {"is_stored": True} | more


def ended(trial, failed=False):
    return SimpleNamespace(trial=trial, outer_cause="", retryable=True, reason="lost", error="lost")


@pytest.fixture
def session(byte_files, tmp_path):
    """session(**options): a session of two workers that nobody trains for."""
    opened = []

    def start(**options):
        folder = FaultSearch(tmp_path / "run", byte_files, **OPTIONS | options).folder
        opened.append(SearchSession(folder, read_search(folder), 2))
        opened[0].begin(0.0)
        return opened[0]

    yield start
    opened[0].close()


def test_the_last_trial_goes_on_with_the_idle_slot_from_a_stored_report(session):
    now = session()
    search, (first, second) = now.search, (now.next_trial(), now.next_trial())
    assert now.slots == {first.trial_id: 1, second.trial_id: 1} and now.next_trial() is None
    assert now.on_report(first, reported(search, first, 1)) == CONTINUE  # nothing is idle
    now.on_end(ended(second), failed=True)
    assert now.next_trial() is second  # again; a third begins once it is over
    assert now.on_report(second, reported(search, second, 32)) == STOP
    now.on_end(ended(second), failed=False)
    third = now.next_trial()
    assert now.on_report(third, reported(search, third, 32)) == STOP
    now.on_end(ended(third), failed=False)
    assert now.next_trial() is None
    assert now.on_report(first, reported(search, first, 2, is_stored=False)) == CONTINUE
    assert now.on_report(first, reported(search, first, 3)) == STOP and first.status == RUNNING
    assert now.next_trial() is None  # its process has not left yet
    now.on_end(ended(first), failed=False)
    assert not now.is_over and now.next_trial() is first and now.slots == {first.trial_id: 2}
    assert now.on_report(first, reported(search, first, 4)) == CONTINUE  # nothing is idle any more


def test_a_trial_that_takes_two_slots_gives_one_back_for_others(session):
    now = session(num_samples=1)
    search, first = now.search, now.next_trial()
    assert now.slots == {first.trial_id: 1}  # its pace is unknown
    assert now.on_report(first, reported(search, first, 1)) == STOP
    now.on_end(ended(first), failed=False)
    assert now.next_trial() is first and now.slots[first.trial_id] == 2
    now.trials.num_samples = 2  # as after --resume with more trials
    assert now.on_report(first, reported(search, first, 2)) == STOP
    now.on_end(ended(first), failed=False)
    second = now.next_trial()
    assert second is not first and now.next_trial() is first
    assert now.slots == {first.trial_id: 1, second.trial_id: 1}


def test_nobody_joins_a_trial_that_is_nearly_over_or_unasked(session):
    now = session(num_samples=1)
    first = now.next_trial()
    assert now.on_report(first, reported(now.search, first, 1, seconds=0.1)) == CONTINUE
    assert now.on_report(first, reported(now.search, first, 31, seconds=3 * JOIN_SECONDS)) == CONTINUE
    first.segment_end_tokens *= 100
    assert now.on_report(first, reported(now.search, first, 30, is_stored=False)) == CONTINUE


def test_a_number_keeps_every_trial_in_one_slot(session):
    now = session(num_samples=1, processes_per_trial=1)
    first = now.next_trial()
    assert now.on_report(first, reported(now.search, first, 1)) == CONTINUE


def test_a_lost_trial_that_was_about_to_join_goes_back_to_its_checkpoint(session):
    now = session(num_samples=1)
    first = now.next_trial()
    assert now.on_report(first, reported(now.search, first, 1)) == STOP
    now.on_end(ended(first), failed=True)
    assert first.lost == 1 and not now.between and now.next_trial() is first


def training(search):
    """The processes that train; Ray's own may outlive a killed driver by a minute."""
    found = search.processes().items()
    return [pid for pid, command in found if partners.__name__ in command] + search.workers()


def widths(search):
    """The processes of each report, by trial."""
    found = {}
    for event in search.events():
        if event["event"] == "report":
            found.setdefault(event["trial_id"], []).append(event.get("processes", 1))
    return found


def same_but_for_rounding(one, other):
    (mine, my_reports), (theirs, their_reports) = one.tables(), other.tables()
    columns = ["trial_id", "status", "tokens_seen", "step"]
    assert mine[columns].equals(theirs[columns])
    assert abs(mine["val_loss"] - theirs["val_loss"]).max() < 1e-4
    assert my_reports[["trial_id", "tokens_seen"]].equals(their_reports[["trial_id", "tokens_seen"]])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_whose_last_wave_joins_idle_slots_killed_and_resumed_also_with_another_number(
    byte_files, undisturbed, tmp_path
):
    alone = undisturbed(1, **OPTIONS | {"processes_per_trial": 1})
    joined, broken = (
        FaultSearch(tmp_path / name, byte_files, slots=2, fault="join", **OPTIONS) for name in ("joined", "broken")
    )
    joined.finish()
    assert gone(lambda: training(joined), 15)
    found = [counts for counts in widths(joined).values() if 2 in counts]
    assert found and all(counts == sorted(counts) for counts in found), widths(joined)  # all begin in one slot
    same_but_for_rounding(alone, joined)

    process = broken.start()
    while not any(2 in counts for counts in widths(broken).values()):
        assert broken.wait_for_events(process, len(broken.events()) + 1)
    broken.kill(process)
    assert gone(lambda: training(broken), 15)
    broken.change(processes_per_trial=1)
    process = broken.start()
    reports = sum(map(len, widths(broken).values()))
    assert broken.wait_for(process, "report", reports + 2)
    broken.kill(process)
    assert any(2 in counts and counts[-1] == 1 for counts in widths(broken).values())
    broken.change(processes_per_trial="auto")
    broken.finish()
    assert gone(lambda: training(broken), 15)
    same_but_for_rounding(alone, broken)
