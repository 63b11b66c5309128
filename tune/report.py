"""What people read: a summary on the terminal, figures, and one HTML page. Reads only files; imports no ray.

python tune/report.py experiments/runs/NAME
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import myllm.imports

myllm.imports.check_imports()


import base64
import html
import math
from collections import Counter
from typing import Any

import pandas as pd

from myllm.errors import InputError, Parser, run_command
from myllm.files import disk_use, whole_file, write_text
from tune.commands import command
from tune.journal import read_journal
from tune.results import leaders, search_seconds, tables
from tune.settings import Search
from tune.trials import COMPLETED, DEFAULT_TRIAL, FAILED, REPEAT, RUNNING, UNLIMITED_TRIALS, Trial, Trials


def load(run_dir: Path) -> tuple[Search, Trials, list[dict]]:
    """(settings, trials, events) of a run folder. Raises InputError where it is none, or nothing has begun yet."""
    search, events = Search.read(run_dir), read_journal(run_dir)
    if not events:
        raise InputError(f"{run_dir} has no results yet; go on with: {command('tune/search.py', '--resume', run_dir)}")
    return search, Trials(search.budget_tokens, search.config.trials, search.config.rung_metric, events), events


def _settings(trial: Trial) -> str:
    return "  ".join(
        f"{name} {value if isinstance(value, str) else f'{value:.4g}'}" for name, value in trial.config.items()
    )


def _losses(standing: pd.Series) -> str:
    text = f"val_loss {standing['val_loss']:.4f} nats/token  val_bpb {standing['val_bpb']:.4f} bits/byte"
    if standing["seeds"] > 1:
        text += f"  (mean of {standing['seeds']:.0f} seeds, spread {standing['spread']:.4f})"
    return text


def _gain(table: pd.DataFrame) -> str:
    """What the best is worth over the default, and how far to trust that."""
    best, default = table.iloc[0], table.loc[DEFAULT_TRIAL]
    if table.index[0] == DEFAULT_TRIAL:
        return "none: no trial was better than the default"
    text = f"{default['val_loss'] - best['val_loss']:.4f} nats/token over the default"
    rivals = (table["seeds"] > 1).sum()
    if best["seeds"] == 1 or rivals < 2:
        return text + ", on one seed: flattered by selection"
    return text + f"; the best of the {rivals} on several seeds with probability {best['probability_best']:.2f}"


def summary(run_dir: Path) -> str:
    """The best-config summary: what was searched, what was found beside the default, what it took, what comes next."""
    search, trials, events = load(run_dir)
    config = search.config
    planned = f" of {trials.num_samples}" if trials.num_samples < UNLIMITED_TRIALS else ""
    statuses = Counter("interrupted" if trial.status == RUNNING else trial.status for trial in trials.drawn)
    counted = [f"{count} {status}" for status, count in sorted(statuses.items())]
    tokens = sum(trial.tokens for trial in trials.by_id.values())
    table = leaders(trials)
    lines = [
        "",
        f"Search {config.name}: space {config.space}, preset {config.preset}, scheduler {config.scheduler}, "
        f"seed {config.seed}, {' '.join(config.train_file)} data, tokenizer {search.data.tokenizer}",
        f"  searched  {'; '.join(f'{name} {text}' for name, text in search.ranges.items())}",
        f"  trials    {len(trials.drawn)}{planned}: {', '.join(counted)}",
        f"  took      {search_seconds(events):,.0f} s, {tokens / 1e6:,.1f}M tokens "
        f"({search.budget_tokens / 1e6:,.1f}M a full training), {disk_use(run_dir) / 1e6:,.1f} MB of disk"
        + (f", checkpoints in {config.storage_path}" if "://" in (config.storage_path or "") else ""),
    ]
    if table.empty:
        lines.append("  best      none yet: no trial has reported")
    else:
        share = table["tokens_seen"].iloc[0] / search.budget_tokens
        early = "" if share == 1 else f", compared at {share:.3g} of the budget"
        lines.append(f"  best      trial {table.index[0]}: {_settings(trials.by_id[table.index[0]])}{early}")
        lines.append(f"            {_losses(table.iloc[0])}")
    if DEFAULT_TRIAL in table.index:
        lines.append(f"  default   trial {DEFAULT_TRIAL}: {_settings(trials.by_id[DEFAULT_TRIAL])}")
        lines.append(f"            {_losses(table.loc[DEFAULT_TRIAL])}")
        lines.append(f"  gain      {_gain(table)}")
    if lost := sum(event["event"] == "lost" for event in events):
        lines.append(
            f"  lost      {lost} times a trial's process or machine; it went on from its last checkpoint (error-*.txt)"
        )
    for trial in trials.by_id.values():
        if trial.status == FAILED:
            lines.append(f"  failed    trial {trial.trial_id}: {trial.reason} (error-{trial.trial_id}.txt)")
    lines += ["  next", f"    read again      {command('tune/report.py', run_dir)}"]
    more = ("num_samples", 2 * trials.num_samples) if planned else ("time_budget", 2 * config.time_budget)
    lines.append(f"    go on           {command('tune/search.py', '--resume', run_dir, f'--{more[0]}', f'{more[1]:g}')}")
    if not table.empty:
        config_file = run_dir / "best_config.json"
        train = command("myllm/training/trainer.py", "--config", config_file, "--save_model", "final.pth")
        lines.append(f"    train the best  {train}")
    return "\n".join(lines)


def save(figure: Any, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    with whole_file(path) as file:
        figure.savefig(file, dpi=120, format="png")


def draw_curves(history: pd.DataFrame, trials: Trials, path: Path) -> None:
    """val_loss over tokens, a line a trial; the best and the default stand out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    best = next(iter(leaders(trials).index), None)
    for trial_id, rows in history.groupby("trial_id"):
        if trials.by_id[trial_id].kind == REPEAT:
            continue
        style = {"color": "0.75", "linewidth": 1}
        if trial_id == best:
            style = {"color": "C0", "linewidth": 2, "label": f"best ({trial_id})", "zorder": 3}
        elif trial_id == DEFAULT_TRIAL:
            style = {"color": "C1", "linewidth": 2, "label": "default", "zorder": 2}
        axes.plot(rows["tokens_seen"], rows["val_loss"], **style)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("val_loss (nats per token)")
    finite = history["val_loss"][history["val_loss"].map(math.isfinite)]
    if len(finite):
        axes.set_ylim(finite.min() * 0.98, finite.quantile(0.98) * 1.02)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    save(figure, path)


