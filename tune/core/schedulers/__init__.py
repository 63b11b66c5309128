"""The decision rules, by the names that --scheduler knows, and the rungs that --rungs describes."""

from myllm.system.errors import InputError
from tune.core.schedulers.asha import Asha
from tune.core.schedulers.asha_stop import AshaStop
from tune.core.schedulers.base import Rungs, Scheduler
from tune.core.schedulers.explore_finish import ExploreThenFinish
from tune.core.schedulers.fifo import Fifo
from tune.core.schedulers.hyperband import Hyperband

SCHEDULERS: dict[str, type[Scheduler]] = {
    "explore-finish": ExploreThenFinish,
    "asha": Asha,
    "asha-stop": AshaStop,
    "hyperband": Hyperband,
    "fifo": Fifo,
}


def parse_rungs(text: str) -> Rungs:
    """The rungs that `0.03125:2,0.125:8` describes. Raises InputError where they are none."""
    right = "shares of the budget, ascending, each with one in how many goes on, like 0.03125:2,0.125:8"
    try:
        pairs = [part.split(":") for part in text.split(",")]
        rungs = tuple((float(share), int(factor)) for share, factor in pairs)
    except ValueError:
        raise InputError(f"--rungs is {text!r}; it must be {right}") from None
    shares = [share for share, _ in rungs]
    if not all(0 < share < 1 for share in shares) or shares != sorted(set(shares)) or min(k for _, k in rungs) < 2:
        raise InputError(f"--rungs is {text!r}; it must be {right}: shares between 0 and 1, one in 2 or more")
    return rungs


def geometric_rungs(grace_period: float, reduction_factor: int) -> Rungs:
    """Rungs at grace_period * reduction_factor**k shares of the budget, at each one in reduction_factor goes on."""
    shares = (grace_period * reduction_factor**k for k in range(64))
    return tuple((share, reduction_factor) for share in shares if share < 1)
