"""Computes the answer of a search: the best configuration, the confidence in it, and the commands that continue."""

import dataclasses
import math
import os
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from myllm.datasets.data_paths import is_builtin
from myllm.models.custom_model import CustomModelConfig
from myllm.system.files import ROOT, disk_use
from myllm.text.commands import command, shown_path
from tune.analysis.axes import Edge, axes_of, edges
from tune.analysis.posterior import LEVEL
from tune.analysis.results import leaderboard, posterior_summary
from tune.analysis.speed import fastest_alike, training_speeds
from tune.analysis.stopping_audit import summarize_audit
from tune.config.overrides import FLAGS, merge
from tune.config.program_options import ProgramOptions
from tune.config.spec import BuiltinSearch, ProgramSearch, SearchSpec
from tune.core.clock import search_seconds
from tune.core.events import COMPILING, Event, Reported, WorkerLost
from tune.core.trials import COMPLETED, FAILED, RUNNING, UNLIMITED_TRIALS, Trials
from tune.reporting.ladder import LadderSummary, judge_ladder, summarize_ladder, train_command
from tune.reporting.summary import (
    Best,
    Compiled,
    Confidence,
    Cost,
    CustomModel,
    Faster,
    Gain,
    NextStep,
    Standing,
    Summary,
    TrialCounts,
)

TRUSTED = 0.9  # probability of being the best from which on a configuration is called the best
ALIKE = 0.002  # share of the loss below which the regret of a choice does not matter


def summarize(run_dir: Path, search: SearchSpec, trials: Trials, events: list[Event]) -> Summary:
    """Returns the summary of a search, as far as it has come."""
    options = search.options
    ladder = None
    if isinstance(search, BuiltinSearch) and search.ladder:
        ladder = summarize_ladder(run_dir, search, search.ladder, trials)
    table = leaderboard(trials)
    posterior = posterior_summary(table, trials.baseline_id)
    best = baseline = None
    found_edges: tuple[Edge, ...] = ()
    if not table.empty and not ladder:
        best = _best(search, trials, table, posterior)
        found_edges = tuple(edges(axes_of(search), best.config))
    if trials.baseline_id in table.index and not ladder:
        baseline = Standing(**_standing(trials.baseline_id, trials, table, posterior))
    gain = None if ladder else _gain(table, posterior, trials.baseline_id)
    confidence, verdict = judge_ladder(ladder) if ladder else judge(best, baseline, gain, found_edges, search.has_seeds)
    steps = ladder_steps(run_dir, ladder) if ladder else next_steps(run_dir, search, best, found_edges, confidence)
    statuses = Counter("interrupted" if trial.status == RUNNING else trial.status for trial in trials.drawn)
    planned = trials.num_samples if trials.num_samples < UNLIMITED_TRIALS else None
    return Summary(
        format=2,
        name=options.name or run_dir.name,
        unit=search.unit,
        space=options.space,
        preset=options.preset,
        scheduler=options.scheduler,
        seed=options.seed,
        **_program_fields(search),
        ranges=search.range_texts,
        fixed=tuple(options.set),
        moved=search.clipped_baseline,
        budget_tokens=None if search.budget_seconds else search.budget_tokens,
        budget_seconds=search.budget_seconds,
        trials=TrialCounts(len(trials.drawn), planned, trials.replicates, dict(sorted(statuses.items()))),
        cost=Cost(
            seconds=search_seconds(events),
            tokens=trials.tokens,
            trainings=trials.trained / trials.budget_tokens,
            checkpoint_bytes=disk_use(run_dir / "ray"),
            lost=sum(isinstance(event, WorkerLost) for event in events),
        ),
        compiled=summarize_compiling(events),
        failed={trial.trial_id: trial.reason for trial in trials.by_id.values() if trial.status == FAILED},
        level=LEVEL,
        best=best,
        baseline=baseline,
        gain=gain,
        ladder=ladder,
        faster=None if ladder or search.budget_seconds or options.is_own_program else _faster(trials, posterior),
        audit=summarize_audit(search, trials, events),
        edges=found_edges,
        confidence=confidence,
        verdict=verdict,
        next=tuple(steps),
    )


def _program_fields(search: SearchSpec) -> dict[str, Any]:
    """Returns the fields of a Summary that say what the trials trained."""
    if isinstance(search, ProgramSearch):
        return {"program": search.name, "data": "", "tokenizer": "", "model": None}
    assert isinstance(search, BuiltinSearch)
    model = search.model
    own = CustomModel(search.options.model or "", model.sha256) if isinstance(model, CustomModelConfig) else None
    data = " ".join(search.options.train_file)
    return {"program": None, "data": data, "tokenizer": search.data.tokenizer, "model": own}


