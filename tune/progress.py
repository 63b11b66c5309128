"""The line of progress on the terminal while a search runs."""

import sys
import time

from tune.state import COMPLETED, INTERRUPTED, UNLIMITED_TRIALS, SearchState

LIVE_SECONDS, LOG_SECONDS = 0.5, 15.0  # between lines on a terminal, and in a log file


class Progress:
    """Shows one line about `state` on stderr, rewritten in place on a terminal."""

    def __init__(self, state: SearchState):
        self.state = state
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
        """Time, trials by state, and the best loss of those at the full budget."""
        statuses = list(self.state.status.values())
        planned = self.state.plan.num_samples
        total = f"/{planned + len(self.state.confirms)}" if planned < UNLIMITED_TRIALS else ""
        ended = len(statuses) - statuses.count(INTERRUPTED)
        counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses) if s != INTERRUPTED)
        tokens = sum(self.state.tokens_seen(trial_id) for trial_id in self.state.status)
        text = f"{time.monotonic() - self.start:5.0f} s  {ended}{total} trials ended" + (f" ({counts})" if counts else "")
        text += f", {len(self.state.running)} running, {tokens / 1e6:,.1f}M tokens"
        done = [(self.state.last_loss(t), t) for t, status in self.state.status.items() if status == COMPLETED]
        if done:
            text += f", best val_loss {min(done)[0]:.4f} (trial {min(done)[1]})"
        return text
