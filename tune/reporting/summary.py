"""The answer of a search: facts for machines (summary.json, whose schema is summary.schema.json), and the same as text."""

import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

from myllm.datasets.data_paths import is_builtin
from myllm.system.files import disk_use
from tune.analysis.posterior import LEVEL
from tune.analysis.response_surface import axes_of, edges
from tune.analysis.results import leaderboard, posterior_summary
from tune.analysis.stopping_audit import audit_facts, audit_lines
from tune.config.overrides import FLAGS, merge
from tune.config.spec import SearchSpec
from tune.core.clock import search_seconds
from tune.core.trials import BASELINE_TRIAL, COMPILING, FAILED, RUNNING, UNLIMITED_TRIALS, Trials
from tune.text.commands import command
from tune.text.format import amount, format_settings

FORMAT = 1
TRUSTED = 0.9  # probability of being the best from which on it is said to be
ALIKE = 0.002  # share of the loss below which a wrong choice does not matter
TRUST = {"yes": "Yes.", "partly": "Partly.", "no": "No."}
"""what is said to whoever asks: can I rely on it?"""


def facts(run_dir: Path, search: SearchSpec, trials: Trials, events: list[dict]) -> dict[str, Any]:
    """All that is said of a search, in JSON's types; see summary.schema.json for what each means, with its unit."""
    config = search.options
    statuses = Counter("interrupted" if trial.status == RUNNING else trial.status for trial in trials.drawn)
    table = leaderboard(trials)
    found: dict[str, Any] = {
        "format": FORMAT,
        "name": config.name,
        "space": config.space,
        "preset": config.preset,
        "scheduler": config.scheduler,
        "seed": config.seed,
        "data": " ".join(config.train_file),
        "tokenizer": search.data.tokenizer,
        "ranges": search.range_texts,
        "fixed": list(config.set),
        "model": {"source": config.model, "sha256": search.model.sha256} if config.model else None,
        "moved": search.clipped_baseline,
        "budget_tokens": search.budget_tokens,
        "trials": {
            "begun": len(trials.drawn),
            "planned": trials.num_samples if trials.num_samples < UNLIMITED_TRIALS else None,
            "repeats": trials.replicates,
            "by_status": dict(sorted(statuses.items())),
        },
        "cost": {
            "seconds": search_seconds(events),
            "tokens": trials.tokens,
            "checkpoint_bytes": disk_use(run_dir / "ray"),
            "lost": sum(event["event"] == "worker_lost" for event in events),
        },
        "compiled": compiled_facts(events),
        "failed": {trial.trial_id: trial.reason for trial in trials.by_id.values() if trial.status == FAILED},
        "level": LEVEL,
        "best": None,
        "default": None,
        "gain": None,
        "audit": audit_facts(search, trials, events),
        "edges": [],
    }
    if not table.empty:
        belief = posterior_summary(table)

        def standing(trial_id: str) -> dict[str, Any]:
            row = table.loc[trial_id].drop("losses").to_dict() | (
                belief.loc[trial_id, ["low", "high", "probability_best", "regret"]].to_dict()
                if trial_id in belief.index
                else dict.fromkeys(("low", "high", "probability_best", "regret"), math.nan)
            )
            return {"trial_id": trial_id, "config": trials.by_id[trial_id].config} | {k: plain(v) for k, v in row.items()}

        best = table.index[0]
        found["best"] = standing(best) | {"share_of_budget": float(table["tokens_seen"].iloc[0] / search.budget_tokens)}
        found["best"]["rivals"] = len(belief)
        if BASELINE_TRIAL in table.index:
            found["default"] = standing(BASELINE_TRIAL)
        if BASELINE_TRIAL in table.index and best != BASELINE_TRIAL:
            low, high = belief.loc[best, ["gain_low", "gain_high"]] if best in belief.index else (math.nan, math.nan)
            mean = table.loc[BASELINE_TRIAL, "val_loss"] - table.loc[best, "val_loss"]
            found["gain"] = {"mean": plain(mean), "low": plain(low), "high": plain(high)}
        for edge in edges(axes_of(search), trials.by_id[best].config):
            found["edges"].append(
                {"hyper_parameter": edge.axis.name, "value": edge.value, "end": edge.end, "search_next": edge.flag}
            )
    found["trust"], found["verdict"] = trust(found)
    found["next"] = [{"what": what, "command": command} for what, command in commands(run_dir, search, trials, found)]
    return found


