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
"""The laws between which the exponents of Prior are a compromise; each with source, formula and range."""


@dataclass(frozen=True)
class Size:
    """A model and its training: parameters, and tokens of a whole training."""

    params: float
    tokens: float


@dataclass(frozen=True)
class Belief:
    """A number's mean and standard deviation before any run."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Prior:
    """Beliefs of the optimum's movement, the surfaces' skew, and how far an optimum lies off its power laws.

    The exponents' means are the carrying rule's.
    """

    rate_params: Belief
    rate_tokens: Belief
    batch_params: Belief
    batch_tokens: Belief
    skew: Belief  # k in tune/ladder/fit.py
    form_sd: float  # of log rate and log batch, at the runs
    form_sd_by_distance: float  # added for each unit of distance in log parameters and log tokens

    def form_sd_at(self, params: float, tokens: float) -> float:
        """Returns the standard deviation of an optimum off its power law, in log rate and in log batch alike.

        `params` and `tokens` are natural logarithms of the factors from the middle of the runs.
        """
        return math.hypot(self.form_sd, self.form_sd_by_distance * params, self.form_sd_by_distance * tokens)


LAW_PRIOR = Prior(
    rate_params=Belief(-0.5, 0.07),
    rate_tokens=Belief(0.2, 0.07),
    batch_params=Belief(0.0, 0.05),
    batch_tokens=Belief(0.5, 0.07),
    skew=Belief(2.0, 0.5),
    form_sd=0.05,
    form_sd_by_distance=0.1,
)
"""The prior from LOWEST_PARAMS on. Its standard deviations are the likeliest on the grids up to 215M parameters.

Those grids share one recipe (AdamW, cosine). Published laws of other recipes differ by more, .2 to .3 in an exponent.
"""

WIDE_PRIOR = Prior(
    rate_params=Belief(-0.3, 0.3),
    rate_tokens=Belief(0.2, 0.3),
    batch_params=Belief(0.0, 0.3),
    batch_tokens=Belief(0.35, 0.3),
    skew=Belief(1.0, 0.5),
    form_sd=0.2,
    form_sd_by_distance=0.15,
)
"""The prior where a run or the target has fewer than LOWEST_PARAMS parameters.

The skew is the better of 2, 1, .5 and 0 on two tables of .2M parameters. The exponents lie between those of LAW_PRIOR and
those of nine recorded tables of 98,304 and 786,432 parameters (experiments/ladder_tables.py): rate N^-.15 D^.25 and
batch D^.25. Their standard deviations are those between papers of other recipes, .2 to .3. The error of the form gives a
standard deviation of about .45 where parameters and tokens both grow eight times; no table tells it.
"""


def prior_for(sizes: list[Size]) -> Prior:
    """Returns WIDE_PRIOR if one of `sizes` is below LOWEST_PARAMS, else LAW_PRIOR."""
    return WIDE_PRIOR if min(size.params for size in sizes) < LOWEST_PARAMS else LAW_PRIOR


@dataclass(frozen=True)
class Movement:
    """Natural logarithms of the factors by which the optimum moves, with standard deviations."""

    log_rate: float
    log_batch: float
    log_rate_sd: float
    log_batch_sd: float


def movement(start: Size, end: Size) -> Movement:
    """Returns the carrying rule's movement from `start` to `end`: rate N^-.5 D^.2, batch D^.5.

    The standard deviations hold the exponents' priors and the error of the form.
    """
    prior = prior_for([start, end])
    params, tokens = math.log(end.params / start.params), math.log(end.tokens / start.tokens)
    form = prior.form_sd_at(params, tokens)
    return Movement(
        prior.rate_params.mean * params + prior.rate_tokens.mean * tokens,
        prior.batch_params.mean * params + prior.batch_tokens.mean * tokens,
        math.hypot(prior.rate_params.sd * params, prior.rate_tokens.sd * tokens, form),
        math.hypot(prior.batch_params.sd * params, prior.batch_tokens.sd * tokens, form),
    )


HIGHEST_RATE = 3e-3
"""Learning rate that Step Law's point may not exceed at its own batch: a caution, with no published source."""


def step_law_point(size: Size, batch_tokens: float | None = None) -> tuple[float, float]:
    """Returns Step Law's learning rate, and the batch in tokens a step: Step Law's, or `batch_tokens` if given.

    The rate is at most HIGHEST_RATE times the root of the batch over Step Law's.
    """
    law_batch = 0.58 * size.tokens**0.571
    batch = batch_tokens or law_batch
    return min(1.79 * size.params**-0.713 * size.tokens**0.307, HIGHEST_RATE * math.sqrt(batch / law_batch)), batch


def law_sds(size: Size) -> tuple[float, float]:
    """Returns how far laws alone may be off in log rate and log batch, as standard deviations.

    ln 2 for the rate from 50M parameters on, ln 2.5 from LOWEST_PARAMS, ln 3 below; ln 2 for the batch.
    """
    factor = 2.0 if size.params >= 50e6 else 2.5 if size.params >= LOWEST_PARAMS else 3.0
    return math.log(factor), math.log(2)
