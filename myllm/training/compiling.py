"""Decides whether forward and backward passes are compiled, and measures the gain."""

import statistics
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from myllm.system.errors import RunError, warn

SECONDS_PER_LAYER = 4.0  # cost of the first compilation; a machine with an H100 took 20 s for 6 layers, 59 s for 12
COMPILED_SPEED = 1.3  # speed of compiled passes over that of recorded ones; 1.3 to 1.6 were seen (experiments/LOG.md)
WARM, TIMED = 2, 5  # passes before and during the measurement; the first ones compile, allocate and record


@dataclass(frozen=True)
class Compiled:
    """Cost and gain of compiling, as measured in one process."""

    compiling_seconds: float
    """seconds until compiled passes run at full speed; few where the disk holds an earlier process's work"""
    plain_tok_per_sec: float
    """tokens per second of plain forward and backward passes"""
    compiled_tok_per_sec: float
    """tokens per second of compiled forward and backward passes"""

    @property
    def gain(self) -> float:
        """Returns the speed of compiled passes divided by that of plain ones."""
        return self.compiled_tok_per_sec / self.plain_tok_per_sec

    def __str__(self) -> str:
        speeds = f"{self.plain_tok_per_sec:,.0f} -> {self.compiled_tok_per_sec:,.0f} tok/s, {self.gain:.2f} times"
        return f"compiled in {self.compiling_seconds:.1f} s; forward and backward passes {speeds}"


class Compilation:
    """Decides whether a run's passes are compiled. The mode `on` means always, `off` never, `auto` where it saves time.

    With `auto` passes are compiled if that saves more time over a whole training than compiling takes. The whole training
    counts, not the rest of it: trials of one `shape` share the compiled code in a worker's memory and on a machine's disk,
    so that only the first of them pays. `set_compiled` makes passes compiled or plain.
    """

    known: dict[Hashable, bool] = {}  # noqa: RUF012 (shared by all runs of a process)
    """shapes that this process has tried to compile -> True if that worked"""

    def __init__(
        self, mode: str, shape: Hashable, n_layer: int, set_compiled: Callable[[bool], None], device: torch.device
    ):
        self.mode, self.shape, self.n_layer, self.set_compiled, self.device = mode, shape, n_layer, set_compiled, device
        self._found: Compiled | None = None

    def decide(self, one_pass: Callable[[], None], tokens: int, passes: int) -> None:
        """Decides, compiles and measures, before the first step.

        `one_pass` runs a pass over `tokens` tokens; a training has `passes` passes. Raises RunError where the mode is `on`
        and compiling fails, for want of a C++ compiler for example.
        """
        if self.mode == "off":
            return
        if self.shape in self.known:
            return self.set_compiled(self.known[self.shape])
        plain, _ = self._time(one_pass)
        saved = passes * plain * (1 - 1 / COMPILED_SPEED)
        if self.mode == "auto" and saved <= SECONDS_PER_LAYER * self.n_layer:
            return
        self.set_compiled(True)
        try:
            compiled, seconds = self._time(one_pass)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = " ".join(str(error).split())[:300]
            if self.mode == "on":
                raise RunError(f"compile is on, but this model can't be compiled here: {reason}") from None
            warn(f"training goes on without compiling, which failed: {reason}")
            self.known[self.shape] = False
            return self.set_compiled(False)
        self.known[self.shape] = True
        self._found = Compiled(seconds, tokens / plain, tokens / compiled)

    def pop_measurement(self) -> Compiled | None:
        """Returns the measurement once, if this run was the first of its shape in this process; else None."""
        found, self._found = self._found, None
        return found

    def _time(self, one_pass: Callable[[], None]) -> tuple[float, float]:
        """Returns (seconds of a pass, extra seconds that the first passes took)."""
        took = []
        for _ in range(WARM + TIMED):
            begin = time.perf_counter()
            one_pass()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            took.append(time.perf_counter() - begin)
        each = statistics.median(took[WARM:])
        return each, max(0.0, sum(took[:WARM]) - WARM * each)
