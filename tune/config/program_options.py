"""The options of a search that trains with a program of the user's own: a command or a Python function."""

import contextlib
import re
from dataclasses import dataclass

from myllm.config import parse_value
from myllm.system.errors import InputError

RESERVED = ("budget", "report_every", "folder", "seed", "gpus", "step", "budget_tokens")
"""names in a command that the search gives values to"""


@dataclass(frozen=True)
class ProgramOptions:
    """The program, what its budget counts, and how it reports, saves and goes on. Raises InputError as SearchOptions."""

    command: str | None = None
    """your own training program: its command line, {NAME} for each hyper-parameter, {budget}, {folder}, {seed}"""
    trainable: str | None = None
    """your own training as a Python generator function, FILE.py:function"""
    budget: int | None = None
    """length of one full training of your own program, in --unit"""
    unit: str | None = None
    """what --budget counts, in one word (unset: iterations; with --tokens_per_step: tokens)"""
    tokens_per_step: str | None = None
    """tokens of one iteration, '{batch_size} * 256': the budget is then in tokens, and {budget} the iterations they take"""
    report_every: int | None = None
    """iterations between two reports of your program (unset: 1/32 of the budget, which {report_every} hands on)"""
    report: str | None = None
    """regular expression with (?P<loss>...), and (?P<step>...) where its output names steps (unset: JSON lines)"""
    report_file: str | None = None
    """file below {folder} whose lines are its reports (unset: its standard output)"""
    checkpoint: tuple[str, ...] = ()
    """files or folders below {folder} that make a checkpoint; of * the newest match (unset: all of the folder)"""
    resume_args: str | None = None
    """words added to the command where {folder} holds a checkpoint, '' where it finds the checkpoint by itself"""
    no_resume: bool = False
    """the program can't go on from a checkpoint: trials never pause, and --scheduler is one that only stops"""
    baseline: tuple[str, ...] = ()
    """values of trial 0 of your own program, NAME=VALUE (unset: the middle of each range)"""

    @property
    def is_own_program(self) -> bool:
        """True if trials run a program of the user's own, not the built-in training."""
        return self.command is not None or self.trainable is not None

    @property
    def budget_unit(self) -> str:
        """The word for what the budget counts."""
        return "tokens" if self.tokens_per_step else self.unit or "iterations"

    def check_program(self) -> None:
        """Raises InputError for options of programs that contradict each other."""
        if not self.is_own_program:
            for name in ("budget", "unit", "tokens_per_step", "report_every", "no_resume", "baseline"):
                if getattr(self, name):
                    right = "; the built-in training has --budget_tokens" if name == "budget" else ""
                    raise InputError(f"--{name} belongs to --command or --trainable{right}")
        for name in ("report", "report_file", "checkpoint", "resume_args"):
            if self.command is None and getattr(self, name) not in (None, ()):
                raise InputError(f"--{name} belongs to --command")
        if self.command is not None and self.trainable is not None:
            raise InputError("--command and --trainable are two programs; give one")
        if self.is_own_program and self.budget is None:
            raise InputError(
                "--budget is missing: the length of one full training, in --unit (iterations if that is unset)"
            )
        if self.unit is not None and not re.fullmatch(r"[a-z]+", self.unit):
            raise InputError(f"--unit {self.unit!r} is no word; write one like iterations, in small letters")
        if self.unit not in (None, "tokens") and self.tokens_per_step:
            raise InputError(
                f"--unit {self.unit}: with --tokens_per_step the budget counts tokens; leave out one of the two"
            )
        if self.no_resume and self.resume_args is not None:
            raise InputError("--no_resume and --resume_args contradict each other; leave one out")
        if self.report is not None:
            self._check_pattern(self.report)

    @staticmethod
    def _check_pattern(pattern: str) -> None:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise InputError(f"--report {pattern!r} is no regular expression: {error}") from None
        if not {"loss", "val_loss"} & set(groups):
            raise InputError(f"--report {pattern!r} must have the group (?P<loss>...)")


def shown_type(text: str) -> type:
    """The type of the values that a text shows, VALUE or VALUE,VALUE or MIN:MAX: bool, int, float, or else str."""
    parts = [part.strip() for part in re.split("[,:]", text) if part.strip() not in ("log", "linear")]
    for kind in (bool, int, float):
        with contextlib.suppress(ValueError):
            if all(isinstance(parse_value(kind, part), kind) for part in parts) and (kind is not int or "." not in text):
                return kind
    return str
