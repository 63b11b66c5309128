"""Plans a ladder before it starts: times the levels here where time counts, and tells what it takes of the target's."""

import dataclasses
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from myllm.models.custom_model import with_settings
from myllm.system.machine import available_cpus, gpu_names
from myllm.text.durations import duration
from myllm.text.format import amount, size_text
from tune.config.ladder import DEFAULT_SHARE, shapes, target_spec, with_plan
from tune.config.options import AUTO, SearchOptions
from tune.config.resolve import Resources, resolve_resources
from tune.config.spec import RUNS_DIR, BuiltinSearch
from tune.estimate.benchmark import time_steps
from tune.ladder.plan import START_SECONDS, Level, Plan, level_of, make_plan

TIMED_SECONDS = 0.5  # for each size
TIMED_TOKENS = 4096  # of a timed step on a CPU, at most; the speed hardly depends on it
STATE_BYTES = 12  # of a training's state for each parameter: weights and two averages
PROVISIONAL_TOKENS = 2**24  # of the target while its speed is measured


def resolve_target(options: SearchOptions, cache_dir: Path) -> BuiltinSearch:
    """The specification of the ladder that `options` ask for, with its plan, checked against the data.

    Raises InputError, one line, for the first fault.
    """
    tokens = options.target_tokens
    if options.target_seconds:
        target = target_spec(options, PROVISIONAL_TOKENS, cache_dir)
        shape, _ = shapes(options, target)
        whole = level_of(shape, target.budget_tokens, target.training.max_len)
        seconds = measured_seconds(target, [whole], _whole_machine(options))[whole.params]
        tokens = math.floor(options.target_seconds * whole.tokens / seconds)
        print(f"--target_seconds {options.target_seconds:g} s: {amount(tokens)} tokens here", flush=True)
    target = target_spec(options, tokens, cache_dir)
    largest, smaller = shapes(options, target)
    training, workers = target.training, 1
    found: Mapping[int, float] | None = None
    time_budget = math.inf
    if options.time_budget:
        goal = level_of(largest, target.budget_tokens, training.max_len)
        levels = [level_of(s, target.budget_tokens * s.all / largest.all, training.max_len) for s in smaller]
        levels = [level for level in levels if level.tokens]
        resources = _resources(options)
        found, workers = level_seconds(target, [*levels, goal], resources), resources.workers
        time_budget = options.time_budget
    plan = make_plan(
        largest,
        smaller,
        target.budget_tokens,
        options.target_share or DEFAULT_SHARE,
        training.max_len,
        training.learning_rate,
        training.warmup_ratio,
        target.model.vocab_size,
        found,
        time_budget,
        workers,
    )
    return with_plan(options, target, plan)


def _resources(options: SearchOptions) -> Resources:
    """The trials' share of this machine; `auto` counts as unset."""
    unset: dict[str, Any] = {name: None for name in ("cpus_per_trial", "gpus_per_trial") if getattr(options, name) == AUTO}
    return resolve_resources(dataclasses.replace(options, **unset), available_cpus(), len(gpu_names()))


def _whole_machine(options: SearchOptions) -> Resources:
    """All cores, or one GPU: what trainer.py will have."""
    gpus = 1 if gpu_names() and options.gpus_per_trial != 0 else 0
    return Resources(available_cpus(), gpus, 1)


def level_seconds(search: BuiltinSearch, levels: Sequence[Level], resources: Resources) -> dict[int, float]:
    """Seconds of a training of each level on one worker, by parameters; three sizes are timed, the others interpolated."""
    timed = sorted({0, len(levels) // 2, len(levels) - 1})
    found = measured_seconds(search, [levels[index] for index in timed], resources)
    known = [level for level in levels if level.params in found]
    rates = [math.log(found[level.params] / level.flops) for level in known]
    sizes = [math.log(level.flops) for level in known]
    return {one.params: math.exp(float(np.interp(math.log(one.flops), sizes, rates))) * one.flops for one in levels}


def measured_seconds(search: BuiltinSearch, levels: Sequence[Level], resources: Resources) -> dict[int, float]:
    """Seconds of a training of each level, evaluations included, by parameters; a few steps of each are timed here."""
    found = {}
    for level in levels:
        batch = level.most_batch
        while batch > 1 and not resources.gpus_per_trial and batch * search.training.max_len > TIMED_TOKENS:
            batch //= 2
        batch = min(batch, search.training.micro_batch_size or batch)
        length: dict[str, Any] = {"budget_tokens": level.tokens, "batch_size": batch}
        one = dataclasses.replace(
            search,
            model=with_settings(search.model, level.settings),
            training=dataclasses.replace(search.training, **length),
            report_tokens=level.tokens // 8,
            ranges={},
            baseline={},
            ladder=None,
        )
        timings = time_steps(one, resources, TIMED_SECONDS)
        found[level.params] = timings.throughput.seconds(level.tokens, batch * one.training.max_len)
    return found


def plan_text(search: BuiltinSearch, resources: Resources, timed: bool) -> str:
    """Tells the plan of a ladder in a table: its levels, and what it takes of the target's compute, time and disk."""
    plan = search.ladder
    assert plan is not None, "only a ladder has a plan"
    chosen = [level for level in plan.levels if level.runs]
    seconds = level_seconds(search, [*chosen, plan.target], resources) if timed else {}
    return "\n".join(f"  {line}" for line in _lines(search, plan, chosen, seconds, resources.workers))


def _lines(
    search: BuiltinSearch, plan: Plan, chosen: Sequence[Level], seconds: Mapping[int, float], workers: int
) -> Iterator[str]:
    goal = plan.target
    rows = [("runs", "model", "parameters", "tokens each", "of the target's compute")]
    rows += [
        (str(one.runs), one.words, size_text(one.params), amount(one.tokens), f"{one.runs * one.flops / goal.flops:.2%}")
        for one in chosen
    ]
    short = amount(plan.stability_tokens(plan.centre(goal)[1]))
    rows.append(("2", goal.words, size_text(goal.params), short, f"{plan.stability_flops / goal.flops:.2%}, for stability"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        yield "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)) + f"  {row[4]}"
    size = f"{size_text(goal.params)} parameters without embeddings and head, {amount(goal.tokens)} tokens"
    yield f"target    {goal.words}: {size}"
    most = f"{plan.share:.1%} at most: a level more is run only if the top comes out otherwise than predicted"
    yield f"compute   {plan.planned_share:.1%} of the target's; {most}"
    if seconds:
        took = sum(one.runs * seconds[one.params] for one in chosen)
        took += plan.stability_flops / goal.flops * seconds[goal.params]
        whole = seconds[goal.params]
        yield (
            f"time      about {duration(took / workers + START_SECONDS)} with {workers} at once; the target takes about"
            f" {duration(whole)} on one worker, so the ladder {took / whole:.1%} of its time"
        )
    folder = Path(search.options.storage_path or RUNS_DIR)
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.exists())).free
    own = STATE_BYTES * (goal.params + goal.head) / 1e6
    most = f"about {own * min(2, workers):,.0f} MB of states at most, each of the target {own:,.0f}"
    yield f"disk      {most}; {free / 1e9:,.1f} GB are free"