def _best(search: SearchSpec, trials: Trials, table: pd.DataFrame, posterior: pd.DataFrame) -> Best:
    """Returns the first configuration of the leaderboard `table`."""
    trial_id = table.index[0]
    replicates = [] if search.has_seeds else trials.by_id[trial_id].replicates
    again = [trial.losses[search.budget_tokens] for trial in replicates if trial.status == COMPLETED]
    return Best(
        **_standing(trial_id, trials, table, posterior),
        share_of_budget=float(table["tokens_seen"].iloc[0] / search.budget_tokens),
        compared_with=len(posterior),
        in_one_piece=again[0] if again else None,
    )


def _standing(trial_id: str, trials: Trials, table: pd.DataFrame, posterior: pd.DataFrame) -> dict[str, Any]:
    """Returns the fields of a trial's Standing; null where a number is not finite or not known."""
    known = posterior.reindex([trial_id])[["low", "high", "probability_best", "regret"]].iloc[0]
    row = table.loc[trial_id].drop("losses").to_dict() | known.to_dict()
    return {"trial_id": trial_id, "config": trials.by_id[trial_id].config} | {k: finite(v) for k, v in row.items()}


def _gain(table: pd.DataFrame, posterior: pd.DataFrame, baseline_id: str) -> Gain | None:
    """Returns the gain of the best over the baseline; None where the baseline is the best or did not come as far."""
    if baseline_id not in table.index[1:]:
        return None
    mean = table.loc[baseline_id, "val_loss"] - table["val_loss"].iloc[0]
    low, high = posterior.reindex(table.index[:1])[["gain_low", "gain_high"]].iloc[0]
    return Gain(finite(mean), finite(low), finite(high))


def _faster(trials: Trials, posterior: pd.DataFrame) -> Faster | None:
    """Returns the fastest configuration within the noise of the best; None where it is not much faster."""
    found = fastest_alike(training_speeds(trials), posterior["low"])
    if found is None:
        return None
    trial_id, behind, times = found
    return Faster(trial_id, trials.by_id[trial_id].config, behind, times)


def summarize_compiling(events: Iterable[Event]) -> Compiled | None:
    """Returns what compiling took and gained; None where nothing was compiled."""
    reports = [event for event in events if isinstance(event, Reported) and event.compiling_seconds is not None]
    rows = [[getattr(report, name) for name in COMPILING] for report in reports]
    if not rows:
        return None
    seconds, before, after = zip(*rows, strict=True)
    gain = statistics.median(b / a for a, b in zip(before, after, strict=True))
    return Compiled(tuple(seconds), statistics.median(before), statistics.median(after), gain)


def finite(value: Any) -> Any:
    """Returns a Python number for a number of numpy's; None for one that is not finite."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def judge(
    best: Best | None, baseline: Standing | None, gain: Gain | None, found_edges: Sequence[Edge], has_seeds: bool = True
) -> tuple[Confidence, str]:
    """Returns the confidence in the answer, and one sentence that gives the reason."""
    if best is None:
        return "no", "No answer yet: no trial has reported."
    share = best.share_of_budget
    guess = f"A first guess: no two trials came to the end, they are compared at {share:.3g} of the budget."
    if baseline and best.trial_id == baseline.trial_id:
        none_better = "No trial was better than the baseline: keep it, or search longer."
        return ("no", guess) if share < 1 else ("partly", none_better)
    if best.low is None:
        why = (
            "Nothing was seen on two seeds yet"
            if has_seeds
            else "No configuration has two losses, as the command has no {seed}"
        )
        return "no", f"{why}, and luck and merit can't be told apart."
    if share < 1:
        return "no", guess
    names = " and ".join(edge.hyper_parameter for edge in found_edges)
    where = f"lies at the edge of {names}'s range: better ones may lie beyond."
    edge = f" It {where}" if names else ""
    edge += "" if has_seeds else " The command has no {seed}: no interval counts the luck of the first weights."
    if baseline is None or gain is None or gain.low is None:
        return "partly", f"The baseline did not come as far, so there is nothing to compare with.{edge}"
    if gain.low <= 0:
        return "no", f"The baseline may be as good: the gain's interval includes zero.{edge}"
    better = "Better than the baseline"
    probability, regret, loss = best.probability_best or 0.0, best.regret or 0.0, best.val_loss or 0.0
    if probability >= TRUSTED:
        better += ", and most likely the best that was tried."
    elif regret <= ALIKE * abs(loss):
        better += f"; others may be as good, but choosing it costs at most about {regret:.4f} nats."
    else:
        only = f"it is the best of those tried with probability {probability:.2f} only."
        return "partly", f"{better}, that is sure; {only}{edge}"
    if not has_seeds:
        return "partly", f"{better}{edge}"
    return ("partly", f"{better} But it {where}") if names else ("yes", better)


def ladder_steps(run_dir: Path, ladder: LadderSummary) -> list[NextStep]:
    """Returns the commands that continue from a ladder: its target's training first, once there is an answer."""
    first = [] if ladder.learning_rate is None else [NextStep("train the target", train_command(run_dir))]
    ended = len(ladder.stability) == 2
    more = [] if ended else [NextStep("go on", command("tune/search.py", "--resume", run_dir))]
    return [*first, *more, NextStep("read again, with the target's loss", command("tune/report.py", run_dir))]


