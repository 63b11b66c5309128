"""Whether a training's forward and backward passes are compiled, how long that took, and what it gained."""

import statistics
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from myllm.system.errors import RunError, warn

SECONDS_PER_LAYER = 4.0  # of the first compilation; a machine with an H100 took 20 s for 6 layers, 59 s for 12
COMPILED_SPEED = 1.3  # times that of a recorded step, for models that repay it; 1.3 to 1.6 were seen (experiments/LOG.md)
WARM, TIMED = 2, 5  # passes: the first ones compile, allocate, and record


@dataclass(frozen=True)
class Compiled:
    """What compiling took in one process, and what it gained there."""

    compiling_seconds: float
    """until the compiled passes had their speed; little where an earlier process left its work on the disk"""
    plain_tok_per_sec: float
    """tokens a second of forward and backward passes before"""
    compiled_tok_per_sec: float
    """the same after"""

    @property
    def gain(self) -> float:
        """How many times as fast they are."""
        return self.compiled_tok_per_sec / self.plain_tok_per_sec

    def __str__(self) -> str:
        speeds = f"{self.plain_tok_per_sec:,.0f} -> {self.compiled_tok_per_sec:,.0f} tok/s, {self.gain:.2f} times"
        return f"compiled in {self.compiling_seconds:.1f} s; forward and backward passes {speeds}"


class Compilation:
    """Whether a run's passes are compiled: `on` always, `off` never, `auto` where it repays.

    The rule of `auto`: if a whole training at the speed of plain passes takes so long that compiled ones save more than
    compiling costs. The whole training counts, not what is left of it: trials of one `shape` share the compiled code, a
    worker in memory and a machine on disk, so that only the first of them pays. `switch` makes passes compiled or plain.
    """

    known: dict[Hashable, bool] = {}  # noqa: RUF012 (the process's own)
    """shapes that this process has tried to compile -> whether they can be"""

    def __init__(
        self, mode: str, shape: Hashable, n_layer: int, set_compiled: Callable[[bool], None], device: torch.device
    ):
        self.mode, self.shape, self.n_layer, self.set_compiled, self.device = mode, shape, n_layer, set_compiled, device
        self._found: Compiled | None = None

    def decide(self, one_pass: Callable[[], None], tokens: int, passes: int) -> None:
        """Before the first step: decides, compiles, and measures. `one_pass` is one of `tokens`, a training has `passes`.

        Raises RunError where it is `on` and can't be done, for want of a C++ compiler say.
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
        """What was measured where this run was the first of its shape in this process; told once."""
        found, self._found = self._found, None
        return found

    def _time(self, one_pass: Callable[[], None]) -> tuple[float, float]:
        """(seconds of a pass, seconds that the first ones took beyond that)."""
        took = []
        for _ in range(WARM + TIMED):
            begin = time.perf_counter()
            one_pass()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            took.append(time.perf_counter() - begin)
        each = statistics.median(took[WARM:])
        return each, max(0.0, sum(took[:WARM]) - WARM * each)
