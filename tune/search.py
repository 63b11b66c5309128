"""Command line of the search: `python tune/search.py --space v2`, and `--resume DIR` to go on with a run.

`from tune import run_search` is the same search for scripts and notebooks.
"""

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

import myllm.system.imports

if __name__ == "__main__" or os.path.basename(sys.argv[0]) == "myllm-search":  # not in a script that imports this module
    myllm.system.imports.check_imports()

from tune.ray_backend.start import RayRuntime

RUNTIME = RayRuntime() if __name__ == "__main__" else None  # the search's time begins here

import contextlib
import functools
import importlib.util
import inspect
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from myllm.system.errors import INTERRUPTED, InputError, RunError, run_command
from myllm.system.machine import refuse_torchrun
from myllm.text.commands import command
from tune.config import overrides
from tune.config.command_line import option_values, parse_args
from tune.config.options import SearchOptions
from tune.config.resolve import Resources
from tune.config.spec import SearchSpec
from tune.ray_backend.begin import estimate, make_folder, resume, start
from tune.ray_backend.programs.supervise import SUPERVISOR

if TYPE_CHECKING:
    from tune.reporting.run import Run

# What takes long to import comes where it is used: --help and most errors need none of it.

P = ParamSpec("P")


@contextlib.contextmanager
def nothing_lost(again: str) -> Iterator[None]:
    """Within it, an error of the disk or of its owner names the command that goes on."""
    try:
        yield
    except (RunError, OSError) as error:
        raise RunError(f"{error}; nothing is lost: {again} goes on when that is mended") from None


@contextlib.contextmanager
def served(run_dir: Path) -> Iterator[None]:
    """Within it a process serves the run's page; it ends with this process, however that ends."""
    report = [sys.executable, str(Path(__file__).with_name("report.py")), str(run_dir), "--serve"]
    with subprocess.Popen(
        [sys.executable, str(SUPERVISOR), "2", *report], stdin=subprocess.PIPE, start_new_session=True
    ) as server:
        try:
            yield
        finally:
            if server.stdin:
                server.stdin.close()


def search(
    run_dir: Path,
    spec: SearchSpec,
    resources: Resources,
    runtime: RayRuntime,
    resumed: bool,
    behind: bool = False,
    live: bool = False,
) -> tuple[Path, bool]:
    """Runs the search, prints its summary and writes its report; returns its folder, and False if it was interrupted.

    With `behind` a process of its own writes the whole report, with `live` one serves the page while the search runs.
    Raises RunError where no trial has reported a loss.
    """
    if not resumed:  # a resumed search may have nothing left to do
        run_dir, spec = make_folder(run_dir, spec)
        runtime.start(spec.options, resources)
    from tune.ray_backend.tuner import run_search

    again = command("tune/search.py", "--resume", run_dir)
    with nothing_lost(again):
        with served(run_dir) if live else contextlib.nullcontext():
            finished = run_search(run_dir, spec, resources, runtime)
        from tune.report import nothing_reported, write_report, write_report_behind

        said = write_report(run_dir, whole=False)
    print(said, flush=True)
    if finished and not runtime.address_info:
        more = "time_budget" if spec.options.time_budget else "num_samples"
        print(f"\nnote: nothing was left to do{'' if spec.ladder else f'; a larger --{more} goes on'}")
    with nothing_lost(again):  # a script may want the files, and end all that it left behind; a person waits for the prompt
        (write_report_behind if behind else write_report)(run_dir)
    print(f"\nreport: {(run_dir / 'report.html').as_uri()}")
    if not finished:
        print(f"interrupted; go on with: {again}")
    elif reason := nothing_reported(run_dir):
        raise RunError(reason)
    return run_dir, finished


def prepared(
    given: dict[str, Any], runtime: RayRuntime, dry_run: bool = False
) -> tuple[Path, SearchSpec, Resources, RayRuntime, bool]:
    """The arguments of `search` for the `given` options. Prints the search's plan. Raises InputError for a bad option."""
    resumed = "resume" in given
    if not resumed and given.pop("allow_other_owner", False):
        raise InputError("--allow_other_owner belongs to --resume")
    run_dir, spec = resume(given) if resumed else start(given)
    if spec.options.dashboard and importlib.util.find_spec("aiohttp_cors") is None:
        raise InputError("--dashboard needs more of Ray: pip install 'ray[default]'")
    spec, resources = estimate(run_dir, spec, runtime, resumed, dry_run)
    return run_dir, spec, resources, runtime, resumed


