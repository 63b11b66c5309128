"""The screen at any width, from recorded trials; no Ray."""

import io
import os
import pty
import struct
import termios
from fcntl import ioctl

import pytest
from conftest import BUDGET, begun, report
from rich.console import Console

from tune.core.events import TrialFailed
from tune.core.trials import PAUSE, REPLICATE, STOP, Trials
from tune.estimate.forecast import Forecast
from tune.monitor.progress import Terminal
from tune.monitor.screen import View, line, render

CONFIG = {"learning_rate": 0.00321, "batch_size": 16, "warmup_ratio": 0.02, "clip_norm": 1.0}
EVENTS = [
    *(begun(f"{i:05d}", config=CONFIG | {"learning_rate": 0.001 * (i + 1)}) for i in range(6)),
    begun("00001-seed", source=REPLICATE, parent_id="00001", config=CONFIG | {"seed": 5}),
    report("00000", 100, 4.0),
    report("00000", BUDGET, 2.5, STOP),
    report("00001", 100, 3.9),
    report("00001", BUDGET, 2.0, STOP),
    report("00001-seed", BUDGET, 2.2, STOP),
    report("00002", 100, 9.0, STOP, diverged=True),
    report("00003", 100, 4.5, PAUSE),
    report("00004", 100, 4.2),
    TrialFailed(trial_id="00005", reason="boom"),
]


def view(**changes):
    trials = Trials(BUDGET, num_samples=16, events=EVENTS)
    values = dict(
        name="recorded",
        trials=trials,
        rung_tokens=(100, 400, 800),
        workers=[trials.by_id["00004"], None],
        seconds=60.0,
        forecast=Forecast(180.0, 10**6, 16, 3, {100: 16, 400: 8, 800: 4, BUDGET: 6}, 4),
        training_share=0.87,
    )
    return View(**values | changes)


def shown(width, height=50, **changes):
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None, legacy_windows=False)
    console.print(render(view(**changes), width, height))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [120, 80, 40])
def test_everything_is_there_at_every_width(width):
    text = shown(width)
    assert all(len(row) <= width for row in text.splitlines())
    words = " ".join(text.split())
    for expected in (
        *("recorded", "1 min", "about 2 min left", "33%", "6 of 16", "2 completed", "1 diverged", "1 failed"),
        *("87% of worker time training", "val_loss 2.1000 +- 0.1000, 2 seeds", "val_loss 2.5000 +- 0.1414, 1 seed"),
        *("learning_rate 0.002", "learning_rate 0.001", "4 of ~16, 3 on", "3 of ~6", "00004", "4.2000", "free"),
    ):
        assert expected in words, f"{expected!r} is not in\n{text}"


@pytest.mark.parametrize(("width", "more"), [(80, "+5"), (40, "+15")])
def test_a_terminal_of_few_lines_is_filled_with_workers_and_the_rest_is_counted(width, more):
    trials = Trials(BUDGET, num_samples=16, events=EVENTS)
    text = shown(width, 24, workers=[trials.by_id["00004"]] * 16)
    assert len(text.splitlines()) == 24 and text.split()[-1] == more and "about 2 min" in text


def test_the_terminal_has_the_size_that_it_has_now(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # as exported by a shell once
    master, slave = pty.openpty()
    with open(slave, "w") as file:
        terminal = Terminal(file=file)
        for columns in (120, 40):
            ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            assert (terminal.size, terminal.options.max_width) == ((columns, 24), columns)
    os.close(master)
    assert Terminal(file=io.StringIO()).width == 200


def test_nothing_known_yet_is_said():
    text = shown(
        80, trials=Trials(BUDGET, num_samples=16), workers=[None], forecast=None, training_share=None, note="starting"
    )
    assert "starting" in text and "no trial has reported yet" in text and "0 diverged, 0 failed" in text


def test_a_log_has_it_all_in_one_line():
    text = line(view())
    assert "\n" not in text
    for expected in ("1 min; 2 min left", "6 of 16", "1 diverged, 1 failed", "87%", "2.1000 +- 0.1000, 2 seeds", "00001"):
        assert expected in text, text
