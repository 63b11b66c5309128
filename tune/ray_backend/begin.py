"""From the options that were given to a run folder, its checked settings, and each trial's resources."""

import contextlib
import dataclasses
import functools
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from myllm.datasets.data_paths import is_builtin
from myllm.models.custom_model import CustomModelConfig, absolute, is_changed
from myllm.system.errors import InputError
from myllm.system.files import cache_dir
from myllm.system.machine import available_cpus, gpu_names
from myllm.text.commands import command, shown_path
from myllm.text.durations import duration
from tune.config import overrides
from tune.config.command_line import DATA_FLAGS, RESUME_FLAGS, read_experiment
from tune.config.options import AUTO, PICKED, SearchOptions
from tune.config.resolve import Resources
from tune.config.spec import RUNS_DIR, BuiltinSearch, ProgramSearch, SearchSpec, read_search
from tune.core.trials import UNLIMITED_TRIALS
from tune.ray_backend.cluster import join_cluster
from tune.ray_backend.preflight import check_machine, check_writable, runs_dir
from tune.ray_backend.start import RayRuntime

# What takes long to import comes where it is used: --help and most errors need none of it.

SHORTEST_SEARCH = 10  # seconds of --time_budget
WORTH_A_FORECAST = 300.0  # seconds of --time_budget; it takes ten to time a few steps, and these are not the search's


def start(given: dict[str, Any]) -> tuple[Path, SearchSpec]:
    """A new run's folder, which is not made yet, and its checked settings."""
    experiment = given.pop("experiment", None)
    values = overrides.merge(read_experiment(experiment, given) if experiment else {}, given)
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    if is_own := any(values.get(name) is not None for name in ("command", "trainable")):
        from tune.config.resolve_program import program_options

        values = program_options(values)
    values["warm_start"] = tuple(os.path.abspath(path) for path in values.get("warm_start", ()))
    function = functools.partial(absolute, flag="--trainable", kind="function")
    for name, resolved in (("model", absolute), ("trainable", function), ("storage_path", os.path.expanduser)):
        values |= {name: resolved(values[name])} if values.get(name) else {}
    options = SearchOptions(**values)
    if (seconds := options.time_budget) and seconds < SHORTEST_SEARCH:
        raise InputError(
            f"--time_budget is {seconds:g} s; it must be {SHORTEST_SEARCH} or more: the start takes some of them"
        )
    of = Path(options.trainable.rpartition(":")[0]).stem if options.trainable else f"{options.preset}-{options.space}"
    name = options.name or f"{'command' if options.command else of}-{time.strftime('%Y%m%d-%H%M%S')}"
    local = options.storage_path if options.storage_path and "://" not in options.storage_path else None
    run_dir = (Path(os.path.realpath(local)) if local else runs_dir(RUNS_DIR)) / name
    if options.name and os.path.lexists(run_dir):
        raise name_taken(run_dir)
    from tune.config.ladder import check_flags
    from tune.config.resolve import resolve_search
    from tune.config.resolve_program import resolve_program
    from tune.config.warm_start import warm_start_trials

    check_flags(options)
    if options.target:
        from tune.estimate.ladder import resolve_target

        return run_dir, resolve_target(options, cache_dir())
    spec = resolve_program(options) if is_own else resolve_search(options, cache_dir())
    return run_dir, dataclasses.replace(spec, warm_start=warm_start_trials(spec))


def name_taken(run_dir: Path) -> InputError:
    """The error of a --name whose folder exists."""
    again = command("tune/search.py", "--resume", run_dir)
    return InputError(f"--name {run_dir.name}: {run_dir} exists; go on with: {again}; or choose another name")


def make_folder(run_dir: Path, spec: SearchSpec) -> tuple[Path, SearchSpec]:
    """Makes a new run's folder, and notes its name. Without --name it is the next free one if `run_dir` exists by now."""
    for suffix in itertools.chain([""], (f"-{number}" for number in itertools.count(2))):
        folder = run_dir.with_name(run_dir.name + suffix)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            break
        if spec.options.name:
            raise name_taken(run_dir)
    if folder != run_dir:
        print(f"note: {run_dir.name} is taken; this search is in {shown_path(folder)}")
    return folder, dataclasses.replace(spec, options=dataclasses.replace(spec.options, name=folder.name))


def resume(given: dict[str, Any]) -> tuple[Path, SearchSpec]:
    """The run folder to go on with, and its settings with what may change."""
    from tune.config.ladder import check_flags
    from tune.config.resolve import check_comparable

    run_dir = Path(os.path.realpath(given.pop("resume")))
    trusted = given.pop("allow_other_owner", False)
    search = read_search(run_dir)
    owner = run_dir.stat().st_uid
    if owner != os.getuid() and not trusted:
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
    if "gpus_per_trial" in given and "processes_per_trial" not in given and options.joins_idle_slots:
        options = dataclasses.replace(options, processes_per_trial=None)  # it came from --gpus_per_trial auto
    reasons = {name: why for name, why in search.auto_resolved.items() if name not in given}
    search = dataclasses.replace(search, auto_resolved=reasons)
    check_flags(options)
    moved = {flag: tuple(given[flag]) for flag in DATA_FLAGS if flag in given}
    if isinstance(search, BuiltinSearch):
        return run_dir, check_comparable(dataclasses.replace(search, options=options), cache_dir(), moved)
    if moved:
        raise InputError(
            f"--{next(iter(moved))} belongs to the built-in training, and this search has a program of its own"
        )
    return run_dir, dataclasses.replace(search, options=options)


