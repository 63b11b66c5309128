"""The stopping audit in words."""

from collections.abc import Iterator, Sequence

from tune.analysis.posterior import LEVEL
from tune.analysis.stopping_audit import FEWEST, Audit, RungQuality, ShareBelow, StoppingCost
from tune.text.format import amount, share_text

RELIABLE = 0.9  # probability of keeping the best from which on a rung counts as reliable


def audit_lines(audit: Audit) -> list[str]:
    """Returns the audit as lines of text."""
    return list(_lines(audit))


def _lines(audit: Audit) -> Iterator[str]:
    yield (
        f"{audit.ended} of the {audit.left_behind} left behind, drawn by lot, went on to the end: "
        f"{audit.seconds:,.0f} s, {amount(audit.tokens)} tokens; it decided nothing"
    )
    if audit.below_best and audit.below_worst and audit.cost:
        yield _shares(audit.below_best, audit.below_worst)
        yield _cost(audit.cost)
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


def _shares(best: ShareBelow, worst: ShareBelow) -> str:
    return (
        f"{best.count} of them ended below the best: of all left behind {best.low:.0%} to {best.high:.0%} "
        f"would have ({LEVEL:.0%}); {worst.count} below the worst that was finished: {worst.low:.0%} to {worst.high:.0%}"
    )


def _cost(cost: StoppingCost) -> str:
    high = f"to {cost.high:.4f}" if cost.high is not None else "or more"
    said = f"had all gone on, the lowest had ended {cost.low:.4f} {high} nats/token below the best"
    if cost.high == 0:
        said = "by their losses where they were left, none had ended below the best"
    return f"{said} ({LEVEL:.0%}; luck included)"


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
