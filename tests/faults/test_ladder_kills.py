"""SIGKILL in each phase of a ladder: it ends with the same answer, bit for bit on a CPU with one worker."""

import time

import pytest
from harness import FaultSearch, assert_same

from tune.config.options import SearchOptions
from tune.config.spec import read_search
from tune.estimate.ladder import resolve_target

SIZE = ("n_layer=4", "n_head=4", "n_embd=32")


class FaultLadder(FaultSearch):
    """A ladder to a tiny target in `folder`, run by driver.py in a process of its own."""

    def __init__(self, folder, data):
        self.folder, self.slots, self.fault = folder, 1, None
        folder.mkdir()
        train, val = ((str(path),) for path in data)
        options = SearchOptions(
            train_file=train, val_file=val, target=SIZE, target_tokens=60_000, target_share=1.0, name=folder.name
        )
        resolve_target(options, folder.parent / "cache").write(folder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kills_in_each_phase_change_nothing(byte_files, tmp_path):
    whole, broken = (FaultLadder(tmp_path / name, byte_files) for name in ("whole", "broken"))
    whole.finish(timeout=900)
    plan = read_search(whole.folder).ladder
    below = sum(level.runs for level in plan.levels[: plan.top])
    phases = {"spread": 2, "fit": below - 1, "top": below + 1, "twice": below + 2, "stability": plan.trials - 1}
    for phase, begun in phases.items():
        process = broken.start()
        assert broken.wait_for(process, "trial", begun), f"{phase}: the ladder ended before"
        time.sleep(0.2)
        assert process.poll() is None, phase
        broken.kill(process)
    broken.finish(timeout=900)
    sessions = [event for event in broken.events() if event["event"] == "session"]
    assert len(sessions) == len(phases) + 1
    assert_same(whole, broken)
    answers = [(search.folder / "best_config.json").read_bytes() for search in (whole, broken)]
    assert answers[0] == answers[1]
