"""The summary of a search, and of its audit, in words."""

import math
from collections.abc import Iterator, Sequence

from myllm.text.format import amount, format_settings, share_text
from tune.analysis.posterior import LEVEL
from tune.analysis.stopping_audit import FEWEST, Audit, RungQuality
from tune.reporting.ladder_text import ladder_lines
from tune.reporting.summary import Best, Compiled, Faster, Gain, Standing, Summary

CONFIDENCE = {"yes": "Yes.", "partly": "Partly.", "no": "No."}  # the answers to: can I rely on it?
RELIABLE = 0.9  # probability of keeping the best from which on a rung counts as reliable


def summary_text(summary: Summary) -> str:
    """Returns the printed summary: what was searched, what was found, what it cost, and the next commands."""
    lines = [*_searched(summary), *_found(summary), *_remarks(summary)]
    width = max(len(step.what) for step in summary.next)
    steps = [f"    {step.what:{width}}  {step.command}" for step in summary.next]
    space = f"space {summary.space}, preset {summary.preset}, scheduler {summary.scheduler}"
    data = f", {summary.data} data, tokenizer {summary.tokenizer}"
    if summary.program:
        space, data = f"{summary.program}, scheduler {summary.scheduler}", ""
    title = f"Search {summary.name}: {'a ladder' if summary.ladder else space}, seed {summary.seed}{data}"
    return "\n".join(["", title, *(f"  {label:<10}  {text}" for label, text in lines), "  next", *steps])


