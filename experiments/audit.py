"""How often what an audit says holds, and what it takes: by simulation.

    python experiments/audit.py
    python experiments/audit.py --worlds 3

Plays and audits searches of the default rule in worlds fitted to the recorded tables (curves.py). There the final loss of
every trial left behind is known. The script compares the audit with the truth in four respects:
- the share of the trials left behind that would have ended below the best, and below the worst that was finished;
- how far the lowest of them would have ended below the best;
- the rank correlation between the losses at a rung that all came to and those at the end;
- whether the trial that ends best was among the best half at that rung.
"""

import random
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from curves import Curves, Surrogate, read_curves, spearman
from replay import Replay

from myllm.system.errors import Parser, run_command
from tune.analysis.stopping_audit import AuditSample
from tune.config.options import SearchOptions
from tune.core.ranking import ranking
from tune.core.schedulers.audit import WithAudit
from tune.core.simulator import play
from tune.core.trials import AUDIT

SEARCHES = ((4, 0.25), (8, 0.1), (16, 0.1), (16, 0.3), (32, 0.1))
"""(full trainings' worth of time a slot, --audit_fraction)"""


def audited(world: Curves, length: int, share: float) -> dict[str, Any] | None:
    """What the audit of one search says, beside the truth; None where nothing came to the end."""
    replay = Replay(world, SearchOptions(time_budget=1.0), 2, random.Random(f"{length}"))
    replay.coordinator.scheduler = WithAudit(replay.coordinator.scheduler, share, 0)
    play(replay.coordinator, replay.loss, length * world.budget)
    trials, sample = replay.trials, AuditSample(replay.trials)
    tokens, ordered = ranking(trials)
    if tokens < world.budget or not sample.audited:
        return None
    best = ordered[0].mean_at(world.budget)
    seeds = {trial.trial_id: replay.seeds[trial.config["row"]][0] for trial in trials.drawn}
    ends = {trial.trial_id: world.losses[trial.config["row"], seeds[trial.trial_id], -1] for trial in trials.drawn}
    left, everyone = np.array([ends[t.trial_id] for t in sample.left_behind]), [*sample.left_behind, *sample.finished]
    found: dict[str, Any] = {"audited": len(sample.audited)}
    for name, limit in (("best", best), ("worst", float(sample.finals[: len(sample.finished)].max()))):
        said, truth = sample.share_below(limit), float((left < limit).mean())
        found[f"below the {name}"] = said.low - 1e-9 <= truth <= said.high + 1e-9
        found[f"true share below the {name}"] = truth
        found[f"width below the {name}"] = said.high - said.low
    cost, truth = sample.stopping_cost(best), max(0.0, best - float(left.min()))
    if cost.high is not None:
        found["cost"] = cost.low - 1e-9 <= truth <= cost.high + 1e-9
        found |= {"true cost": truth, "upper end of the cost": cost.high}
    factors = replay.coordinator.scheduler.factors
    for rung in sample.rung_qualities(factors):
        early = np.array([t.losses.get(rung.tokens_seen, np.nan) for t in everyone])
        if rung.tokens_seen in factors and np.isfinite(early).all():
            last = np.array([ends[t.trial_id] for t in everyone])
            found["correlation"] = rung.low <= spearman(early, last) <= rung.high
            found["width of the correlation"] = rung.high - rung.low
            found["kept, said"] = rung.kept["2"]
            found["kept, true"] = float((early < early[last.argmin()]).mean() < 1 / 2)
    own = sum(t.tokens - t.begun_at for t in trials.by_id.values() if t.source == AUDIT)
    found["tokens, share of the search's"] = own / (trials.tokens - own)
    return found


def main() -> None:
    parser = Parser(prog="audit.py", description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=10, help="worlds of each table")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    every: dict[str, list[float]] = defaultdict(list)
    for path in sorted((Path(__file__).parent / "data").glob("*.csv.gz")):
        surrogate, rng, held = Surrogate(read_curves(path)), np.random.default_rng(11), defaultdict(list)
        for world in (surrogate.world(rng, seeds=12) for _ in range(args.worlds)):
            for length, share in SEARCHES:
                for name, value in (audited(world, length, share) or {}).items():
                    every[name].append(value)
                    held[name].append(value)
        names = ("below the best", "below the worst", "cost", "correlation")
        print(f"{path.name:28}", ", ".join(f"{name} {np.mean(held[name]):.3f}" for name in names), flush=True)
    for name, values in every.items():
        print(f"{name:32} {np.mean(values):.3f}, median {np.median(values):.3f}, of {len(values)}")


if __name__ == "__main__":
    run_command(main)
