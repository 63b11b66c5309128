"""Says early that a command prints losses, and that no line of it is a report: --report may not fit."""

import math
import time
from pathlib import Path

from myllm.system.errors import one_line, warn
from tune.config.spec import SearchSpec
from tune.core.trials import Trials
from tune.ray_backend.programs.process import names_loss, pattern_parser, telling_line

PATIENCE_SECONDS = 20.0  # between the first line that names a loss and the word that none is a report
LOOK_SECONDS = 2.0  # between two looks at the output
MOST_BYTES = 2**20  # of the output that is looked at


class FirstReport:
    """Looks at what the trials of a search print, until one has reported."""

    def __init__(self, run_dir: Path, search: SearchSpec):
        options = search.options
        self.folder, self.pattern = run_dir / "output", options.report
        self.first_line = math.inf  # when the first line that names a loss was seen
        self.next_look = 0.0 if options.command and not options.report_file else math.inf

    def check(self, trials: Trials) -> None:
        """Warns once, where a trial has printed losses for PATIENCE_SECONDS and no line is a report."""
        now = time.monotonic()
        if now < self.next_look:
            return
        self.next_look = now + LOOK_SECONDS
        for path in sorted(self.folder.glob("*.txt")):
            with open(path, "rb") as file:
                lines = file.read(MOST_BYTES).decode("utf-8", errors="replace").splitlines()
            if trials.trained or any(map(pattern_parser(self.pattern), lines)):
                self.next_look = math.inf
                return
            if not lines or not names_loss(telling_line(lines)):
                continue
            self.first_line = min(self.first_line, now)
            if now - self.first_line > PATIENCE_SECONDS:
                self.next_look = math.inf
                shown = one_line(telling_line(lines))[:80]
                fits = "--report does not fit" if self.pattern else "is no JSON report; --report says how to read others"
                warn(f"no report yet; trial {path.stem} prints lines like {shown!r}, which {fits}")
                return