def _searched(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yields (label, text) of what was asked for and used."""
    trials, cost = summary.trials, summary.cost
    if not summary.ladder:
        yield "searched", "; ".join(f"{name} {values}" for name, values in summary.ranges.items())
    if summary.fixed:
        yield "fixed", "; ".join(summary.fixed)
    if summary.model:
        yield "model", f"{summary.model.source} (sha256 {summary.model.sha256[:8]})"
    planned = "" if trials.planned is None else f" of {trials.planned}"
    counts = ", ".join(f"{count} {status}" for status, count in trials.by_status.items())
    yield "trials", f"{trials.begun}{planned}: {counts}"
    length = f"{summary.budget_seconds:g} s" if summary.budget_seconds else amount(summary.budget_tokens or 0)
    used = f"{cost.seconds:,.0f} s, {amount(cost.tokens)} {summary.unit} ({length} a full training)"
    yield "took", f"{used}, {cost.checkpoint_bytes / 1e6:,.1f} MB of checkpoints"
    if summary.compiled:
        yield "compiled", compiled_words(summary.compiled)


def _found(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yields (label, text) of the best configuration, the baseline, and how they compare."""
    best, baseline = summary.best, summary.baseline
    if summary.ladder:
        yield from ladder_lines(summary.ladder)
    elif best is None:
        yield "best", "none yet: no trial has reported"
    else:
        early = "" if best.share_of_budget == 1 else f", compared at {best.share_of_budget:.3g} of the budget"
        yield "best", f"trial {best.trial_id}: {format_settings(best.config)}{early}"
        yield "", _loss(best, summary)
        if best.in_one_piece is not None:
            yield "", f"val_loss {best.in_one_piece:.4f} in one piece from the beginning, as its command below trains it"
    if baseline:
        yield "baseline", f"trial {baseline.trial_id}: {format_settings(baseline.config)}"
        if summary.moved:
            values = ", ".join(f"{name} {value}" for name, value in summary.moved.items())
            whose = "--baseline" if summary.program else f"the {'model' if summary.model else 'preset'}'s"
            yield "", f"nearest to {whose} {values}, outside of the ranges"
        yield "", _loss(baseline, summary)
    if best and summary.gain:
        mean = summary.gain.mean
        size = "more than can be said" if mean is None else f"{mean:.4f}{loss_unit(summary)}"
        yield "gain", f"{size} over the baseline{_interval(summary.gain)}"
        likely = f"the best {compared(best)} with probability {best.probability_best:.2f}" if best.probability_best else ""
        yield "", likely or "on one seed: flattered by selection"
    yield "confidence", f"{CONFIDENCE[summary.confidence]} {summary.verdict}"


def _remarks(summary: Summary) -> Iterator[tuple[str, str]]:
    """Yields (label, text) of what else the user should know."""
    if summary.faster and summary.best:
        yield "faster", faster_words(summary.faster, summary.best)
    for edge in summary.edges:
        yield "edge", f"{edge.hyper_parameter} {edge.value:.4g} is at its range's end; next {edge.search_next}"
    if summary.audit:
        for number, line in enumerate(audit_lines(summary.audit, summary.unit, loss_unit(summary))):
            yield "" if number else "audit", line
    if lost := summary.cost.lost:
        yield "lost", f"{lost} times a trial's process or machine; it went on from its last checkpoint (error-*.txt)"
    for trial_id, reason in summary.failed.items():
        yield "failed", f"trial {trial_id}: {reason} (error-{trial_id}.txt)"


def faster_words(faster: Faster, best: Best) -> str:
    """Returns which configuration within the noise of the best is faster: its settings that differ most plainly."""
    config = faster.config
    changed = {name: value for name, value in config.items() if value != best.config.get(name)}
    told = {name: value for name, value in changed.items() if not isinstance(value, float)} or changed
    behind = f"{faster.behind:.4f} behind" if faster.behind > 0 else "no loss behind"
    return (
        f"{format_settings(told)} (trial {faster.trial_id}): {behind}, within the noise, {faster.times:.1f} times as fast"
    )


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


def loss_unit(summary: Summary) -> str:
    """Returns what stands behind a loss: its unit where that is known."""
    return "" if summary.program else " nats/token"


def seeds_words(standing: Standing, summary: Summary) -> str:
    """Says on how many seeds a loss stands; of a program on how many trainings, as it may have no seed."""
    return f"{standing.seeds} {'trainings' if summary.program else 'seeds'}" if standing.seeds > 1 else "one seed"


def _loss(standing: Standing, summary: Summary) -> str:
    loss, bits = (math.inf if value is None else value for value in (standing.val_loss, standing.val_bpb))
    seeds = f"{'mean of ' if standing.seeds > 1 else ''}{seeds_words(standing, summary)}"
    bits_words = "" if summary.program else f"  val_bpb {bits:.4f} bits/byte"
    return f"val_loss {loss:.4f}{loss_unit(summary)}{_interval(standing)}{bits_words}  ({seeds})"


def compiled_words(compiled: Compiled) -> str:
    """Returns how long compiling took, in how many processes, and the speed before and after."""
    seconds = sorted(compiled.seconds)
    took = f"{seconds[0]:.0f} to {seconds[-1]:.0f} s in each of {len(seconds)} processes"
    took = f"{seconds[0]:.0f} s in one process" if len(seconds) == 1 else took
    return f"in {took}; {compiled.before:,.0f} -> {compiled.after:,.0f} tokens/s, {compiled.gain:.2f} times"


def audit_lines(audit: Audit, unit: str = "tokens", loss_unit: str = " nats/token") -> Iterator[str]:
    """Yields the audit as lines of text; the units are those of the budget and of the loss."""
    yield (
        f"{audit.ended} of the {audit.left_behind} left behind, drawn by lot, went on to the end: "
        f"{audit.seconds:,.0f} s, {amount(audit.tokens)} {unit}; it decided nothing"
    )
    best, worst, cost = audit.below_best, audit.below_worst, audit.cost
    if best and worst and cost:
        yield (
            f"{best.count} of them ended below the best: of all left behind {best.low:.0%} to {best.high:.0%} "
            f"would have ({LEVEL:.0%}); "
            f"{worst.count} below the worst that was finished: {worst.low:.0%} to {worst.high:.0%}"
        )
        high = f"to {cost.high:.4f}" if cost.high is not None else "or more"
        said = f"had all gone on, the lowest had ended {cost.low:.4f} {high}{loss_unit} below the best"
        if cost.high == 0:
            said = "by their losses where they were left, none had ended below the best"
        yield f"{said} ({LEVEL:.0%}; luck included)"
    elif audit.ended:
        yield "no two trials of the search itself came to the end: nothing to compare them with"
    if audit.better:
        trial = audit.better[0]
        yield (
            f"trial {trial.trial_id} ended at {trial.val_loss:.4f}, below the best, on one seed: an audit names no best; "
            "its settings are in trials.csv"
        )
    if audit.rungs:
        each = (f"{share_text(r.share, 1)} {r.correlation:.2f} ({r.low:.2f} to {r.high:.2f})" for r in audit.rungs)
        yield f"rank correlation with the end at {', '.join(each)}"
    elif audit.ended:
        yield (
            f"too few were audited to say how rungs ranked: {FEWEST} at least, "
            "search.py --resume with a larger --audit_fraction"
        )
    if judged := rung_verdict(audit.rungs):
        yield judged


def rung_verdict(rungs: Sequence[RungQuality]) -> str:
    """Says how well the search's rungs ranked, and which rung would have been better; empty for a search without rungs."""
    own = [(rung.kept[str(rung.one_in)], rung, rung.one_in) for rung in rungs if rung.one_in]
    if not own:
        return ""
    probability, weakest, one_in = min(own, key=lambda row: row[0])
    if probability >= RELIABLE:
        return f"The rungs ranked well: each kept what ends best with probability {probability:.2f} or more."
    where = share_text(weakest.share, 1)
    said = f"The rung at {where}, one in {one_in}, keeps what ends best with probability {probability:.2f}"
    for rung in rungs:
        if rung.share > weakest.share and (kept := rung.kept[str(one_in)]) >= RELIABLE:
            return f"{said}; one at {share_text(rung.share, 1)} instead would have with {kept:.2f}."
    softer = [factor for factor in map(int, weakest.kept) if factor < one_in and weakest.kept[str(factor)] >= RELIABLE]
    if softer:
        return f"{said}; one in {max(softer)} there with {weakest.kept[str(max(softer))]:.2f}."
    return f"{said}; none of those looked at would have with {RELIABLE:.2f}."