def next_steps(
    run_dir: Path, search: SearchSpec, best: Best | None, found_edges: Sequence[Edge], confidence: Confidence
) -> list[NextStep]:
    """Returns the commands that continue, for the working folder; the one that the answer calls for comes first."""
    options = search.options
    is_planned = options.trials < UNLIMITED_TRIALS
    more = ["--num_samples", str(2 * options.trials)] if is_planned else []
    if options.time_budget:  # most of four times the budget explores: new trials have some of it
        more += ["--time_budget", f"{(4 if is_planned else 2) * options.time_budget:g}"]
    always = [
        NextStep("go on", command("tune/search.py", "--resume", run_dir, *more)),
        NextStep("read again", command("tune/report.py", run_dir)),
    ]
    if best is None:
        return always
    first = []
    if search.max_seeds > 1 and confidence != "yes" and best.share_of_budget == 1 and best.seeds < 2:
        first.append(NextStep("be sure", command("tune/search.py", "--resume", run_dir, "--replicate_best", "5")))
    if found_edges:
        flags = _wider_search(search, found_edges)
        first.append(NextStep("look beyond", command("tune/search.py", *flags, "--warm_start", run_dir)))
    return [*first, NextStep("train the best", training_command(run_dir, search, best)), *always]


def training_command(run_dir: Path, search: SearchSpec, best: Best) -> str:
    """Returns the command that trains the best configuration again, outside of the search."""
    if not isinstance(search, ProgramSearch):
        return command("myllm/training/trainer.py", "--config", run_dir / "best_config.json", "--save_model", "final.pth")
    if search.options.trainable:
        words = sys.orig_argv[0] or sys.executable, "-m", "tune.ray_backend.programs.function"
        is_found = os.getcwd() == str(ROOT) or not (ROOT / "pyproject.toml").is_file()  # from here, or as it is installed
        path = "" if is_found else f"PYTHONPATH={shlex.quote(str(ROOT))} "
        return path + shlex.join([*words, shown_path(run_dir / "best_config.json"), f"{run_dir.name}-best"])
    line = str(search.best_config(best.config)["command"])
    elsewhere = search.program.folder != os.getcwd()
    return f"(cd {shlex.quote(search.program.folder)} && {line})" if elsewhere else line


def _wider_search(search: SearchSpec, found_edges: Sequence[Edge]) -> list[str | Path]:
    """Returns the flags of a search like this one whose ranges go beyond the edges."""
    options = search.options
    flags: list[str | Path] = []
    if isinstance(search, ProgramSearch):
        for field in dataclasses.fields(ProgramOptions):
            value = getattr(options, field.name)
            if value not in (None, (), False):
                words = value if isinstance(value, tuple) else [] if value is True else [str(value)]
                flags += [f"--{field.name}", *words]
        flags += ["--scheduler", options.scheduler]
    else:
        flags += ["--space", options.space, "--preset", options.preset]
    if isinstance(search, BuiltinSearch) and not is_builtin(options.train_file):
        flags += ["--train_file", *map(Path, search.data.train_file), "--val_file", *map(Path, search.data.val_file)]
        flags += ["--tokenizer", search.data.tokenizer]
        for name in ("token_dtype", "text_column"):
            flags += [f"--{name}", value] if (value := getattr(options, name)) else []
    flags += ["--budget_tokens", str(options.budget_tokens)] if options.budget_tokens else []
    flags += ["--budget_seconds", f"{options.budget_seconds:g}"] if options.budget_seconds else []
    flags += ["--model", options.model] if options.model else []
    wider: dict[str, list[str]] = {}
    for edge in found_edges:
        kind, text = edge.search_next.removeprefix("--").split(" ", 1)
        wider.setdefault(kind, []).append(text)
    ranges = merge({kind: getattr(options, kind) for kind in FLAGS}, wider)
    return flags + [word for kind, texts in ranges.items() if texts for word in (f"--{kind}", *texts)]