def compiled_facts(events: list[dict]) -> dict[str, Any] | None:
    """What compiling took, and what it gained: the medians of the processes. None where nothing was compiled."""
    found = [[event[name] for name in COMPILING] for event in events if COMPILING[0] in event]
    if not found:
        return None
    seconds, before, after = zip(*found, strict=True)
    gain = statistics.median(b / a for a, b in zip(before, after, strict=True))
    return {
        "seconds": list(seconds),
        "before": statistics.median(before),
        "after": statistics.median(after),
        "gain": gain,
    }


def plain(value: Any) -> Any:
    """A number of JSON's; None for one that is not finite."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rivals(best: dict[str, Any]) -> str:
    """With how many the best is compared, and how far they came."""
    share = best["share_of_budget"]
    came = "trained to the end" if share == 1 else f"came to {share:.3g} of the budget"
    return f"of the {best['rivals']} that {came}"


def trust(found: dict[str, Any]) -> tuple[str, str]:
    """(yes, partly or no; one sentence): whether the answer is to be relied on, and why."""
    best, default, gain = found["best"], found["default"], found["gain"]
    if best is None:
        return "no", "No answer yet: no trial has reported."
    share = best["share_of_budget"]
    guess = f"A first guess: no two trials came to the end, they are compared at {share:.3g} of the budget."
    if best["trial_id"] == BASELINE_TRIAL:
        if share < 1:
            return "no", guess
        return "partly", "No trial was better than the default: keep it, or search longer."
    if best["low"] is None:
        return "no", "Nothing was seen on two seeds yet, so luck and merit can't be told apart."
    if share < 1:
        return "no", guess
    names = " and ".join(edge["hyper_parameter"] for edge in found["edges"])
    where = f"lies at the edge of {names}'s range: better ones may lie beyond."
    edge = f" It {where}" if names else ""
    if default is None or gain is None or gain["low"] is None:
        return "partly", "The default did not come as far, so there is nothing to compare with." + edge
    if gain["low"] <= 0:
        return "no", "The default may be as good: the gain's interval includes zero." + edge
    if best["probability_best"] >= TRUSTED:
        words = ", and most likely the best that was tried."
    elif best["regret"] <= ALIKE * best["val_loss"]:
        words = f"; others may be as good, but choosing it costs at most about {best['regret']:.4f} nats."
    else:
        words = f"it is the best of those tried with probability {best['probability_best']:.2f} only."
        return "partly", f"Better than the default, that is sure; {words}{edge}"
    found_out = f"Better than the default{words}"
    return ("partly", f"{found_out} But it {where}") if names else ("yes", found_out)


def commands(run_dir: Path, search: SearchSpec, trials: Trials, found: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, command) of each way on, to be typed where the user stands; what the answer calls for first."""
    config = search.options
    planned = trials.num_samples < UNLIMITED_TRIALS
    more: tuple[str, ...] = ("--num_samples", str(2 * trials.num_samples)) if planned else ()
    if config.time_budget:  # of four times as much, half of which explores, new trials have some
        more += ("--time_budget", f"{(4 if planned else 2) * config.time_budget:g}")
    always = [("go on", command("tune/search.py", "--resume", run_dir, *more))]
    always.append(("read again", command("tune/report.py", run_dir)))
    best, known = found["best"], []
    if best is None:
        return always
    if found["trust"] != "yes" and best["share_of_budget"] == 1 and best["seeds"] < 2:
        known.append(("be sure", command("tune/search.py", "--resume", run_dir, "--replicate_best", "5")))
    if found["edges"]:
        flags: list[str | Path] = ["--space", config.space, "--preset", config.preset]
        if not is_builtin(config.train_file):
            flags += ["--train_file", *map(Path, search.data.train_file), "--val_file", *map(Path, search.data.val_file)]
            flags += ["--tokenizer", search.data.tokenizer]
            for name in ("token_dtype", "text_column"):
                flags += [f"--{name}", value] if (value := getattr(config, name)) else []
        flags += ["--budget_tokens", str(config.budget_tokens)] if config.budget_tokens else []
        flags += ["--model", config.model] if config.model else []
        wider: dict[str, list[str]] = {}
        for edge in found["edges"]:
            kind, text = edge["search_next"].removeprefix("--").split(" ", 1)
            wider.setdefault(kind, []).append(text)
        ranges = merge({kind: getattr(config, kind) for kind in FLAGS}, wider)
        flags += [word for kind, texts in ranges.items() if texts for word in (f"--{kind}", *texts)]
        known.append(("look beyond", command("tune/search.py", *flags, "--warm_start", run_dir)))
    train = command("myllm/training/trainer.py", "--config", run_dir / "best_config.json", "--save_model", "final.pth")
    return [*known, ("train the best", train), *always]


