"""The line of progress on the terminal while a search runs."""

import sys
import time

from tune.trials import STATUSES, UNLIMITED_TRIALS, Trials, standings

LIVE_SECONDS, LOG_SECONDS = 0.5, 15.0  # between lines on a terminal, and in a log file


class Progress:
    """Shows one line about `trials` on stderr, rewritten in place on a terminal."""

    def __init__(self, trials: Trials):
        self.trials = trials
        self.live = sys.stderr.isatty()
        self.start = time.monotonic()
        self.last = -1e9

    def show(self) -> None:
        """Prints the line where it is due."""
        now = time.monotonic()
        if now - self.last > (LIVE_SECONDS if self.live else LOG_SECONDS):
            self.last = now
            before, after = ("\r\x1b[2K", "") if self.live else ("", "\n")
            print(f"{before}{self.line()}", end=after, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leaves the terminal's line empty."""
        if self.live:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)

    def line(self) -> str:
        """Time, trials by status, and the best so far."""
        trials = self.trials
        total = f"/{trials.num_samples}" if trials.num_samples < UNLIMITED_TRIALS else ""
        counts = "".join(f", {trials.statuses[s]} {s}" for s in STATUSES if trials.statuses[s])
        text = f"{time.monotonic() - self.start:5.0f} s  {len(trials.drawn)}{total} trials{counts}"
        text += f", {trials.tokens / 1e6:,.1f}M tokens"
        reached, best = standings(trials)
        if best:
            text += f", best val_loss {best[0].mean_at(reached):.4f} (trial {best[0].trial_id}"
            text += ")" if reached == trials.budget_tokens else f" at {reached / trials.budget_tokens:.0%})"
        return text