def is_kept(search: SearchSpec, flag: str, value: Any) -> bool:
    """True if the search already has this `value` of a flag; of a range that it is the same distribution."""
    if flag not in overrides.FLAGS:
        return getattr(search.options, flag, None) == (tuple(value) if isinstance(value, list) else value)
    given = overrides.parse_overrides({flag: value}, search.model if isinstance(search, BuiltinSearch) else None)
    return all(search.ranges.get(name) == one.values and search.fixed.get(name) == one.fixed for name, one in given.items())


def program_notes(spec: SearchSpec, resumed: bool) -> Iterator[str]:
    """Yields what the user should know of the training program before it runs."""
    from tune.config import resolve_program

    if resumed and spec.rule_has_changed:
        yield f"{spec.options.scheduler} has changed since the search began; it goes on with today's rule, on its own rungs"
    if isinstance(spec, BuiltinSearch):
        if resumed and isinstance(spec.model, CustomModelConfig) and is_changed(spec.model):
            yield f"{spec.model.source} has changed since the search began, which goes on with the code of then"
    elif isinstance(spec, ProgramSearch):
        if resumed and resolve_program.is_changed(spec):
            then = "goes on with the code of then" if spec.options.trainable else "goes on with them as they are"
            yield f"files of {spec.name} have changed since the search began, which {then}"
        if not resumed:
            yield from resolve_program.notes(spec)


def estimate(
    run_dir: Path, spec: SearchSpec, runtime: RayRuntime, resumed: bool, dry_run: bool
) -> tuple[SearchSpec, Resources]:
    """The settings with `auto` resolved, and each trial's resources. Prints the search's plan, and how long it takes."""
    from tune.config.resolve import changed_code, check_processes, resolve_resources

    options = spec.options
    if options.address is None:
        check_machine()
    cpus, gpus = join_cluster(options.address) if options.address else (available_cpus(), (len(gpu_names()),))
    if AUTO in (options.cpus_per_trial, options.gpus_per_trial, options.processes_per_trial):
        from tune.estimate.auto import resolve_auto

        if not isinstance(spec, BuiltinSearch):
            raise InputError(
                f"auto times steps of the built-in training; give numbers for {', '.join(f'--{name}' for name in PICKED)}"
            )
        with runtime.before_the_search():
            spec, found = resolve_auto(spec, cpus, sum(gpus))
        if found:
            print(found, flush=True)
    resources = resolve_resources(spec.options, cpus, *gpus)
    check_processes(spec, resources.processes)
    if options.budget_seconds and not resumed and options.address is None:
        from tune.estimate.benchmark import check_budget_seconds

        with runtime.before_the_search():
            assert isinstance(spec, BuiltinSearch)
            check_budget_seconds(spec, resources)
    if resumed and (changes := changed_code(spec)):
        print(f"note: the code has changed since the search began: {changes}")
    for note in program_notes(spec, resumed):
        print(f"note: {note}")
    check_writable(run_dir, spec)
    what = f"of {spec.name}" if isinstance(spec, ProgramSearch) else ""
    if isinstance(spec, BuiltinSearch):
        data = "the built-in corpus" if is_builtin(options.train_file) else " ".join(options.train_file)
        what = f"of space {options.space}, preset {options.preset}, on {data}"
        if spec.ladder:
            from tune.estimate.ladder import plan_text

            print(f"a ladder on {data}, {resources.workers} at once, in {shown_path(run_dir)}", flush=True)
            with runtime.before_the_search():
                print(plan_text(spec, resources, timed=dry_run or not resumed), flush=True)
            return spec, resources
    trials = f"{options.trials} trials"
    if options.time_budget is not None and options.trials >= UNLIMITED_TRIALS:
        trials = f"{duration(options.time_budget)} of trials"
    print(
        f"{trials} {what}: {spec.budget_text} a full training, {resources.workers} at once, in {shown_path(run_dir)}",
        flush=True,
    )
    if isinstance(spec, BuiltinSearch) and (dry_run or (not resumed and (options.time_budget or 0) >= WORTH_A_FORECAST)):
        from tune.estimate.benchmark import forecast
        from tune.store.journal import read_journal

        with runtime.before_the_search():
            print(forecast(spec, resources, read_journal(run_dir) if resumed else ()), flush=True)
    return spec, resources
