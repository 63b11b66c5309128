"""Command line of the search.

python tune/search.py --space v2
python tune/search.py --resume experiments/runs/NAME
"""

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

import myllm.system.imports

myllm.system.imports.check_imports()

from tune.ray_backend.start import Engine

ENGINE = Engine() if __name__ == "__main__" else None  # before all else: nothing of a search's start takes as long

import argparse
import contextlib
import dataclasses
import importlib.util
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from myllm.config import field_help, value_type
from myllm.datasets.data_paths import is_builtin
from myllm.models.custom_model import absolute, is_changed
from myllm.system.errors import InputError, Parser, RunError, run_command
from myllm.system.files import cache_dir
from myllm.system.machine import available_cpus, gpu_names
from tune.config import overrides
from tune.config.old_names import OPTIONS, current_names
from tune.config.options import AUTO, PICKED, SearchOptions
from tune.config.spec import RUNS_DIR, SearchSpec
from tune.core.trials import UNLIMITED_TRIALS
from tune.ray_backend.cluster import join_cluster
from tune.ray_backend.preflight import check_places, runs_dir
from tune.ray_backend.watchdog import check_address_space
from tune.text.commands import command, shown_path
from tune.text.durations import duration, parse_duration

# What takes long to import comes where it is used: --help and most errors need none of it.

RESUME_FLAGS = (
    *("num_samples", "time_budget", "replicate_best", "audit_fraction", "max_failures", "keep_checkpoints"),
    *("cpus_per_trial", "gpus_per_trial", "max_concurrent", "address", "dashboard", "stall_timeout", "wandb", "mlflow"),
)
"""what may change on --resume: nothing that would make earlier trials and later ones incomparable"""
DATA_FLAGS = ("train_file", "val_file")
"""where the data is now, which may be elsewhere on --resume: its content decides"""
SHORTEST_SEARCH = 10  # seconds of --time_budget
WORTH_A_FORECAST = 300.0  # seconds of --time_budget; it takes ten to time a few steps, and these are not the search's


