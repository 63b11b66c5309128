"""The command line of search.py, and the experiment files that stand for it."""

import argparse
import dataclasses
import os
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from myllm.config import field_help, value_type
from myllm.system.errors import InputError, Parser
from myllm.text.durations import parse_duration
from myllm.text.format import parse_amount
from tune.config import overrides
from tune.config.options import AUTO, OLD_NAMES, PICKED, SearchOptions, check_one_name, current_names
from tune.config.program_options import ProgramOptions

RESUME_FLAGS = (
    *("num_samples", "time_budget", "replicate_best", "audit_fraction", "max_failures", "keep_checkpoints"),
    *("cpus_per_trial", "gpus_per_trial", "processes_per_trial", "max_concurrent", "address", "dashboard"),
    *("stall_timeout", "wandb", "mlflow"),
)
"""flags that may change on --resume: earlier trials and later ones stay comparable"""
DATA_FLAGS = ("train_file", "val_file")  # flags that may name another place on --resume: the content there must be the same
TIMES = ("time_budget", "budget_seconds", "target_seconds")
TEXTS = dict.fromkeys(TIMES, "TIME") | {"target_tokens": "TOKENS"} | dict.fromkeys(PICKED, "NUMBER")
"""options of numbers that may be written in another way -> the word for it in --help"""
KINDS = {field.name: value_type(field) for field in dataclasses.fields(SearchOptions)}  # the type of each option


def search_parser() -> Parser:
    """The parser of search.py's command line: a flag for each of the SearchOptions, and those of the command itself."""
    parser = Parser(
        prog="search.py", description="Searches hyper-parameters of GPT pre-training.", argument_default=argparse.SUPPRESS
    )
    helps = field_help(ProgramOptions) | field_help(SearchOptions)
    for field in dataclasses.fields(SearchOptions):
        kind = value_type(field)
        shown = " ".join(field.default) if isinstance(field.default, tuple) else field.default
        default = "" if shown in (None, "") or shown is False else f" (default: {shown})"
        how: dict[str, Any] = {"type": kind}
        if kind is bool:
            how = {"action": "store_true"}
        elif field.name in overrides.FLAGS:
            how = {"nargs": "+", "action": "extend", "metavar": "NAME=..."}
        elif field.name == "baseline":
            how = {"nargs": "+", "metavar": "NAME=VALUE"}
        elif kind is tuple:
            how = {"nargs": "+", "metavar": "SIZE" if field.name == "target" else "PATH"}
        elif field.name in TEXTS:
            how = {"metavar": TEXTS[field.name]}
        parser.add_argument(f"--{field.name}", help=(helps[field.name] + default).replace("%", "%%"), **how)
    parser.add_argument("--experiment", metavar="FILE.toml", help="file with any of these settings; flags beside it win")
    parser.add_argument("--resume", metavar="DIR", help=f"go on with a run; beside it only {', '.join(RESUME_FLAGS)}")
    parser.add_argument(
        "--list_spaces", action="store_true", help="show what each space searches for preset and budget, and end"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="check all, time a few steps, tell what it will take, and end"
    )
    parser.add_argument("--status", metavar="DIR", help="show how far a search has come, also while it runs, and end")
    parser.add_argument("--serve", action="store_true", help="show the page on this machine, live while the search runs")
    parser.add_argument("--json", action="store_true", help="print the summary, or an error, as JSON and nothing else")
    parser.add_argument("--slurm", metavar="FILE", help="write a batch file for Slurm that runs this search, and end")
    parser.add_argument("--allow_other_owner", action="store_true", help="resume a run folder that belongs to another user")
    for old, name in OLD_NAMES.items():
        parser.add_alias(f"--{old}", f"--{name}")
    return parser


