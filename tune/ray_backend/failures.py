"""A segment that ended with an error: whether a trial may try again, and the line that says why."""

import contextlib
import re
from typing import Any

from ray.exceptions import RayError, RayTaskError
from ray.tune.experiment import Trial as RayTrial

from myllm.system.errors import DataChanged
from myllm.system.files import is_disk_full
from tune.core.trials import FAILED, Trial, Trials
from tune.ray_backend.programs.reports import NoReportError
from tune.ray_backend.ray_compat import ABORTED

RETRYABLE_NAMES = ("AcceleratorError", ABORTED, "ProgramLostError")
"""names of errors, of a GPU, of Ray Tune and of a program that a signal ended, that a trial may not have again"""
IMPORT_FAILED = "failed to import on the worker"
"""words of Ray where a worker can't import the trainable, which it reports as a lost process"""
EXCEPTION_LINE = re.compile(r"(\w+\.)*\w*(Error|Exception|Exit|Interrupt): .*\S")
"""the line of a traceback that names the exception"""
MAX_INITIAL_FAILURES = 3  # trials that fail without a report before any other began: the rest would fare alike


class RayTrialRun(RayTrial):
    """A segment of one of our trials, as Ray's trial."""

    trial: Trial
    retryable = False  # True if the trial may not have the error again
    outer_cause = ""  # what ends the search and is no fault of the trial, in one line, or nothing
    error = ""

    def handle_error(self, exc: Any = None) -> None:
        """Remembers the error that ended the segment. Ray calls it."""
        cause = getattr(exc, "cause", None) or exc
        self.error = str(exc).strip()
        if isinstance(cause, DataChanged):
            self.outer_cause = str(cause)
        elif is_disk_full(cause):
            self.outer_cause = f"the disk is full: trial {self.trial.trial_id} could not store its state in {self.path}"
        of_processes = isinstance(cause, RayError | OSError) and not isinstance(cause, RayTaskError)
        self.retryable = (of_processes or type(cause).__name__ in RETRYABLE_NAMES) and IMPORT_FAILED not in self.error
        with contextlib.suppress(OSError):  # Ray writes files of its own, which a full disk refuses
            super().handle_error(exc)

    def should_recover(self) -> bool:
        """False: a retry is a new segment."""
        return False

    @property
    def reason(self) -> str:
        """The line of the error that names its cause, at most 200 characters."""
        lines = self.error.splitlines() or ["no reason given"]
        return next((line for line in reversed(lines) if EXCEPTION_LINE.match(line)), lines[-1])[:200]


def why_hopeless(trials: Trials) -> str | None:
    """Why further trials would fail as well, or None: no report of a program can be read, or the first trials of a search
    all failed without a report.
    """
    begun = list(trials.by_id.values())
    if not any(trial.reports for trial in begun):
        for trial in begun:
            if NoReportError.__name__ in trial.reason:
                return f"trial {trial.trial_id} failed with: {trial.reason}"
    while begun and begun[-1].status != FAILED:
        begun.pop()
    if len(begun) < MAX_INITIAL_FAILURES or not all(trial.status == FAILED and not trial.reports for trial in begun):
        return None
    return f"each of the first {len(begun)} trials failed, {begun[0].trial_id} with: {begun[0].reason}"
