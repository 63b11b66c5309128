"""Ctrl-C and its like: the first time in order, the second time at once."""

import contextlib
import os
import signal
import sys
from typing import Any

import psutil


class Interrupts:
    """SIGINT and SIGTERM: the first lets the search end in order, the second leaves at once. Both can be resumed from."""

    def __init__(self, resume_command: str):
        self.resume_command, self.count = resume_command, 0
        self.ending = False
        """set when the search ends anyway"""

    def __enter__(self) -> "Interrupts":
        self.before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.install()
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Makes both signals ours; called again after Ray has put its own handler there."""
        for number in self.before:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: Any) -> None:
        self.count += 1
        if self.count > 1:
            print(f"\nleft at once; go on with: {self.resume_command}", file=sys.__stderr__, flush=True)  # below the screen
            for process in psutil.Process().children(recursive=True):  # Ray's would linger
                with contextlib.suppress(psutil.Error):
                    process.kill()
            os._exit(130)
        print("\nstopping; once more leaves at once", file=sys.stderr, flush=True)
        if self.ending:
            return
        end_loop = signal.getsignal(signal.SIGUSR1)  # Ray's own way to end its loop, while that runs
        if not callable(end_loop):
            raise KeyboardInterrupt
        end_loop(number, frame)
        self.install()