def nothing_reported(run_dir: Path) -> str | None:
    """Why no trial of a run has a loss, in one line; None where one has."""
    _, trials, _ = load(run_dir)
    if any(trial.losses for trial in trials.by_id.values()):
        return None
    for trial in trials.by_id.values():
        if trial.status == FAILED:
            return f"no trial has reported a loss; the first that failed, {trial.trial_id}: {trial.reason}"
    return "no trial has reported a loss: all diverged"


def draw_parameters(trials: pd.DataFrame, names: list[str], path: Path) -> None:
    """The last val_loss against each hyper-parameter; full dots reached the full budget."""
    from matplotlib.figure import Figure

    shown = trials[trials["val_loss"].map(math.isfinite)]
    figure = Figure(figsize=(3.2 * len(names), 3), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), sharey=True, squeeze=False)[0], names, strict=True):
        for full, face in ((True, "C0"), (False, "none")):
            part = shown[(shown["status"] == COMPLETED) == full]
            axes.scatter(part[name], part["val_loss"], facecolors=face, edgecolors="C0")
        axes.set_xscale("log", base=2 if name == "batch_size" else 10)
        axes.set_xlabel(name)
    figure.axes[0].set_ylabel("last val_loss (nats per token)")
    save(figure, path)


def write_report(run_dir: Path) -> None:
    """Writes curves.png, parameters.png and report.html (one file, figures inside) into the run folder."""
    search, trials, _ = load(run_dir)
    table, history = tables(trials, search.config.seed)
    figures = []
    if not history.empty:
        draw_curves(history, trials, run_dir / "curves.png")
        draw_parameters(table, list(search.ranges), run_dir / "parameters.png")
        for name in ("curves.png", "parameters.png"):
            data = base64.b64encode((run_dir / name).read_bytes()).decode()
            figures.append(f'<p><img alt="{name}" src="data:image/png;base64,{data}"></p>')
    rows = table.drop(columns=["checkpoint"]).to_html(index=False, float_format=lambda value: f"{value:.4g}", na_rep="")
    title = html.escape(search.config.name)
    write_text(
        run_dir / "report.html",
        f"<!doctype html><meta charset=utf-8><title>{title}</title>"
        "<style>body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}td,th{padding:2px 8px;text-align:right}"
        "tr:nth-child(even){background:#f4f4f4}img{max-width:100%}</style>"
        f"<h1>{title}</h1><pre>{html.escape(summary(run_dir).strip())}</pre>{''.join(figures)}{rows}",
    )


def main() -> None:
    parser = Parser(prog="report.py", description="Prints a run's summary again and rewrites its figures and report.html.")
    parser.add_argument("run", help="run folder, experiments/runs/NAME")
    run_dir = Path(parser.parse_args().run).resolve()
    print(summary(run_dir))
    write_report(run_dir)


if __name__ == "__main__":
    run_command(main)