def _losses(standing: dict[str, Any]) -> str:
    low, high, seeds = standing["low"], standing["high"], standing["seeds"]
    sure = f"  ({LEVEL:.0%}: {low:.4f} to {high:.4f})" if low is not None else ""
    loss, bits = (math.inf if standing[name] is None else standing[name] for name in ("val_loss", "val_bpb"))
    text = f"val_loss {loss:.4f} nats/token{sure}  val_bpb {bits:.4f} bits/byte"
    return text + (f"  (mean of {seeds} seeds)" if seeds > 1 else "  (one seed)")


def compiled_words(compiled: dict[str, Any]) -> str:
    """How long compiling took, in how many processes, and the speed of forward and backward passes before and after."""
    seconds = sorted(compiled["seconds"])
    took = f"{seconds[0]:.0f} to {seconds[-1]:.0f} s in each of {len(seconds)} processes"
    took = f"{seconds[0]:.0f} s in one process" if len(seconds) == 1 else took
    return f"in {took}; {compiled['before']:,.0f} -> {compiled['after']:,.0f} tokens/s, {compiled['gain']:.2f} times"


def text(found: dict[str, Any], run_dir: Path) -> str:
    """The summary that is printed: what was searched, what was found beside the default, what it took, what comes next."""
    trials, cost, best, model = found["trials"], found["cost"], found["best"], found["model"]
    counted = ", ".join(f"{count} {status}" for status, count in trials["by_status"].items())
    planned = f" of {trials['planned']}" if trials["planned"] is not None else ""
    lines = [
        "",
        f"Search {found['name']}: space {found['space']}, preset {found['preset']}, scheduler {found['scheduler']}, "
        f"seed {found['seed']}, {found['data']} data, tokenizer {found['tokenizer']}",
        f"  searched  {'; '.join(f'{name} {values}' for name, values in found['ranges'].items())}",
        *([f"  fixed     {'; '.join(found['fixed'])}"] if found["fixed"] else []),
        *([f"  model     {model['source']} (sha256 {model['sha256'][:8]})"] if model else []),
        f"  trials    {trials['begun']}{planned}: {counted}",
        f"  took      {cost['seconds']:,.0f} s, {amount(cost['tokens'])} tokens "
        f"({amount(found['budget_tokens'])} a full training), {cost['checkpoint_bytes'] / 1e6:,.1f} MB of checkpoints",
    ]
    if found["compiled"]:
        lines.append(f"  compiled  {compiled_words(found['compiled'])}")
    if best is None:
        lines.append("  best      none yet: no trial has reported")
    else:
        early = "" if best["share_of_budget"] == 1 else f", compared at {best['share_of_budget']:.3g} of the budget"
        lines.append(f"  best      trial {best['trial_id']}: {format_settings(best['config'])}{early}")
        lines.append(f"            {_losses(best)}")
    if found["default"]:
        lines.append(f"  default   trial {BASELINE_TRIAL}: {format_settings(found['default']['config'])}")
        if found["moved"]:
            values = ", ".join(f"{name} {value}" for name, value in found["moved"].items())
            lines.append(f"            nearest to the {'model' if model else 'preset'}'s {values}, outside of the ranges")
        lines.append(f"            {_losses(found['default'])}")
    if found["gain"]:
        gain = found["gain"]
        size = "more than can be said" if gain["mean"] is None else f"{gain['mean']:.4f} nats/token"
        sure = f"  ({LEVEL:.0%}: {gain['low']:.4f} to {gain['high']:.4f})" if gain["low"] is not None else ""
        lines.append(f"  gain      {size} over the default{sure}")
        if best["probability_best"] is not None:
            of = rivals(best)
            lines.append(f"            the best {of} with probability {best['probability_best']:.2f}")
        else:
            lines.append("            on one seed: flattered by selection")
    lines.append(f"  trust     {TRUST[found['trust']]} {found['verdict']}")
    for edge in found["edges"]:
        lines.append(
            f"  edge      {edge['hyper_parameter']} {edge['value']:.4g} is at its range's end; next {edge['search_next']}"
        )
    if found["audit"]:
        first, *rest = audit_lines(found["audit"])
        lines += [f"  audit     {first}", *(f"            {line}" for line in rest)]
    if cost["lost"]:
        times = f"{cost['lost']} times a trial's process or machine; it went on from its last checkpoint (error-*.txt)"
        lines.append(f"  lost      {times}")
    for trial_id, reason in found["failed"].items():
        lines.append(f"  failed    trial {trial_id}: {reason} (error-{trial_id}.txt)")
    lines.append("  next")
    width = max(len(row["what"]) for row in found["next"])
    lines += [f"    {row['what']:{width}}  {row['command']}" for row in found["next"]]
    return "\n".join(lines)
