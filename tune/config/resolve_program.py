"""Resolves the options of a search that trains with a program of the user's own into its specification."""

import hashlib
import math
import os
import shlex
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from myllm.models.custom_model import digest, read_files
from myllm.system.errors import InputError, naming
from myllm.system.machine import origin
from tune.config.function import load_function
from tune.config.options import SearchOptions
from tune.config.overrides import Override, SearchedSpace, parse_overrides
from tune.config.program_options import RESERVED
from tune.config.program_search import STOPPING, Program, ProgramSearch, step_sizes
from tune.config.resolve import NUM_REPORTS, PACKAGES, TAKEN, check_rungs
from tune.config.spec import RUN_ID_DIGITS
from tune.config.template import names_in
from tune.core.search_space import Choice

BUILTIN_ONLY = (
    *("preset", "model", "train_file", "val_file", "token_dtype", "text_column", "tokenizer", "budget_tokens"),
    *("rung_metric", "space"),
)
"""options of the built-in training alone"""
FEWEST_REPORTS = 16  # of a full training, where another number than NUM_REPORTS divides the budget
DEFAULT_STOPPING = "asha-stop"


def program_options(values: dict[str, Any]) -> dict[str, Any]:
    """The values of options given for a program of the user's own, with the defaults that only such a program has.

    Raises InputError for an option of the built-in training.
    """
    kind = "command" if values.get("command") is not None else "trainable"
    for name in BUILTIN_ONLY:
        if name in values and (name, values[name]) != ("space", "custom"):
            raise InputError(f"--{name} belongs to the built-in training; leave it out beside --{kind}")
    values = values | {"space": "custom"}
    can_resume = not values.get("no_resume", False) and (kind == "trainable" or values.get("resume_args") is not None)
    if not can_resume:
        asked = values.setdefault("scheduler", DEFAULT_STOPPING)
        if asked not in STOPPING:
            why = "without --resume_args the command" if kind == "command" else "with --no_resume the function"
            raise InputError(
                f"--scheduler {asked} pauses trials, and {why} can't go on from a checkpoint; use {' or '.join(STOPPING)}"
            )
        values["no_resume"] = True
    return values


def resolve_program(options: SearchOptions) -> ProgramSearch:
    """The specification of the search of a command or function that `options` ask for. Raises InputError, one line."""
    overrides = parse_overrides(vars(options), None)
    space = _space(options, overrides)
    _check_names(options, space)
    sizes = step_sizes(options.tokens_per_step, space)
    budget, report_tokens = _marks(options, sizes)
    files, sha256 = _function_files(options.trainable) if options.trainable else ({}, _command_files(options.command or ""))
    program = Program(os.getcwd(), budget, files, sha256)
    started = {"run_id": uuid.uuid4().hex[:RUN_ID_DIGITS]} | origin(PACKAGES)
    search = ProgramSearch(options=options, program=program, report_tokens=report_tokens, origin=started, **vars(space))
    if options.command:
        with naming("--command"):
            search.command_line(search.baseline, "folder")
    check_rungs(search)
    return search


def _space(options: SearchOptions, overrides: dict[str, Override]) -> SearchedSpace:
    """The ranges, the fixed values, and the baseline: the values of --baseline, else the middle of each range."""
    ranges = {name: one.values for name, one in overrides.items() if one.values is not None}
    fixed = {name: one.fixed for name, one in overrides.items() if one.values is None}
    if not ranges:
        raise InputError(
            "nothing is searched: name hyper-parameters with --range NAME=MIN:MAX or --choices NAME=VALUE,VALUE"
        )
    if taken := sorted(ranges.keys() & TAKEN):
        raise InputError(f"{taken[0]!r} can't be searched: a search's tables have a column of that name; rename it")
    baseline = {name: values.from_unit(0.5) for name, values in ranges.items()}
    given = parse_overrides({"set": options.baseline}, None)
    for name, one in given.items():
        flag = one.flag.replace("--set", "--baseline")
        if name not in ranges:
            raise InputError(f"{flag}: {name} is not searched; searched are {', '.join(ranges)}")
        if isinstance(values := ranges[name], Choice) and one.fixed not in values.values:
            raise InputError(f"{flag}: it must be one of {values}")
    clipped = {name: ranges[name].clip(one.fixed) for name, one in given.items()}
    moved = {name: given[name].fixed for name, value in clipped.items() if value != given[name].fixed}
    return SearchedSpace(ranges=ranges, baseline=baseline | clipped, fixed=fixed, clipped_baseline=moved)