def seconds(text: str) -> float:
    """parse_duration, as argparse wants it."""
    try:
        return parse_duration(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def or_auto(kind: type) -> Callable[[str], Any]:
    """A number of that kind or `auto`, as argparse wants it."""

    def read(text: str) -> Any:
        try:
            return text if text == AUTO else kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {AUTO}") from None

    return read


def parse_args() -> argparse.Namespace:
    parser = Parser(
        prog="search.py", description="Searches hyper-parameters of GPT pre-training.", argument_default=argparse.SUPPRESS
    )
    helps = field_help(SearchOptions)
    for field in dataclasses.fields(SearchOptions):
        kind = value_type(field)
        default = "" if field.default in (None, ()) else f" (default: {field.default})"
        how: dict[str, Any] = {"type": kind}
        if kind is bool:
            how = {"action": "store_true"}
        elif field.name in overrides.FLAGS:
            how = {"nargs": "+", "action": "extend", "metavar": "NAME=..."}
        elif kind is tuple:
            how = {"nargs": "+", "metavar": "PATH"}
        if field.name in PICKED:
            how = {"type": or_auto(kind), "metavar": "NUMBER"}
        if field.name == "time_budget":
            how = {"type": seconds, "metavar": "TIME"}
        parser.add_argument(f"--{field.name}", help=(helps[field.name] + default).replace("%", "%%"), **how)
    parser.add_argument("--experiment", metavar="FILE.toml", help="file with any of these settings; flags beside it win")
    parser.add_argument("--resume", metavar="DIR", help=f"go on with a run; beside it only {', '.join(RESUME_FLAGS)}")
    parser.add_argument("--list_spaces", action="store_true", help="show what each space searches for --preset, and end")
    parser.add_argument(
        "--dry_run", action="store_true", help="check all, time a few steps, tell what it will take, and end"
    )
    parser.add_argument("--allow_other_owner", action="store_true", help="resume a run folder that belongs to another user")
    for old, name in OPTIONS.items():
        parser.add_alias(f"--{old}", f"--{name}")
    return parser.parse_args()


def read_experiment(path: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings of an experiment file, `$NAME` in its paths replaced from the environment.

    Raises InputError for a missing or malformed file, an unknown key, and a variable that is not set where no flag in
    `given` stands in for it.
    """
    try:
        values = current_names(tomllib.loads(Path(path).read_text()))
    except FileNotFoundError:
        raise InputError(f"--experiment {path}: no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        hint = '; beside a table [space] the space is named in it, base = "v2"' if "overwrite" in str(error) else ""
        raise InputError(f"--experiment {path}: not TOML ({error}){hint}") from None
    kinds = {field.name: value_type(field) for field in dataclasses.fields(SearchOptions)}
    if isinstance(values.get("space"), dict):
        values |= current_names(overrides.from_table(values.pop("space"), f"--experiment {path}"))
    for key, value in values.items():
        if key not in kinds:
            raise InputError(f"--experiment {path}: unknown key {key!r}; known are {', '.join(kinds)}")
        if kinds[key] is tuple and isinstance(value, str):
            value = values[key] = [value]
        if key == "time_budget" and isinstance(value, str):
            value = values[key] = parse_duration(value)
        if key in PICKED and value == AUTO:
            continue
        expected = {float: (int, float), tuple: list}.get(kinds[key], kinds[key])
        if not isinstance(value, expected) or (isinstance(value, bool) and kinds[key] is not bool):
            raise InputError(f"--experiment {path}: {key} is {value!r}; it must be a {kinds[key].__name__}")
        if isinstance(value, str | list) and key not in given:
            expanded = [os.path.expandvars(str(text)) for text in ([value] if isinstance(value, str) else value)]
            values[key] = expanded[0] if isinstance(value, str) else expanded
            if any("$" in text for text in expanded):
                raise InputError(
                    f"--experiment {path}: {key} is {value!r}, and that variable is not set; set it or give --{key}"
                )
    return values


def start(given: dict[str, Any]) -> tuple[Path, SearchSpec]:
    """A new run folder and its checked settings."""
    experiment = given.pop("experiment", None)
    values = overrides.merge(read_experiment(experiment, given) if experiment else {}, given)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    values["warm_start"] = tuple(os.path.abspath(path) for path in values.get("warm_start", ()))
    values |= {"model": absolute(values["model"])} if values.get("model") else {}
    values |= {"storage_path": os.path.expanduser(values["storage_path"])} if values.get("storage_path") else {}
    config = SearchOptions(**values)
    if (config.time_budget or SHORTEST_SEARCH) < SHORTEST_SEARCH:
        raise InputError(
            f"--time_budget is {config.time_budget:g} s; it must be {SHORTEST_SEARCH} or more: the start takes some of them"
        )
    name = config.name or f"{config.preset}-{config.space}-{time.strftime('%Y%m%d-%H%M%S')}"
    local = config.storage_path and "://" not in config.storage_path
    run_dir = (Path(os.path.realpath(config.storage_path)) if local else runs_dir(RUNS_DIR)) / name
    if os.path.lexists(run_dir):
        again = command("tune/search.py", "--resume", run_dir)
        raise InputError(f"--name {name}: {run_dir} exists; go on with: {again}; or choose another name")
    from tune.config.resolve import resolve_search
    from tune.config.warm_start import warm_start_trials

    search = resolve_search(dataclasses.replace(config, name=name), cache_dir())
    return run_dir, dataclasses.replace(search, warm_start=warm_start_trials(search))


def resume(given: dict[str, Any]) -> tuple[Path, SearchSpec]:
    """The run folder to go on with, and its settings with what may change."""
    from tune.config.resolve import check_comparable

    run_dir = Path(os.path.realpath(given.pop("resume")))
    trust = given.pop("allow_other_owner", False)
    search = SearchSpec.read(run_dir)
    owner = run_dir.stat().st_uid
    if owner != os.getuid() and not trust:
        raise InputError(
            f"{run_dir} belongs to another user (id {owner}); look at what is in it, then resume with --allow_other_owner"
        )
    before = search.options
    given |= {"model": absolute(given["model"])} if "model" in given else {}
    for flag, value in given.items():
        if flag not in (*RESUME_FLAGS, *DATA_FLAGS) and not is_kept(search, flag, value):
            raise InputError(
                f"--{flag} can't change on --resume, it is {getattr(before, flag, None)}: "
                "earlier trials could not be compared with later ones"
            )
    asked = before.num_samples or (before.trials if before.time_budget is None else 0)
    if given.get("num_samples", asked) < asked:
        raise InputError(f"--num_samples is {given['num_samples']}, the total; the run already asked for {asked}")
    options = dataclasses.replace(before, **{flag: value for flag, value in given.items() if flag in RESUME_FLAGS})
    moved = {flag: tuple(given[flag]) for flag in DATA_FLAGS if flag in given}
    return run_dir, check_comparable(dataclasses.replace(search, options=options), cache_dir(), moved)


def is_kept(search: SearchSpec, flag: str, value: Any) -> bool:
    """True if the search already has this `value` of a flag; of a range that it is the same distribution."""
    if flag not in overrides.FLAGS:
        return getattr(search.options, flag, None) == (tuple(value) if isinstance(value, list) else value)
    given = overrides.parse_overrides({flag: value}, search.model)
    return all(search.ranges.get(name) == one.values and search.fixed.get(name) == one.fixed for name, one in given.items())


@contextlib.contextmanager
def nothing_lost(again: str) -> Iterator[None]:
    """Within it, what a disk or its owner refuses is told with the command that goes on."""
    try:
        yield
    except (RunError, OSError) as error:
        raise RunError(f"{error}; nothing is lost: {again} goes on when that is mended") from None


def main() -> int:
    engine = ENGINE or Engine()
    try:
        return run(current_names(vars(parse_args())), engine)
    finally:
        engine.stop()


def run(given: dict[str, Any], engine: Engine) -> int:
    """Checks what was `given`, searches, and says what was found; returns the exit code."""
    if given.pop("list_spaces", False):
        print(overrides.list_spaces(given.get("preset", SearchOptions.preset)))
        return 0
    resumed, dry_run = "resume" in given, given.pop("dry_run", False)
    if dry_run:
        engine.stop()  # it is not needed, and steps are to be timed alone
    if not resumed and given.pop("allow_other_owner", False):
        raise InputError("--allow_other_owner belongs to --resume")
    run_dir, search = (resume if resumed else start)(given)
    config = search.options
    if config.dashboard and importlib.util.find_spec("aiohttp_cors") is None:
        raise InputError("--dashboard needs more of Ray: pip install 'ray[default]'")
    from tune.config.resolve import changed_code, resolve_resources

    if config.address is None:
        check_address_space()
        available = available_cpus(), len(gpu_names())
    else:
        available = join_cluster(config.address)
    if any(getattr(config, name) == AUTO for name in PICKED):
        from tune.estimate.auto_resources import resolve_auto

        with engine.before_the_search():
            search, found = resolve_auto(search, *available)
        config = search.options
        print(found, flush=True)
    resources = resolve_resources(config, *available)
    if resumed and (changes := changed_code(search)):
        print(f"note: the code has changed since the search began: {changes}")
    if resumed and is_changed(search.model):
        print(f"note: {search.model.source} has changed since the search began, which goes on with the code of then")
    check_places(run_dir, search)
    again = command("tune/search.py", "--resume", run_dir)
    data = "the built-in corpus" if is_builtin(config.train_file) else " ".join(config.train_file)
    trials = f"{config.trials} trials" if config.trials < UNLIMITED_TRIALS else f"{duration(config.time_budget)} of trials"
    print(
        f"{trials} of space {config.space}, preset {config.preset}, on {data}: "
        f"{search.budget_tokens:,} tokens a full training, {resources.workers} at once, in {shown_path(run_dir)}",
        flush=True,
    )
    if dry_run or (not resumed and (config.time_budget or 0) >= WORTH_A_FORECAST):
        from tune.estimate.benchmark import forecast
        from tune.store.journal import read_journal

        with engine.before_the_search():
            print(forecast(search, resources, read_journal(run_dir) if resumed else ()), flush=True)
    if dry_run:
        return 0
    run_dir.mkdir(parents=True, exist_ok=resumed)
    if not resumed:  # one that is may have nothing left to do
        engine.start(config, resources)
    from tune.ray_backend.tuner import run_search

    with nothing_lost(again):
        finished = run_search(run_dir, search, resources, engine)
        from tune.report import nothing_reported, write_report, write_report_behind

        said = write_report(run_dir, whole=False)
    print(said, flush=True)
    if finished and not engine.was_started:
        more = "time_budget" if config.time_budget else "num_samples"
        print(f"\nnote: nothing was left to do; a larger --{more} goes on")
    with nothing_lost(again):
        if sys.stdout.isatty():  # somebody waits for the prompt
            write_report_behind(run_dir)
        else:  # a script may want the files, and end all that it left behind
            write_report(run_dir)
    print(f"\nreport: {(run_dir / 'report.html').as_uri()}")
    if not finished:
        print(f"interrupted; go on with: {again}")
        return 130
    if reason := nothing_reported(run_dir):
        raise RunError(reason)
    return 0


def cli() -> None:
    """Runs the command with its errors in one line; ends the process."""
    run_command(main)


if __name__ == "__main__":
    cli()