def parse_args() -> dict[str, Any]:
    """The flags that were given, by today's names. Raises InputError."""
    check_one_name((word.partition("=")[0] for word in sys.argv[1:]), dashes="--")
    given = current_names(vars(search_parser().parse_args(joined(sys.argv[1:]))))
    return given | {name: read_text(name, given[name]) for name in TEXTS if name in given}


def joined(words: list[str]) -> list[str]:
    """The words of the command line, the value of --resume_args joined to the flag: it looks like a flag itself."""
    if (flag := "--resume_args") in words[:-1]:
        at = words.index(flag)
        return [*words[:at], f"{flag}={words[at + 1]}", *words[at + 2 :]]
    return words


def read_text(name: str, text: str) -> Any:
    """The value of an option in TEXTS. Raises InputError."""
    if name in TIMES:
        return parse_duration(text)
    if name == "target_tokens":
        return parse_amount(text)
    try:
        return text if text == AUTO else KINDS[name](text)
    except ValueError:
        raise InputError(f"--{name} {text!r} is neither a number nor {AUTO}") from None


def read_experiment(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of an experiment file, `$NAME` in its paths replaced from the environment. Raises InputError for a
    missing or malformed file, an unknown key, and a variable that is not set where no flag in `given` stands in for it.
    """
    where = f"--experiment {path}"
    try:
        text = Path(path).read_text("utf-8-sig")
        if "\0" in text:
            raise InputError(f"{where}: not UTF-8 (it holds null bytes); save it as UTF-8")
        written = tomllib.loads(text)
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error}); save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, OSError) as error:
        hint = '; beside a table [space] the space is named in it, base = "v2"' if "overwrite" in str(error) else ""
        raise InputError(f"{where}: not TOML ({error}){hint}") from None
    check_one_name(written, f"{where}: ")
    values = current_names(written)
    if isinstance(values.get("space"), dict):
        if beside := [flag for flag in overrides.FLAGS if flag in values]:
            raise InputError(f"{where}: {beside[0]} beside the table [space]; write its settings into the table")
        values |= current_names(overrides.from_table(values.pop("space"), where))
    checked = typed_values(values, where)
    return {key: value if key in given else expanded(key, value, where) for key, value in checked.items()}


def option_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a caller in Python gave, as flags would give them. Raises InputError."""
    beside = {name: str(given[name]) for name in ("resume", "experiment") if given.get(name) is not None}
    plain: dict[str, Any] = {}
    for name, value in given.items():
        if name not in beside and value is not None:
            several = isinstance(value, list | tuple)
            plain[name] = list(map(str, value)) if several else str(value) if isinstance(value, Path) else value
    check_one_name(plain)
    return typed_values(current_names(plain), "run_search") | beside


def typed_values(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The options with lists for single values and seconds for times. Raises InputError, which begins with `where`."""
    typed: dict[str, Any] = {}
    for key, value in values.items():
        if key not in KINDS:
            raise InputError(f"{where}: unknown key {key!r}; known are {', '.join(KINDS)}")
        if KINDS[key] is tuple and isinstance(value, str):
            value = [value]
        elif key in (*TIMES, "target_tokens") and isinstance(value, str):
            value = read_text(key, value)
        number = isinstance(value, int) and not isinstance(value, bool)
        fits = isinstance(value, list) if KINDS[key] is tuple else type(value) is KINDS[key]
        if not fits and not (number and KINDS[key] is float) and not (key in PICKED and value == AUTO):
            raise InputError(f"{where}: {key} is {value!r}; it must be a {KINDS[key].__name__}")
        typed[key] = value
    return typed


def expanded(key: str, value: Any, where: str) -> Any:
    """The value, `$NAME` in its texts replaced from the environment. Raises InputError for a variable that is not set."""
    if isinstance(value, list):
        return [expanded(key, str(one), where) for one in value]
    if not isinstance(value, str):
        return value
    if "$" in (text := os.path.expandvars(value)):
        raise InputError(f"{where}: {key} is {value!r}, and that variable is not set; set it or give --{key}")
    return text