def _check_names(options: SearchOptions, space: SearchedSpace) -> None:
    """Raises InputError where the command lacks what it needs, or a hyper-parameter has no place in it."""
    if options.command is None:
        return
    with naming("--command"):
        used = names_in(options.command) | names_in(options.resume_args or "")
    for name in space.ranges:
        if name not in used:
            raise InputError(f"--command has no {{{name}}}, which is searched; write it where the program takes its value")
    if unknown := sorted(used - space.ranges.keys() - space.fixed.keys() - set(RESERVED)):
        known = ", ".join([*space.ranges, *space.fixed, *RESERVED])
        raise InputError(
            f"--command: {{{unknown[0]}}} has no value; known are {known}; --range, --choices or --set gives it"
        )
    if options.resume_args is not None and "folder" not in used:
        raise InputError("--command has no {folder}, where the program must save to go on; write it, or say --no_resume")
    if "budget" not in used:
        raise InputError("--command has no {budget}: the program must be told how long it trains")
    if options.report_every is None and "report_every" not in used:
        raise InputError("give --report_every, the iterations between two reports, or write {report_every} into --command")


def _marks(options: SearchOptions, sizes: tuple[int, ...]) -> tuple[int, int]:
    """(length of a full training, distance of its reports), in the budget's unit. Raises InputError."""
    wanted, every = options.budget or 0, options.report_every
    if every is None:
        step = math.lcm(*sizes)
        counts = range(min(NUM_REPORTS, wanted // step), 1, -1)
        if not counts:
            raise InputError(f"--budget {wanted} holds less than two reports; it must be at least {2 * step}")
        few = next((count for count in counts if count >= FEWEST_REPORTS and wanted % (count * step) == 0), counts[0])
        return few * (wanted // (few * step) * step), wanted // (few * step) * step
    if len(sizes) > 1:
        raise InputError(
            "--report_every: trials have steps of different sizes, and must report at the same tokens; "
            "leave it out, and write {report_every} into --command"
        )
    distance = every * sizes[0]
    if wanted < 2 * distance:
        raise InputError(f"--budget {wanted} holds less than two reports, one every {distance} {options.budget_unit}")
    if wanted % distance:
        raise InputError(
            f"--budget {wanted} is no multiple of the {distance} {options.budget_unit} between reports: there would be no "
            f"report of the end; use {wanted // distance * distance}"
        )
    return wanted, distance


def _command_files(command: str) -> str:
    """SHA-256 of the files that a command names. Raises InputError where the program is not there."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"--command {command!r}: {error}") from None
    if not words:
        raise InputError("--command is empty")
    if shutil.which(words[0]) is None:
        raise InputError(f"--command: there is no program {words[0]!r} here; give its path, or mend PATH")
    scripts = [word for word in words[1:] if word.endswith((".py", ".sh")) and "{" not in word]
    if scripts and not Path(scripts[0]).is_file():
        raise InputError(f"--command: {scripts[0]} is no file in {os.getcwd()}")
    found = hashlib.sha256()
    for word in words:
        path = Path(word)
        if path.suffix in (".py", ".sh", ".json", ".yaml", ".toml") and path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def _function_files(source: str) -> tuple[dict[str, str], str]:
    """(files, SHA-256) of a function's FILE.py:function. Raises InputError where it names no generator function."""
    with naming("--trainable"):
        files = read_files(Path(source.rpartition(":")[0]))
    load_function(source, files, digest(files))
    return files, digest(files)


def notes(search: ProgramSearch) -> Iterator[str]:
    """Yields what the user should know of a new search of a program."""
    options = search.options
    if options.budget not in (None, search.budget_tokens):
        yield f"the budget is {search.budget_tokens:,} {search.unit}, a whole number of report points"
    if options.command is None:
        return
    used = names_in(options.command)
    if options.no_resume:
        yield f"without --resume_args trials can't pause; the scheduler is {options.scheduler}, which only stops them"
    if "folder" not in used:
        yield "--command has no {folder}: what the trials write goes to one place"
    if not search.has_seeds:
        again = "; the best train again in one piece, which tells how far a loss scatters" if search.max_seeds > 1 else ""
        yield f"--command has no {{seed}}: no configuration is trained on a second seed{again}"
    if options.tokens_per_step is None and (batch := [name for name in search.ranges if "batch" in name]):
        yield f"the budget is in {search.unit}: a larger {batch[0]} sees more data; --tokens_per_step gives all the same"


def is_changed(search: ProgramSearch) -> bool:
    """True if the files of the program have changed since the search began, or are gone."""
    try:
        if search.options.trainable:
            return digest(read_files(Path(search.options.trainable.rpartition(":")[0]))) != search.program.sha256
        folder = os.getcwd()
        os.chdir(search.program.folder)
        try:
            return _command_files(search.options.command or "") != search.program.sha256
        finally:
            os.chdir(folder)
    except (InputError, OSError):
        return True
