"""The specification of a search that trains with a program of the user's own: a command or a Python function."""

import itertools
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.system.errors import InputError, naming
from tune.config.overrides import SearchedSpace
from tune.config.search_base import SearchSpec
from tune.config.template import compute, fill, names_in
from tune.core.search_space import Choice

STOPPING = ("asha-stop", "fifo")  # schedulers under which no trial pauses


@dataclass(frozen=True)
class Program:
    """A training program of the user's own, as it was when the search began."""

    folder: str
    """the folder from which the search was started: the program runs there"""
    budget: int
    """length of one full training, in `unit`; a multiple of the search's report points"""
    files: dict[str, str]
    """of a function: relative path -> text of its file and of those beside it that it imports; of a command: no files"""
    sha256: str
    """of the files of a function, or of those files that the command names"""


@dataclass(frozen=True, kw_only=True)
class ProgramSearch(SearchSpec):
    """A search of a command or a function. Its budget is in iterations, or in tokens with --tokens_per_step."""

    program: Program

    @property
    def budget_tokens(self) -> int:
        """Length of one full training, in `unit`."""
        return self.program.budget

    @property
    def unit(self) -> str:
        """The word for what the budget counts."""
        return self.options.budget_unit

    @property
    def loss_unit(self) -> str:
        """Empty: only the program knows the unit of its loss."""
        return ""

    @property
    def name(self) -> str:
        """The command, or the function's FILE.py:function."""
        return self.options.command or self.options.trainable or ""

    @property
    def has_seeds(self) -> bool:
        """False for a command that takes no seed: it would repeat the training."""
        return self.options.command is None or "seed" in names_in(self.options.command)

    @property
    def max_seeds(self) -> float:
        """Trainings of one configuration that may differ. Without a seed one that paused differs from one in one piece."""
        if self.has_seeds:
            return math.inf
        return 1 if self.options.no_resume or self.options.scheduler in STOPPING else 2

    def step_tokens(self, hyper_parameters: dict[str, Any]) -> int:
        """Units of the budget that one iteration of a trial takes. Raises InputError where that is no positive number."""
        return tokens_per_step(self.options.tokens_per_step, self.fixed | hyper_parameters)

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """The values of `step_tokens` that trials may have."""
        return step_sizes(self.options.tokens_per_step, self)

    def values(self, hyper_parameters: dict[str, Any]) -> dict[str, Any]:
        """The value of each {NAME} in the command of a trial, but for `folder`, `gpus` and `step`."""
        step = self.step_tokens(hyper_parameters)
        own = {"budget": self.budget_tokens // step, "report_every": self.report_tokens // step, "seed": self.options.seed}
        return own | self.fixed | hyper_parameters

    def command_line(self, hyper_parameters: dict[str, Any], folder: str, gpus: float = 0) -> list[str]:
        """The words of a trial's command. Values are never split into words, and no shell reads them."""
        values = self.values(hyper_parameters) | {"folder": folder, "gpus": int(max(1, gpus)) if gpus else 0}
        return [fill(word, values) for word in shlex.split(self.options.command or "")]

    def all_settings(self, hyper_parameters: dict[str, Any]) -> dict[str, Any]:
        """The fixed values, and a trial's hyper-parameters."""
        return self.fixed | hyper_parameters

    def described(self) -> dict[str, dict[str, Any]]:
        """The program, for the page."""
        kind = "command" if self.options.command else "function"
        shown = {kind: self.name, "folder": self.program.folder, "sha256": self.program.sha256}
        return {"program": shown | {"budget": self.budget_tokens, "unit": self.unit, "report points": self.report_tokens}}

    def compared_by(self) -> dict[str, Any]:
        """The program, and what its budget counts."""
        return {"program": self.name, "unit": self.unit, "budget": self.budget_tokens}

    def best_config(self, hyper_parameters: dict[str, Any]) -> dict[str, Any]:
        """The program with the values of a trial; `command` is what a shell runs in `working_folder`."""
        known = {"settings": self.values(hyper_parameters), "unit": self.unit, "working_folder": self.program.folder}
        if self.options.command:
            folder = str(Path(self.program.folder) / f"{self.options.name}-best")
            return {"command": shlex.join(self.command_line(hyper_parameters, folder))} | known
        return {"trainable": self.name, "files": self.program.files, "sha256": self.program.sha256} | known


def tokens_per_step(text: str | None, values: dict[str, Any]) -> int:
    """Units of the budget that one iteration takes. Raises InputError where `text` gives no positive whole number."""
    if text is None:
        return 1
    with naming(f"--tokens_per_step {text!r}"):
        found = compute(_expression(text), values)
        if not isinstance(found, int | float) or found != int(found) or found < 1:
            raise InputError(f"it is {found}; it must be a positive whole number")
    return int(found)


def step_sizes(text: str | None, space: SearchedSpace) -> tuple[int, ...]:
    """The values of --tokens_per_step over the lists of a space. Raises InputError where it depends on a range."""
    if text is None:
        return (1,)
    with naming(f"--tokens_per_step {text!r}"):
        lists = {name: space.ranges[name] for name in sorted(names_in(f"{{{_expression(text)}}}") & space.ranges.keys())}
    for name, values in lists.items():
        if not isinstance(values, Choice):
            raise InputError(f"--tokens_per_step {text!r}: {name} is a range; list its values with --choices {name}=...")
    combined = itertools.product(*(values.values for values in lists.values() if isinstance(values, Choice)))
    each = [dict(zip(lists, values, strict=True)) for values in combined]
    return tuple(dict.fromkeys(tokens_per_step(text, space.fixed | one) for one in each))


def _expression(text: str) -> str:
    """--tokens_per_step as an expression: names may stand in braces there, or without."""
    return text.replace("{", "(").replace("}", ")")
