"""A terminal for tests: it shows what a command writes there."""

import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl

import pyte
from conftest import ROOT

ROWS = 40


class Terminal:
    """A command in a pseudo-terminal, and what one sees there."""

    def __init__(self, columns, arguments, environment):
        self.screen = pyte.HistoryScreen(columns, ROWS, history=5000)
        self.stream, self.raw, self.columns = pyte.ByteStream(self.screen), b"", columns
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": str(columns)} | environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)

    def read_until(self, done, seconds=200):
        """Reads on until done(text of the screen), or to the command's end."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if select.select([self.master], [], [], 0.2)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:  # all who wrote to it are gone
                    break
                self.raw += data
                self.stream.feed(data)
            elif self.process.poll() is not None:
                break
            if done("\n".join(self.screen.display)):
                return
        assert self.process.wait(timeout=30) is not None

    @property
    def text(self):
        """Scrollback and screen."""
        above = ["".join(row[x].data for x in range(self.columns)) for row in self.screen.history.top]
        return "\n".join(row.rstrip() for row in [*above, *self.screen.display]).rstrip()
