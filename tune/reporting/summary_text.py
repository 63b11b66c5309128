"""The summary of a search as text for a terminal."""

import math
from collections.abc import Iterator

from tune.analysis.posterior import LEVEL
from tune.reporting.audit_text import audit_lines
from tune.reporting.summary import Best, Compiled, Gain, Standing, Summary
from tune.text.format import amount, format_settings

CONFIDENCE = {"yes": "Yes.", "partly": "Partly.", "no": "No."}
"""the answers to: can I rely on it?"""


def summary_text(summary: Summary) -> str:
    """Returns the printed summary: what was searched, what was found, what it cost, and the next commands."""
    lines = [*_searched(summary), *_found(summary), *_remarks(summary)]
    width = max(len(step.what) for step in summary.next)
    steps = [f"    {step.what:{width}}  {step.command}" for step in summary.next]
    return "\n".join(["", _title(summary), *(f"  {label:<10}  {text}" for label, text in lines), "  next", *steps])


def _title(summary: Summary) -> str:
    return (
        f"Search {summary.name}: space {summary.space}, preset {summary.preset}, scheduler {summary.scheduler}, "
        f"seed {summary.seed}, {summary.data} data, tokenizer {summary.tokenizer}"
    )


def _searched(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yields (label, text) of what was asked for and used."""
    trials, cost = summary.trials, summary.cost
    yield "searched", "; ".join(f"{name} {values}" for name, values in summary.ranges.items())
    if summary.fixed:
        yield "fixed", "; ".join(summary.fixed)
    if summary.model:
        yield "model", f"{summary.model.source} (sha256 {summary.model.sha256[:8]})"
    planned = "" if trials.planned is None else f" of {trials.planned}"
    counts = ", ".join(f"{count} {status}" for status, count in trials.by_status.items())
    yield "trials", f"{trials.begun}{planned}: {counts}"
    used = f"{cost.seconds:,.0f} s, {amount(cost.tokens)} tokens ({amount(summary.budget_tokens)} a full training)"
    yield "took", f"{used}, {cost.checkpoint_bytes / 1e6:,.1f} MB of checkpoints"
    if summary.compiled:
        yield "compiled", compiled_words(summary.compiled)


def _found(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yields (label, text) of the best configuration, the baseline, and how they compare."""
    best, baseline = summary.best, summary.baseline
    if best is None:
        yield "best", "none yet: no trial has reported"
    else:
        early = "" if best.share_of_budget == 1 else f", compared at {best.share_of_budget:.3g} of the budget"
        yield "best", f"trial {best.trial_id}: {format_settings(best.config)}{early}"
        yield "", _loss(best)
    if baseline:
        yield "baseline", f"trial {baseline.trial_id}: {format_settings(baseline.config)}"
        if summary.moved:
            values = ", ".join(f"{name} {value}" for name, value in summary.moved.items())
            yield "", f"nearest to the {'model' if summary.model else 'preset'}'s {values}, outside of the ranges"
        yield "", _loss(baseline)
    if best and summary.gain:
        yield "gain", _gain(summary.gain)
        likely = f"the best {compared(best)} with probability {best.probability_best:.2f}" if best.probability_best else ""
        yield "", likely or "on one seed: flattered by selection"
    yield "confidence", f"{CONFIDENCE[summary.confidence]} {summary.verdict}"


def _remarks(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yields (label, text) of what else the user should know."""
    for edge in summary.edges:
        yield "edge", f"{edge.hyper_parameter} {edge.value:.4g} is at its range's end; next {edge.search_next}"
    if summary.audit:
        for number, line in enumerate(audit_lines(summary.audit)):
            yield "" if number else "audit", line
    if lost := summary.cost.lost:
        yield "lost", f"{lost} times a trial's process or machine; it went on from its last checkpoint (error-*.txt)"
    for trial_id, reason in summary.failed.items():
        yield "failed", f"trial {trial_id}: {reason} (error-{trial_id}.txt)"


def compared(best: Best) -> str:
    """Returns how many configurations the best is compared with, and how far they came."""
    share = best.share_of_budget
    return (
        f"of the {best.compared_with} that {'trained to the end' if share == 1 else f'came to {share:.3g} of the budget'}"
    )


def interval_words(one: Standing | Gain) -> str:
    """Returns an interval in nats per token; empty where it is not known."""
    return "" if one.low is None or one.high is None else f"{one.low:.4f} to {one.high:.4f}"


def _interval(one: Standing | Gain) -> str:
    return f"  ({LEVEL:.0%}: {words})" if (words := interval_words(one)) else ""


def _loss(standing: Standing) -> str:
    loss, bits = (math.inf if value is None else value for value in (standing.val_loss, standing.val_bpb))
    seeds = f"mean of {standing.seeds} seeds" if standing.seeds > 1 else "one seed"
    return f"val_loss {loss:.4f} nats/token{_interval(standing)}  val_bpb {bits:.4f} bits/byte  ({seeds})"


def _gain(gain: Gain) -> str:
    size = "more than can be said" if gain.mean is None else f"{gain.mean:.4f} nats/token"
    return f"{size} over the baseline{_interval(gain)}"


def compiled_words(compiled: Compiled) -> str:
    """Returns how long compiling took, in how many processes, and the speed before and after."""
    seconds = sorted(compiled.seconds)
    took = f"{seconds[0]:.0f} to {seconds[-1]:.0f} s in each of {len(seconds)} processes"
    took = f"{seconds[0]:.0f} s in one process" if len(seconds) == 1 else took
    return f"in {took}; {compiled.before:,.0f} -> {compiled.after:,.0f} tokens/s, {compiled.gain:.2f} times"
