"""Ends a search at a signal: Ctrl-C, or the SIGTERM of a batch system."""

import contextlib
import os
import signal
import sys
import threading
from typing import Any

import psutil


class Interrupts:
    """Handles SIGINT and SIGTERM: the first ends the search in order, the second leaves at once. It then resumes."""

    may_exit = True
    """False where the search is a call of a caller's program: then the second signal raises KeyboardInterrupt"""

    def __init__(self, resume_command: str):
        self.resume_command, self.count = resume_command, 0
        self.ending = False  # True once the search ends anyway

    def __enter__(self) -> "Interrupts":
        is_main = threading.current_thread() is threading.main_thread()  # others can't handle signals
        numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
        self.before = {number: signal.getsignal(number) for number in numbers}
        self.install()
        return self

    def __exit__(self, *error: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Handles both signals from now on. A second call takes them back from Ray, which has handlers of its own."""
        for number in self.before:
            signal.signal(number, self.handle)

    def handle(self, number: int, frame: Any) -> None:
        """Ends the search: in order at the first signal, at once at the second."""
        self.count += 1
        if self.count > 1 and not self.may_exit:
            raise KeyboardInterrupt
        if self.count > 1:
            print(f"\nleft at once; go on with: {self.resume_command}", file=sys.__stderr__, flush=True)  # below the screen
            for process in psutil.Process().children(recursive=True):  # Ray's processes would linger
                with contextlib.suppress(psutil.Error):
                    process.kill()
            os._exit(130)
        print("\nstopping; once more leaves at once", file=sys.stderr, flush=True)
        if self.ending:
            return
        end_loop = signal.getsignal(signal.SIGUSR1)  # Tune ends its loop at this signal; without a loop there is no handler
        if not callable(end_loop):
            raise KeyboardInterrupt
        end_loop(number, frame)
        self.install()
