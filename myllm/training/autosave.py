"""Saves a training while it runs: every few minutes, and where a signal asks it to end."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

from myllm.system.errors import InputError
from myllm.text.durations import parse_duration
from myllm.training.parallel import SINGLE, ProcessGroup

MOST_OF_THE_TIME = 0.02
"""largest share of the time that saving may take"""
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""what asks a process to end: Ctrl-C, a job's time limit, a terminal that was closed"""


def minutes(text: str) -> float:
    """Returns the minutes of 10, which has no unit, or of a duration such as 30s, 10m or 1h30m. Raises InputError."""
    try:
        value = parse_duration(text if text[-1:].isalpha() else f"{text}m") / 60
    except InputError:
        value = 0.0
    if not 0 < value < 1e6:
        raise InputError(f"--save_every {text!r} is no duration; write minutes, or one such as 30s, 10m or 1h30m")
    return value


class AutoSave:
    """Calls `save` when it is due. Call `after_step` after each optimizer step.

    The time between two calls is `every` minutes, or longer where saving would take more than MOST_OF_THE_TIME.
    """

    def __init__(self, save: Callable[[], None], every: float, group: ProcessGroup = SINGLE):
        self.save, self.every, self.group = save, every, group
        self.signal: int | None = None
        """the signal that asked the training to end, or None"""
        self.due = time.monotonic() + 60 * every

    def after_step(self) -> bool:
        """Saves if it is time to, or if the training is to end; returns True in the second case."""
        ends = self.ends()
        if ends is None and time.monotonic() < self.due:
            return False
        begin = time.monotonic()
        self.save()
        end = time.monotonic()
        self.due = end + max(60 * self.every, (end - begin) / MOST_OF_THE_TIME)
        return ends is not None

    def ends(self) -> int | None:
        """Returns the signal that had asked one of the processes to end when all called this, or None: in all alike.

        A signal that comes while they ask each other counts the next time.
        """
        return (self.signal or signal.SIGTERM) if self.group.any(self.signal is not None) else None

    @contextlib.contextmanager
    def catching_signals(self) -> Iterator[None]:
        """Within the block the first signal is noted; a second one ends the process as usual. Ignored ones stay ignored."""
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def note(number: int, frame: FrameType | None) -> None:
            self.signal = number
            for other in before:  # whoever asks twice does not want to wait
                if signal.getsignal(other) is note:
                    signal.signal(other, before[other])
            os.write(2, b"ending after this step, which is saved; once more ends at once\n")  # print is not reentrant

        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
