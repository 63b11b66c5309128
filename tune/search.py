"""Command line of the search.

python tune/search.py --space v2
python tune/search.py --resume experiments/runs/NAME
"""

import argparse
import ast
import dataclasses
import inspect
import os
import sys
import time
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from myllm.data import EMBEDDED
from myllm.errors import InputError, Parser, run_command
from tune.report import summary, write_report
from tune.runner import cluster_resources, run_search
from tune.settings import (
    RUNS_DIR,
    SearchConfig,
    available_cpus,
    check_data,
    prepare_search,
    read_search,
    settle_resources,
)

FLAG_TYPES: dict[str, Any] = {
    **dict.fromkeys(("num_samples", "budget_tokens", "seed", "reduction_factor", "cpus_per_trial", "max_concurrent"), int),
    **dict.fromkeys(("grace_period", "gpus_per_trial"), float),
}
RESUME_FLAGS = ("num_samples", "cpus_per_trial", "gpus_per_trial", "max_concurrent", "address")


def field_help(config_class: type) -> dict[str, str]:
    """The text under each field of a dataclass, as its help."""
    body = ast.parse(inspect.getsource(config_class)).body[0].body
    return {
        field.target.id: text.value.value
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def parse_args() -> argparse.Namespace:
    parser = Parser(
        prog="search.py", description="Searches hyper-parameters of GPT pre-training.", argument_default=argparse.SUPPRESS
    )
    helps = field_help(SearchConfig)
    for field in dataclasses.fields(SearchConfig):
        default = "" if field.default is None else f" (default: {field.default})"
        parser.add_argument(f"--{field.name}", type=FLAG_TYPES.get(field.name, str), help=helps[field.name] + default)
    parser.add_argument("--experiment", metavar="FILE.toml", help="file with any of these settings; flags beside it win")
    parser.add_argument("--resume", metavar="DIR", help=f"go on with a run; beside it only {', '.join(RESUME_FLAGS)}")
    parser.formatter_class = argparse.HelpFormatter
    return parser.parse_args()


def read_experiment(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of an experiment file, `$NAME` in its paths replaced from the environment.

    Raises InputError for a missing or malformed file, an unknown key, and a variable that is not set where no flag in
    `given` stands in for it.
    """
    try:
        values = tomllib.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"--experiment {path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"--experiment {path}: not TOML ({error})") from None
    known = [field.name for field in dataclasses.fields(SearchConfig)]
    for key, value in values.items():
        if key not in known:
            raise InputError(f"--experiment {path}: unknown key {key!r}; known are {', '.join(known)}")
        expected = FLAG_TYPES.get(key, str)
        if not isinstance(value, (int, float) if expected is float else expected) or isinstance(value, bool):
            raise InputError(f"--experiment {path}: {key} is {value!r}; it must be a {expected.__name__}")
        if isinstance(value, str) and key not in given:
            values[key] = os.path.expandvars(value)
            if "$" in values[key]:
                raise InputError(
                    f"--experiment {path}: {key} is {value!r}, and that variable is not set; set it or give --{key}"
                )
    return values


def start(given: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """A new run folder and its checked settings."""
    experiment = given.pop("experiment", None)
    values = (read_experiment(experiment, given) if experiment else {}) | given
    config = SearchConfig(**values)
    name = config.name or f"{config.preset}-{config.space}-{time.strftime('%Y%m%d-%H%M%S')}"
    run_dir = RUNS_DIR / name
    if run_dir.exists():
        raise InputError(f"--name {name}: {run_dir} exists; go on with --resume {run_dir}, or choose another name")
    search = prepare_search(dataclasses.replace(config, name=name), RUNS_DIR / ".cache")
    return run_dir, search


def resume(given: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """The run folder to go on with, and its settings with what may change."""
    run_dir = Path(given.pop("resume")).resolve()
    search = read_search(run_dir)
    for flag in given:
        if flag not in RESUME_FLAGS:
            raise InputError(f"--{flag} can't change on --resume: earlier trials could not be compared with later ones")
    before = search["config"]["num_samples"]
    if given.get("num_samples", before) < before:
        raise InputError(f"--num_samples is {given['num_samples']}, the total; the run already asked for {before}")
    search["config"] |= given
    SearchConfig(**search["config"])
    check_data(search, RUNS_DIR / ".cache")
    return run_dir, search


def main() -> int:
    given = vars(parse_args())
    resumed = "resume" in given
    run_dir, search = (resume if resumed else start)(given)
    config = SearchConfig(**search["config"])
    if config.address is None:
        available = available_cpus(), torch.cuda.device_count()
    else:
        available = cluster_resources(config.address)
    resources = settle_resources(config, *available)
    run_dir.mkdir(parents=True, exist_ok=resumed)
    shown = os.path.relpath(run_dir)
    data = "the embedded corpus" if config.train_file == EMBEDDED else config.train_file
    train = search["train"]
    print(
        f"{config.num_samples} trials of space {config.space}, preset {config.preset}, on {data}: "
        f"{train['budget_tokens']:,} tokens a full training, {resources.slots} at once, in {shown}",
        flush=True,
    )
    try:
        finished = run_search(run_dir, search, resources)
    except KeyboardInterrupt:  # outside Ray's own loop, which ends itself on Ctrl-C
        finished = False
    write_report(run_dir)
    print(summary(run_dir))
    if not finished:
        print(f"interrupted; go on with: python tune/search.py --resume {shown}")
        return 130
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    run_command(main)
