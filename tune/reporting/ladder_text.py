"""The answer of a ladder in words, for the printed summary and for the page."""

from collections.abc import Iterator

from myllm.scaling_laws import LOWEST_PARAMS
from myllm.text.format import amount, size_text
from tune.ladder.answer import FARTHEST_LOSS, Interval
from tune.reporting.ladder import LadderCheck, LadderSummary


def ladder_lines(ladder: LadderSummary) -> Iterator[tuple[str, str]]:
    """Yields (label, text) of the target, its answer, the levels, the verification and the forecast."""
    size = f"{size_text(ladder.params)} parameters without embeddings and head, {amount(ladder.tokens)} tokens"
    yield "target", f"{ladder.target}: {size}; the ladder took {ladder.share:.1%} of its compute"
    for number, level in enumerate(ladder.levels):
        text = f"{level.model}: {level.runs} of {level.planned} runs of {amount(level.tokens)} tokens"
        if level.val_loss is not None:
            text += (
                f", lowest val_loss {level.val_loss:.4f} at learning_rate {level.learning_rate:.4g}"
                f"  batch_size {level.batch_size}"
            )
        yield "" if number else "levels", text
    yield from _answer(ladder)
    for number, check in enumerate(ladder.checks):
        for line_number, line in enumerate(check_lines(check)):
            yield "" if number or line_number else "verified", line
    if ladder.stability:
        yield "stability", stability_words(ladder)
    for number, note in enumerate(ladder.notes):
        yield "" if number else "note", note
    if ladder.truth:
        yield "came out", truth_words(ladder)


def _answer(ladder: LadderSummary) -> Iterator[tuple[str, str]]:
    rate, batch, loss, regret = ladder.learning_rate, ladder.batch_tokens, ladder.loss, ladder.expected_regret
    if rate is None or batch is None or loss is None or regret is None:
        yield "answer", "none yet: too few runs have ended"
        return
    share = ladder.share_from_runs
    rest = "published laws" if ladder.params >= LOWEST_PARAMS else "this project's small trainings"
    yield "answer", f"learning_rate {rate.value:.4g}{_interval(rate)}; {_source(share['learning_rate'], rest)}"
    yield (
        "",
        (
            f"batch_size {ladder.batch_size} windows, the power of two nearest to {batch.value:,.0f} tokens a step"
            f"{_interval(batch, ',.0f')}; {_source(share['batch_tokens'], rest)}"
        ),
    )
    for name, words in ladder.kept.items():
        yield "", f"{name} {words} (a rule, not measured)"
    promise = "" if ladder.compute_ratio <= FARTHEST_LOSS else "; no promise so far beyond the top level"
    yield "forecast", f"val_loss {loss.value:.4f} nats/token{_interval(loss, '.4f')}{promise}"
    yield "", f"expected to be {regret:.4f} nats/token above the target's best rate and batch"


def _interval(one: Interval, form: str = ".4g") -> str:
    return f"  (90%: {one.low:{form}} to {one.high:{form}})"


def _source(share: float, rest: str) -> str:
    """Says how much of an answer came from runs, and how much from the `rest`."""
    return f"{share:.0%} from runs, {1 - share:.0%} from {rest}"


def check_lines(check: LadderCheck) -> Iterator[str]:
    """Yields the verification of one level as lines of text."""
    rate, batch, loss = check.learning_rate, check.batch_tokens, check.loss
    yield f"{check.model}: {'all came out as predicted' if check.holds else 'NOT as predicted'}"
    yield f"learning rate {rate.low:.3g} to {rate.high:.3g} was predicted, {check.found_rate:.3g} came out"
    yield f"batch {batch.low:,.0f} to {batch.high:,.0f} tokens was predicted, {check.found_batch:,.0f} came out"
    yield f"val_loss {loss.low:.4f} to {loss.high:.4f} was predicted, {check.found_loss:.4f} came out"
    seen = (("rate", check.twice_rate), ("batch", check.twice_batch))
    if shown := [f"at twice the {name} {rise:+.4f} nats/token" for name, rise in seen if rise is not None]:
        yield ", ".join(shown)


def stability_words(ladder: LadderSummary) -> str:
    """Says at which learning rates the target's short trainings were stable."""
    seen = ", ".join(f"{rate} {'stable' if stable else 'NOT stable'}" for rate, stable in ladder.stability.items())
    return f"of the target in short trainings, by learning rate: {seen}"


def verification_lines(ladder: LadderSummary) -> Iterator[str]:
    """Yields the page's lines on what was predicted and came out, on stability, and the notes."""
    for check in ladder.checks:
        yield from check_lines(check)
    if ladder.stability:
        yield f"stability {stability_words(ladder)}"
    yield from ladder.notes


def truth_words(ladder: LadderSummary) -> str:
    """Says what came out of the target's training beside what was forecast; empty without a training."""
    truth, forecast = ladder.truth, ladder.loss
    if truth is None or forecast is None:
        return ""
    if not truth.ended:
        return f"nothing yet: {truth.path} is at {amount(truth.tokens_seen)} of {amount(ladder.tokens)} tokens"
    place = "inside" if truth.inside else "outside"
    return (
        f"val_loss {truth.val_loss:.4f} nats/token, {truth.difference:+.1%} of the forecast {forecast.value:.4f},"
        f" {place} its interval {forecast.low:.4f} to {forecast.high:.4f} ({truth.path})"
    )


def ladder_config(ladder: LadderSummary) -> list[tuple[str, float | int | None]]:
    """Returns the names and values of the answer's settings, for the page's large tiles."""
    rate = ladder.learning_rate
    return [] if rate is None else [("learning_rate", rate.value), ("batch_size", ladder.batch_size)]


def ladder_tiles(ladder: LadderSummary) -> Iterator[tuple[str, str, str]]:
    """Yields name, value and small print of the page's small tiles."""
    rate, batch, loss = ladder.learning_rate, ladder.batch_tokens, ladder.loss
    if rate is None or batch is None or loss is None:
        return
    shares = ladder.share_from_runs
    yield "learning rate, 90%", f"{rate.low:.3g} to {rate.high:.3g}", f"{shares['learning_rate']:.0%} from runs"
    yield "batch, 90%", f"{batch.low:,.0f} to {batch.high:,.0f}", f"tokens a step; {shares['batch_tokens']:.0%} from runs"
    yield "loss to expect, nats per token", f"{loss.value:.4f}", f"90%: {loss.low:.4f} to {loss.high:.4f}"
    if ladder.truth and ladder.truth.ended:
        yield "loss that came out", f"{ladder.truth.val_loss:.4f}", f"{ladder.truth.difference:+.1%} of the forecast"
    yield "compute, of the target's", f"{ladder.share:.1%}", f"the target takes {ladder.compute_ratio:,.0f} times the top's"
