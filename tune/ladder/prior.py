"""What is believed of loss surfaces before any run: one prior for sizes of the published laws, one for smaller models."""

import math
from dataclasses import dataclass

from myllm.scaling_laws import LAW_RULE, SMALL_RULE, Size, is_small


@dataclass(frozen=True)
class Belief:
    """A number's mean and standard deviation before any run."""

    mean: float
    sd: float


@dataclass(frozen=True)
class Prior:
    """Beliefs about surfaces, the movement of their optimum, and the noise. Curvatures are those of log loss."""

    rate_params: Belief  # exponents of the best rate and batch
    rate_tokens: Belief
    batch_params: Belief
    batch_tokens: Belief
    log_rate_curvature: Belief
    log_batch_curvature: Belief
    rho: Belief  # log rate's optimum by log batch; 0 to .5 published
    skew: Belief  # k in tune/ladder/fit.py
    loss_params: Belief  # exponents of the lowest loss
    loss_tokens: Belief
    level_sd: float  # of a level's log loss off its power laws
    seed_noise: float  # standard deviation between seeds, in nats, before replicates are seen
    form_sd: float  # of log rate and log batch off their power laws, at the runs
    form_sd_by_distance: float  # added for each unit of distance in log parameters and log tokens
    has_reference: bool = False  # True: the target's optimum is believed to lie around reference_point
    centre_sd: float = math.log(4)  # of the optimum around the best sixth of the runs

    def form_sd_at(self, params: float, tokens: float) -> float:
        """Returns the standard deviation of an optimum off its power law, in log rate and in log batch alike.

        `params` and `tokens` are natural logarithms of the factors from the middle of the runs.
        """
        return math.hypot(self.form_sd, self.form_sd_by_distance * params, self.form_sd_by_distance * tokens)


LAW_PRIOR = Prior(
    rate_params=Belief(LAW_RULE.rate_params, 0.07),
    rate_tokens=Belief(LAW_RULE.rate_tokens, 0.07),
    batch_params=Belief(0.0, 0.05),
    batch_tokens=Belief(LAW_RULE.batch_tokens, 0.07),
    log_rate_curvature=Belief(math.log(0.03), 0.7),
    log_batch_curvature=Belief(math.log(0.017), 0.7),
    rho=Belief(0.25, 0.25),
    skew=Belief(2.0, 0.5),
    loss_params=Belief(-0.06, 0.03),  # Kaplan (arXiv 2001.08361): -.076
    loss_tokens=Belief(-0.05, 0.03),  # Kaplan: -.095 without a floor
    level_sd=0.01,
    seed_noise=2.5e-3,
    form_sd=0.1,
    form_sd_by_distance=0.07,
)
"""The prior from LOWEST_PARAMS on. Curvatures are those of public grids of 60M and 120M parameters.

Those grids share one recipe (AdamW, cosine). Published laws of other recipes differ by more, .2 to .3 in an exponent.
"""

SMALL_PRIOR = Prior(
    rate_params=Belief(SMALL_RULE.rate_params, 0.1),
    rate_tokens=Belief(SMALL_RULE.rate_tokens, 0.1),
    batch_params=Belief(0.0, 0.05),
    batch_tokens=Belief(SMALL_RULE.batch_tokens, 0.1),
    log_rate_curvature=Belief(math.log(0.06), 0.5),
    log_batch_curvature=Belief(math.log(0.03), 0.5),
    rho=Belief(0.25, 0.25),
    skew=Belief(1.0, 0.5),
    loss_params=Belief(-0.01, 0.01),
    loss_tokens=Belief(-0.12, 0.06),  # -.06 to -.3, the steepest on texts that repeat themselves
    level_sd=0.06,
    seed_noise=0.018,
    form_sd=0.3,
    form_sd_by_distance=0.05,
    has_reference=True,
)
"""The prior where a run or the target has fewer than LOWEST_PARAMS parameters: no published law of the rate holds there.

It is that of this project's own trainings (experiments/results/ladder-live.md).
"""


def prior_for(*sizes: Size) -> Prior:
    """Returns SMALL_PRIOR if one of `sizes` is below LOWEST_PARAMS, else LAW_PRIOR."""
    return SMALL_PRIOR if is_small(*sizes) else LAW_PRIOR
