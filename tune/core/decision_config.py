"""The numbers by which the default rule decides who trains and who is named the best."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DecisionConfig:
    """All numbers of the default rule, with unit and evidence. The entries named are those of experiments/LOG.md."""

    rung_share: float = 1 / 4
    """share of the budget at which configurations are compared; "one rung": three rungs did no better"""
    finishing_share: float = 0.4
    """share of the tokens that finishes configurations; "where the rung misleads": a third and a half do no better"""
    explored_first_trainings: float = 4.0
    """full trainings' worth of tokens, of all workers, before finishing has its share; "one rung": 0, 1 and 2 are worse"""
    compared: int = 4
    """configurations at the last rung before suggestions begin; "what the constants are worth\""""
    seeds: int = 3
    """seeds at the full budget that the best gets, and that rank before fewer; "three seeds are believed\""""
    length_scale: float = 1.0
    """of the suggestions' process, in ranges of a hyper-parameter; "what the constants are worth\""""
    noise: float = 0.02
    """of one seed, as a share of the variance between configurations, in the suggestions' process; the same"""
    optimism: float = 1.0
    """standard deviations that a suggestion's lower confidence bound lies below its mean; the same"""


DECISIONS = DecisionConfig()