def _run(given: dict[str, Any]) -> "Run":
    """Searches for a caller in Python."""
    from tune.ray_backend.signals import Interrupts
    from tune.reporting.run import load_run

    runtime = RayRuntime()
    Interrupts.may_exit = False
    try:
        with contextlib.redirect_stdout(sys.stderr):
            folder, finished = search(*prepared(option_values(given), runtime))
    finally:
        Interrupts.may_exit = True
        runtime.stop()
    if not finished:
        raise KeyboardInterrupt(f"the search in {folder} was interrupted; resume_search({str(folder)!r}) goes on")
    return load_run(folder)


def _with_options(options: Callable[P, object]) -> Callable[[Callable[..., "Run"]], Callable[P, "Run"]]:
    """Gives a function of keywords the parameters of `options`, for editors and type checkers."""

    def typed(function: Callable[..., "Run"]) -> Callable[P, "Run"]:
        @functools.wraps(function)
        def wrapped(*arguments: P.args, **values: P.kwargs) -> "Run":
            return function(*arguments, **values)

        wrapped.__signature__ = inspect.signature(options)  # type: ignore[attr-defined]  # read by editors and help()
        return wrapped

    return typed


@_with_options(SearchOptions)
def run_search(**options: Any) -> "Run":
    """Searches with these options, which are the flags of tune/search.py, and returns the finished run.

    Lists may be lists or single values, and times texts such as "5m". Progress and summary go to standard error. Raises
    InputError for an option that can't be, RunError where the search can't go on, and KeyboardInterrupt after Ctrl-C: the
    run's folder then resumes with `resume_search`.
    """
    return _run(options)


def resume_search(run_dir: str | Path, **options: Any) -> "Run":
    """Goes on with the search in `run_dir`, with any of the options that may change on --resume; returns the run.

    Raises what `run_search` raises.
    """
    return _run({"resume": str(run_dir)} | options)


def status(run_dir: Path) -> dict[str, Any]:
    """The summary of a search as it stands, as summary.json has it, and "running": True while a process runs it."""
    from tune.analysis.results import load
    from tune.reporting.summarize import summarize
    from tune.store.journal import is_running

    return {"running": is_running(run_dir)} | asdict(summarize(run_dir, *load(run_dir)))


def run(given: dict[str, Any], runtime: RayRuntime) -> int:
    """Checks the `given` flags, searches, and reports; returns the exit code."""
    as_json, dry_run, live = (given.pop(name, False) for name in ("json", "dry_run", "serve"))
    if given.pop("list_spaces", False):
        print(overrides.list_spaces(given.get("preset", SearchOptions.preset), given.get("budget_tokens")))
        return 0
    if (asked := given.pop("status", None)) is not None:
        from tune.reporting.run import load_run

        found = status(Path(os.path.realpath(asked)))
        now = "is running" if found["running"] else "is not running"
        print(json.dumps(found, indent=2) if as_json else f"{load_run(asked)}\nthe search {now}")
        return 0
    if (batch_file := given.pop("slurm", None)) is not None:
        from tune.ray_backend.slurm import write_batch_file

        run_dir, spec = resume(given) if "resume" in given else start(given)
        print(write_batch_file(batch_file, run_dir, spec.options.time_budget))
        return 0
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        arguments = prepared(given, runtime, dry_run)
        if dry_run:
            return 0
        run_dir, finished = search(*arguments, behind=sys.stdout.isatty() and not as_json, live=live)
    if as_json:
        print((run_dir / "summary.json").read_text("utf-8"), end="")
    return 0 if finished else INTERRUPTED


def main() -> int:
    runtime = RUNTIME or RayRuntime()
    try:
        refuse_torchrun("tune/search.py")
        return run(parse_args(), runtime)
    finally:
        runtime.stop()


def cli() -> None:
    """Runs the command with its errors in one line; ends the process."""
    run_command(main)


if __name__ == "__main__":
    cli()
