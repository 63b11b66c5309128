"""Published laws of the best learning rate and batch, and the rule that carries both from one size to another.

Parameters are counted without embeddings and head. Tokens are the tokens of one training. A batch is in tokens a step.
"""

import math
from dataclasses import dataclass

LOWEST_PARAMS = 10e6
"""Parameters below which no published law of the rate holds."""

PUBLISHED_LAWS = {
    "Step Law": "arXiv 2503.04715: rate 1.79 N^-.713 D^.307, batch .58 D^.571; 60M to 1B parameters",
    "DeepSeek": "arXiv 2401.02954: rate .3118 C^-.125, batch .292 C^.327, C = 6 N D; 1e17 to 2e19 FLOPs",
    "Porian": "arXiv 2406.19146: rate .0047 (N/108M)^-1/3, batch 160 x 2048 (N/108M)^2/3; 20 tokens a parameter",
    "Bjorck": "arXiv 2409.19913: rate N^-.23 D^-.32 at a fixed batch; 50M to 2.7B parameters",
    "Power Lines": "arXiv 2505.13738: batch D^.383; 111M to 3.3B parameters",
    "Critical batch": "arXiv 2410.21676: the batch grows with the tokens and hardly with the parameters; 85M to 1.2B",
    "muP": "arXiv 2203.03466: rate 1 / width, which is N^-1/2 at one depth and N^-1/3 at one shape",
}
"""The laws between which the exponents of LAW_RULE are a compromise; each with source, formula and range."""


@dataclass(frozen=True)
class Size:
    """A model and its training: parameters, and tokens of a whole training."""

    params: float
    tokens: float


@dataclass(frozen=True)
class Rule:
    """Exponents by which the best learning rate and batch move with parameters N and tokens D, and the rule's error.

    The standard deviations are those of log rate and of log batch: at any distance, then for each unit of log N and log D.
    """

    rate_params: float
    rate_tokens: float
    batch_tokens: float
    rate_sds: tuple[float, float, float]
    batch_sds: tuple[float, float, float]


LAW_RULE = Rule(-0.5, 0.2, 0.5, rate_sds=(0.11, 0.2, 0.14), batch_sds=(0.02, 0.1, 0.19))
"""The carrying rule from LOWEST_PARAMS on, a compromise of the published laws.

Its standard deviations are the likeliest on pairs of public grids up to 268M parameters (experiments/results/ladder.md).
That of the rate by log N is the spread of the published exponents, -1/3 to -.71: those grids grow 4.5 times at most.
"""

SMALL_RULE = Rule(-0.25, 0.25, 0.4, rate_sds=(0.5, 0.15, 0.15), batch_sds=(0.5, 0.15, 0.15))
"""The movement below LOWEST_PARAMS, from this project's own trainings of 31k to 840k parameters on five corpora.

Best rates and batches of one size differ by .5 between corpora and from the rule. Exponents are uncertain by .15
(experiments/results/ladder-live.md). From 1M to 10M parameters nothing was trained.
"""


@dataclass(frozen=True)
class Movement:
    """Natural logarithms of the factors by which the optimum moves, with standard deviations."""

    log_rate: float
    log_batch: float
    log_rate_sd: float
    log_batch_sd: float


def is_small(*sizes: Size) -> bool:
    """Returns True if one of `sizes` is below LOWEST_PARAMS, where no published law of the rate holds."""
    return min(size.params for size in sizes) < LOWEST_PARAMS


SMALL_SIZE = Size(98_304, 524_288)
SMALL_POINT = 2e-3, 200.0
"""Learning rate and batch, in tokens a step, that were best at SMALL_SIZE in this project's own trainings."""


LEAST_DISTANCE = 72.0
"""Learning rate times tokens below which a small training is too short for the rate of SMALL_RULE.

In trainings of 15k and 29k tokens the best rate was two and four times that of 131k and more: weights must come as far in
fewer steps.
"""


def short_training(size: Size) -> float:
    """Returns the natural logarithm of the factor by which the best rate of a short training lies above SMALL_RULE.

    It is 0 from LOWEST_PARAMS on, and next to 0 from 200k tokens on.
    """
    if not is_small(size):
        return 0.0
    params, tokens = size.params / SMALL_SIZE.params, size.tokens / SMALL_SIZE.tokens
    rate = SMALL_POINT[0] * params**SMALL_RULE.rate_params * tokens**SMALL_RULE.rate_tokens
    return math.log(math.hypot(1.0, LEAST_DISTANCE / size.tokens / rate))


def movement(start: Size, end: Size) -> Movement:
    """Returns the movement of the optimum from `start` to `end` by LAW_RULE, or by SMALL_RULE if one is small.

    SMALL_RULE counts short trainings as well.
    """
    rule = SMALL_RULE if is_small(start, end) else LAW_RULE
    params, tokens = math.log(end.params / start.params), math.log(end.tokens / start.tokens)
    rate_sd, batch_sd = (
        math.hypot(always, by_params * params, by_tokens * tokens)
        for always, by_params, by_tokens in (rule.rate_sds, rule.batch_sds)
    )
    log_rate = rule.rate_params * params + rule.rate_tokens * tokens
    if rule is SMALL_RULE:
        log_rate += short_training(end) - short_training(start)
    return Movement(log_rate, rule.batch_tokens * tokens, rate_sd, batch_sd)


HIGHEST_RATE = 3e-3
"""Learning rate that Step Law's point may not exceed at its own batch: a caution, with no published source."""


def step_law_point(size: Size, batch_tokens: float | None = None) -> tuple[float, float]:
    """Returns Step Law's learning rate, and the batch in tokens a step: Step Law's, or `batch_tokens` if given.

    The rate is at most HIGHEST_RATE times the root of the batch over Step Law's.
    """
    law_batch = 0.58 * size.tokens**0.571
    batch = batch_tokens or law_batch
    return min(1.79 * size.params**-0.713 * size.tokens**0.307, HIGHEST_RATE * math.sqrt(batch / law_batch)), batch


def reference_point(size: Size) -> tuple[float, float]:
    """Returns the learning rate and the batch, in tokens a step, that are expected to be best before any run.

    They are Step Law's; below LOWEST_PARAMS SMALL_POINT, moved by SMALL_RULE.
    """
    if not is_small(size):
        return step_law_point(size)
    move = movement(SMALL_SIZE, size)
    return SMALL_POINT[0] * math.exp(move.log_rate), SMALL_POINT[1] * math.exp(move.log_batch)


def law_sds(size: Size) -> tuple[float, float]:
    """Returns how far laws alone may be off in log rate and log batch, as standard deviations.

    ln 2 for the rate from 50M parameters on, ln 2.5 from LOWEST_PARAMS, ln 3 below; ln 2 for the batch.
    """
    factor = 2.0 if size.params >= 50e6 else 2.5 if size.params >= LOWEST_PARAMS else 3.0
    return math.log(factor), math.log(2)


def reference_sds(size: Size) -> tuple[float, float]:
    """Returns how far `reference_point` may be off in log rate and log batch, as standard deviations."""
    if not is_small(size):
        return law_sds(size)
    move = movement(SMALL_SIZE, size)
    return move.log_rate_sd, move.log_batch_sd
