"""A progress bar on the terminal, with the time left. Without a terminal nothing is shown."""

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Bar:
    """Counts `n` up to `total` in bytes or steps; it shows after `delay` seconds, if it is still open then."""

    def __init__(self, total: int, what: str, unit: str = "bytes", begin: int = 0, delay: float = 0.0):
        self.total, self.what, self.n, self.delay = total, what, begin, delay
        self.opened = time.monotonic()
        console = Console(stderr=True)
        width = max(1, min(40, console.width - 36))  # the rest is for the words, the count and the time left
        count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
        self.progress = Progress(
            *(TextColumn("{task.description}"), BarColumn(width), count, TimeRemainingColumn()),
            console=console,
            disable=not console.is_terminal,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),
        )
        self.task = self.progress.add_task(what, total=total, completed=begin)

    def __enter__(self) -> "Bar":
        self.update(0)
        return self

    def __exit__(self, *error: Any) -> None:
        self.progress.stop()

    def update(self, more: int) -> None:
        """Counts on by `more`."""
        self.n += more
        if time.monotonic() - self.opened >= self.delay:
            self.progress.start()
        self.progress.update(self.task, completed=self.n)
