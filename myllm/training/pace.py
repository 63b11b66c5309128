"""A training with a number of seconds: how many steps they make, measured before it starts and corrected as it runs.

Before the first step it is also decided whether passes are compiled.
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from myllm.config import TIMED_REPORTS
from myllm.system.errors import InputError
from myllm.training.gpu import keeping_state
from myllm.training.parallel import SINGLE, ProcessGroup

WARM, TIMED = 1, 3  # passes before and during the first measurement; the first one allocates, and on a GPU records


class Pace:
    """The steps that a number of seconds makes.

    The seconds are those of optimizer steps: evaluating, saving, compiling and starting are left out. A report is due after
    each of TIMED_REPORTS equal parts of them. The clock is read at the end of each part, since a GPU that is asked for the
    time must finish its work first. The steps to come are counted anew there, so the training ends when its time does.
    """

    def __init__(self, budget: float):
        self.budget = budget
        self.seconds = 0.0
        """seconds of steps so far"""
        self.reports = 0
        """parts that have ended"""
        self.per_step: float | None = None
        """seconds of a step, as last measured; None before"""
        self.total_steps = 2**62
        """steps of the whole training, as far as is known"""
        self.stop_step = 0
        """optimizer step at which the clock is read next"""
        self._part_step, self._part_seconds = 0, 0.0  # where the clock was last read
        self._at_report = False

    @property
    def is_over(self) -> bool:
        """Returns True at the end of the training."""
        return self.reports >= TIMED_REPORTS

    @property
    def done(self) -> float:
        """Returns the seconds of the budget that are done: at a report those of its parts, exactly."""
        part = self.budget / TIMED_REPORTS
        begin = self.reports * part
        return begin if self._at_report else min(max(self.seconds, begin + 0.01 * part), begin + 0.99 * part)

    def measure(
        self, one_pass: Callable[[], Any], passes: int, step: int, device: torch.device, group: ProcessGroup = SINGLE
    ) -> None:
        """Measures a step of `passes` passes, and counts the steps to come.

        Raises InputError where the budget holds fewer steps than reports, by the fastest pass: a busy machine slows others.
        """
        took = []
        for _ in range(WARM + TIMED):
            begin = time.perf_counter()
            one_pass()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            took.append(time.perf_counter() - begin)
        self.per_step = group.that_of_first(passes * statistics.median(took[WARM:]))
        least = group.that_of_first(passes * min(took[WARM:]))
        if least * TIMED_REPORTS > self.budget:
            raise InputError(
                f"budget_seconds is {self.budget:g}, and a step takes {least:.3g} s here: fewer steps than its "
                f"{TIMED_REPORTS} reports; give {least * TIMED_REPORTS:.2g} or more, or smaller batches"
            )
        self._plan(step)

    def add(self, step: int, seconds: float, group: ProcessGroup = SINGLE) -> bool:
        """Counts the `seconds` of the step that ended as number `step`; returns True if a report is due.

        Where several processes train, all of them go by the clock of the first.
        """
        self.seconds += seconds
        self._at_report = False
        if step < self.stop_step:
            return False
        self.seconds = group.that_of_first(self.seconds)
        self.per_step = (self.seconds - self._part_seconds) / (step - self._part_step)
        end_of_part = (self.reports + 1) * self.budget / TIMED_REPORTS
        self._at_report = self.seconds + self.per_step / 2 >= end_of_part
        self.reports += self._at_report
        self._plan(step)
        return self._at_report

    def _plan(self, step: int) -> None:
        """Counts the steps to the next report and to the end."""
        if self.per_step is None:
            raise ValueError("the pace is not measured yet")
        self._part_step, self._part_seconds = step, self.seconds
        end_of_part = (self.reports + 1) * self.budget / TIMED_REPORTS
        steps = max(1, round((end_of_part - self.seconds) / self.per_step))
        if not self.reports:  # the first measurement was short: it is corrected after 1, 2, 4, ... steps
            steps = min(steps, max(1, step))
        left = 0 if self.is_over else max(TIMED_REPORTS - self.reports, round((self.budget - self.seconds) / self.per_step))
        self.stop_step, self.total_steps = step + steps, step + left

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        return {name.removeprefix("_"): value for name, value in vars(self).items()}

    def load_state_dict(self, state: dict[str, Any] | None, step: int, train_seconds: float) -> None:
        """Restores `state`; where it is that of another budget, or None, the parts are counted from the seconds.

        Without a state, a training of `step` steps so far took `train_seconds`.
        """
        if state and state["budget"] == self.budget:
            for name, value in state.items():
                setattr(self, name if hasattr(self, name) else f"_{name}", value)
            return
        self.seconds = state["seconds"] if state else train_seconds
        self.per_step = state["per_step"] if state else train_seconds / max(1, step)
        self.reports = min(TIMED_REPORTS, int(self.seconds / self.budget * TIMED_REPORTS))
        self._plan(step)


def prepare(run: Any, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """Decides by timing passes of a micro-batch whether passes are compiled, and measures the pace of a time budget.

    Returns the seconds that took. Leaves the run's state as it was. Does nothing the second time.
    """
    if run.is_prepared:
        return 0.0
    run.is_prepared, pace, begin = True, run.pace, time.perf_counter()
    inputs, targets = inputs[: run.micro_batch_size], targets[: run.micro_batch_size]
    passes = math.ceil(run.config.batch_size / (len(inputs) * run.group.size))

    def one_pass() -> None:
        run.backward_alone(inputs, targets)

    with keeping_state(run.model, run.device):
        if pace and pace.per_step is None:
            pace.measure(one_pass, passes, run.step, run.device, run.group)
        run.compilation.decide(one_pass, inputs.numel(), run.total_steps * passes)
        if pace and run.step == 0 and run.compute is not run.model:
            pace.measure(one_pass, passes, run.step, run.device, run.group)
    return time.perf_counter() - begin
