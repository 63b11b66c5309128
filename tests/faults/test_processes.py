"""Trainings that two processes share: a killed process of any kind leaves none behind, and the search ends as if unhurt."""

import contextlib
import os
import signal

import psutil
import pytest
from harness import FaultSearch, assert_same, gone

from tune.config.spec import read_search
from tune.ray_backend.programs import partners
from tune.ray_backend.programs.builtin import builtin_program

OPTIONS = dict(num_samples=3, replicate_best=1, scheduler="asha", rungs="0.25:3", processes_per_trial=2)


def sharing(search):
    """The processes that train in step with a worker."""
    return [pid for pid, command in sorted(search.processes().items()) if partners.__name__ in command]


@pytest.mark.slow
def test_partners_serve_the_next_training_and_end_after_an_error(byte_files, tmp_path):
    search = read_search(FaultSearch(tmp_path / "run", byte_files, **OPTIONS).folder)
    found, served = {}, []
    for processes in (1, 2):
        program = builtin_program(search, 1, 0, processes)
        for number, end in enumerate((2, 3)):  # each is stopped at a report, as a segment at a rung
            folder = tmp_path / f"{processes}-{number}" / "checkpoint"
            folder.mkdir(parents=True)
            with contextlib.closing(program(search.sample(number), 100, folder, False)) as reports:
                found[processes, number] = [next(reports)["val_loss"] for _ in range(end)]
            served.append([process.pid for process in partners.others])
    assert served[:2] == [[], []] and served[2] == served[3] and len(served[2]) == 1
    for number in (0, 1):
        assert found[2, number] == pytest.approx(found[1, number], rel=1e-5)
    reports = program(search.sample(0), 100, folder, False)
    next(reports)
    with pytest.raises(KeyError):
        reports.throw(KeyError("of the caller"))
    assert not partners.others and gone(lambda: psutil.pid_exists(served[2][0]), 5)


def wait_for_report(search, process):
    reports = sum(event["event"] == "report" for event in search.events())
    assert search.wait_for(process, "report", reports + 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_partner_worker_or_driver_leaves_nothing_behind(byte_files, undisturbed, tmp_path):
    whole, broken = undisturbed(1, **OPTIONS), FaultSearch(tmp_path / "broken", byte_files, **OPTIONS)
    process = broken.start()
    for find in (sharing, FaultSearch.workers):
        wait_for_report(broken, process)
        before = sharing(broken)
        assert len(before) == 1
        os.kill(find(broken)[0], signal.SIGKILL)
        assert gone(lambda: set(before) & set(sharing(broken)), 15)  # noqa: B023 (called at once)
    wait_for_report(broken, process)
    broken.kill(process)
    assert gone(lambda: sharing(broken), 15)
    broken.finish()
    assert_same(whole, broken)
    assert sum(event["event"] == "worker_lost" for event in broken.events()) == 2
    assert broken.no_process_left()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_goes_on_with_another_number_of_processes(byte_files, undisturbed, tmp_path):
    """Losses are those of one process to the rounding of sums, so the decisions are the same as well."""
    alone, several = (
        undisturbed(1, **OPTIONS | {"processes_per_trial": 1}),
        FaultSearch(tmp_path / "two", byte_files, **OPTIONS),
    )
    process = several.start()
    wait_for_report(several, process)
    several.kill(process)
    several.change(processes_per_trial=1)
    several.finish()
    (one, _), (other, _) = alone.tables(), several.tables()
    assert one[["trial_id", "status", "tokens_seen"]].equals(other[["trial_id", "status", "tokens_seen"]])
    assert abs(one["val_loss"] - other["val_loss"]).max() < 0.02
