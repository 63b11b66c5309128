"""Replays recorded full-length curves through the code that decides in a search, with a simulated clock and without Ray.

    python experiments/replay.py --history experiments/data/embedded-cosine.csv.gz
    python experiments/replay.py --history FILE.csv --scheduler asha-stop --confirm 0

The file has one row a report: trial_id (the configuration), tokens_seen, val_loss (nats per token), optionally seed
(several curves a configuration), val_loss_ema, and learning_rate (the peak, which has a say in who finishes); every curve
that did not diverge reaches the full budget. In each of --orders random orders every configuration arrives once, with one
of its seeds, and --slots of them train at once; a training takes the same time whatever its batch size. No configuration
is the reference, so none is guaranteed to end, and none has offspring.

Printed: the regret after so many full trainings' worth of time a slot, the mean over orders of (final loss of the pick,
mean over the seeds that were not used to pick it) minus the lowest mean final loss of all configurations; how well each
rung's loss ranks the configurations; and the noise between seeds. Each length is a search of its own, which knows its end
as one with --time_budget does: asha promotes late, and confirmations have their time. Beside it i-Epoch, which stops all
at one share and finishes the best few, with the share and the number that hindsight would choose.
"""

import heapq
import itertools
import json
import math
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from myllm.errors import InputError, Parser, run_command
from tune.ending import plan_the_end
from tune.options import CONFIRM_WORTH, CONFIRMED, SearchConfig
from tune.schedulers import CONTINUE, SCHEDULERS, Asha, Ladder, format_ladder
from tune.state import COMPLETED, REPORTED, Plan, SearchState

TRAININGS = (1, 2, 3, 4, 6, 8, 9, 12, 16)
"""full trainings' worth of time a slot at which the pick is judged"""
I_EPOCH_SHARES = (1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4)
I_EPOCH_FINALISTS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Curves:
    """Recorded curves. Losses in nats per token; a diverged run ends with NaN or early."""

    losses: dict[tuple[str, int], dict[int, float]]
    """(configuration, seed) -> tokens_seen -> the rung metric"""
    finals: dict[tuple[str, int], float]
    """(configuration, seed) -> val_loss at the full budget; of a diverged run the worst of all"""
    seeds: dict[str, list[int]]
    marks: list[int]
    rates: dict[str, float] = field(default_factory=dict)
    """configuration -> learning_rate, where the file has it"""

    @property
    def budget(self) -> int:
        return self.marks[-1]

    def mean_final(self, name: str) -> float:
        """val_loss at the full budget, mean over all seeds of a configuration."""
        return sum(self.finals[name, seed] for seed in self.seeds[name]) / len(self.seeds[name])


def read_curves(path: Path, metric: str) -> Curves:
    """The curves of a CSV file. Raises InputError where it is missing, or not such a file."""
    try:
        table = pd.read_csv(path, dtype={"trial_id": str})
    except (OSError, ValueError) as error:
        raise InputError(f"--history {path}: not a CSV file that can be read ({error})") from None
    missing = {"trial_id", "tokens_seen", "val_loss", metric} - set(table.columns)
    if missing or table.empty:
        raise InputError(f"--history {path}: it lacks {', '.join(sorted(missing)) or 'rows'}")
    if "seed" not in table:
        table["seed"] = 0
    budget = int(table["tokens_seen"].max())
    losses: dict[tuple[str, int], dict[int, float]] = {}
    finals: dict[tuple[str, int], float] = {}
    for (name, seed), rows in table.groupby(["trial_id", "seed"]):
        key = (str(name), int(seed))
        losses[key] = dict(zip(rows["tokens_seen"], rows[metric].where(rows["val_loss"].notna()), strict=True))
        finals[key] = dict(zip(rows["tokens_seen"], rows["val_loss"], strict=True)).get(budget, math.nan)
        if budget not in losses[key] and rows["val_loss"].notna().all():
            raise InputError(f"--history {path}: trial {name} seed {seed} ends before the full budget of {budget} tokens")
    worst = max((loss for loss in finals.values() if math.isfinite(loss)), default=math.nan)
    finals = {key: loss if math.isfinite(loss) else worst for key, loss in finals.items()}
    seeds: dict[str, list[int]] = {}
    for name, seed in losses:
        seeds.setdefault(name, []).append(seed)
    rates = dict(zip(table["trial_id"], table["learning_rate"], strict=True)) if "learning_rate" in table else {}
    return Curves(losses, finals, seeds, sorted({int(mark) for mark in table["tokens_seen"]}), rates)


class Replay:
    """One search over recorded curves: random order, simulated clock. Times are in tokens of one slot."""

    def __init__(self, curves: Curves, scheduler: str, ladder: Ladder, confirm: int, slots: int, rng: random.Random):
        self.curves, self.slots = curves, slots
        self.order = rng.sample(sorted(curves.seeds), len(curves.seeds))
        self.seeds = {name: rng.sample(curves.seeds[name], len(curves.seeds[name])) for name in self.order}
        draws = [{"learning_rate": curves.rates[name]} if curves.rates else {} for name in self.order]
        plan = Plan(len(draws), curves.budget, draw=lambda index, state: draws[index], confirm=confirm, reference=None)
        rungs = SCHEDULERS[scheduler](ladder, curves.budget, curves.marks[0], late=True)
        self.state = SearchState(plan, rungs, lambda event, **values: {"event": event} | values)
        self.stops = [rung.mark for rung in rungs.rungs] + [curves.budget]
        self.state.record("session", slots=slots)
        self.completed: list[tuple[float, str]] = []
        """(time, trial) of the trials that reached the full budget"""

    def curve_of(self, trial_id: str) -> tuple[str, int]:
        """The recorded (configuration, seed) that a trial plays; repetitions play the next seed, as others must judge."""
        confirms = self.state.confirms.get(trial_id)
        name = self.order[int(confirms or trial_id)]
        return name, self.seeds[name][1 if confirms and len(self.seeds[name]) > 1 else 0]

    def run(self, until: float) -> None:
        """Plays the search to time `until`, its time budget. Where it neither promotes nor confirms, nothing is planned."""
        clock, heap = 0.0, []
        plans_its_end = bool(self.state.confirm) or isinstance(self.state.scheduler, Asha)

        def advance(trial_id: str, now: float) -> None:
            seen = self.state.tokens_seen(trial_id)
            mark = next(stop for stop in self.stops if stop > seen)
            heapq.heappush(heap, (now + mark - seen, len(self.state.events), trial_id, mark))

        while clock <= until:
            while len(heap) < self.slots:
                if plans_its_end:
                    plan_the_end(self.state, until - clock, used=clock)
                trial_id = self.state.next_trial()
                if trial_id is None:
                    break
                advance(trial_id, clock)
            if not heap:
                return
            clock, _, trial_id, mark = heapq.heappop(heap)
            if clock > until:
                return
            key = self.curve_of(trial_id)
            loss = self.curves.losses[key].get(mark, math.nan)
            result = dict.fromkeys(REPORTED, 0.0) | {
                "step": mark,
                "tokens_seen": mark,
                "val_loss": self.curves.finals[key] if mark == self.curves.budget else loss,
                "diverged": not math.isfinite(loss),
            }
            if self.state.decide(trial_id, result) == CONTINUE:
                advance(trial_id, clock)
                continue
            self.state.running.discard(trial_id)
            if self.state.status[trial_id] == COMPLETED:
                self.completed.append((clock, trial_id))

    def pick(self, until: float) -> float | None:
        """The true loss of the configuration named best at time `until`: over seeds that did not help to pick it."""
        seen: dict[str, list[int]] = {}
        for time, trial_id in self.completed:
            if time <= until:
                name, seed = self.curve_of(trial_id)
                seen.setdefault(name, []).append(seed)
        if not seen:
            return None
        best = min(seen, key=lambda n: (-len(seen[n]), sum(self.curves.finals[n, s] for s in seen[n]) / len(seen[n])))
        unseen = [seed for seed in self.curves.seeds[best] if seed not in seen[best]] or self.curves.seeds[best]
        return sum(self.curves.finals[best, seed] for seed in unseen) / len(unseen)


def regrets(
    curves: Curves, scheduler: str, ladder: Ladder, confirm: int | None, slots: int = 2, orders: int = 300, seed: int = 0
) -> dict[int, float | None]:
    """{trainings: mean regret in nats per token, or None where some order has nothing finished yet}.

    `confirm` None: what search.py would choose for a search of that length.
    """
    lowest = min(curves.mean_final(name) for name in curves.seeds)
    totals: dict[int, list[float | None]] = {trainings: [] for trainings in TRAININGS}
    for order in range(orders):
        for trainings in TRAININGS:
            until = trainings * curves.budget
            again = (CONFIRMED if trainings * slots >= CONFIRM_WORTH else 0) if confirm is None else confirm
            replay = Replay(curves, scheduler, ladder, again, slots, random.Random(f"{seed} {order}"))
            replay.run(until)
            loss = replay.pick(until)
            totals[trainings].append(None if loss is None else loss - lowest)
    return {t: None if None in found else sum(found) / orders for t, found in totals.items()}


def i_epoch(curves: Curves, slots: int = 2, orders: int = 300, seed: int = 0) -> dict[int, float | None]:
    """{trainings: mean regret} of i-Epoch: stop all at a small share, finish the best few (Egele et al., arXiv 2404.04111).

    Share and number are those that did best for each length, seen in hindsight, so no method could know them. The orders
    are those of regrets().
    """
    lowest = min(curves.mean_final(name) for name in curves.seeds)
    played = [Replay(curves, "fifo", (), 0, slots, random.Random(f"{seed} {order}")) for order in range(orders)]
    best: dict[int, float | None] = {}
    for trainings in TRAININGS:
        found = []
        for share, finalists in itertools.product(I_EPOCH_SHARES, I_EPOCH_FINALISTS):
            mark = next(mark for mark in curves.marks if mark >= share * curves.budget * (1 - 1e-9))
            left = trainings * curves.budget - math.ceil(finalists / slots) * (curves.budget - mark)
            looked_at = slots * int(left // mark)
            if looked_at < finalists:
                continue
            total = 0.0
            for replay in played:
                seen = {name: replay.seeds[name][0] for name in replay.order[:looked_at]}
                early = {name: curves.losses[name, s].get(mark, math.nan) for name, s in seen.items()}
                ranked = sorted((name for name in seen if math.isfinite(early[name])), key=early.__getitem__)
                pick = min(ranked[:finalists] or [replay.order[0]], key=lambda name: curves.finals[name, seen[name]])
                unseen = [curves.finals[pick, s] for s in replay.seeds[pick][1:]] or [curves.finals[pick, seen[pick]]]
                total += sum(unseen) / len(unseen)
            found.append(total / orders - lowest)
        best[trainings] = min(found, default=None)
    return best


def rank_correlations(curves: Curves, marks: list[int]) -> dict[int, tuple[float, float]]:
    """mark -> Spearman correlation of the metric there (one seed) with the mean final loss: all, and the best quarter."""
    rows = [
        {"mean": curves.mean_final(name)} | {mark: curves.losses[name, seed].get(mark, math.inf) for mark in marks}
        for name, seeds in curves.seeds.items()
        for seed in seeds
    ]
    table = pd.DataFrame(rows).fillna(math.inf)
    best = table[table["mean"] <= table["mean"].quantile(0.25)]
    return {mark: tuple(float(part[mark].rank().corr(part["mean"].rank())) for part in (table, best)) for mark in marks}


def noise(curves: Curves, best: int = 20) -> float:
    """Standard deviation of the final loss between seeds, pooled over the `best` configurations; NaN with one seed."""
    names = sorted(curves.seeds, key=curves.mean_final)[:best]
    squares = [(curves.finals[n, s] - curves.mean_final(n)) ** 2 for n in names for s in curves.seeds[n]]
    freedom = len(squares) - len(names)
    return math.sqrt(sum(squares) / freedom) if freedom else math.nan


def main() -> None:
    defaults = SearchConfig(time_budget=1.0)  # the defaults of a search that knows its end
    parser = Parser(prog="replay.py", description=__doc__.splitlines()[0])
    parser.add_argument("--history", required=True, type=Path, help="CSV file of full-length curves")
    parser.add_argument("--slots", type=int, default=2, help="trials at once")
    parser.add_argument("--scheduler", default=defaults.scheduler, help=", ".join(SCHEDULERS))
    parser.add_argument("--rungs", help="share:one in how many goes on, ... (unset: as search.py)")
    parser.add_argument("--rung_metric", default=defaults.rung_metric, help="val_loss or val_loss_ema")
    parser.add_argument("--reduction_factor", type=int, help="short way to rungs, as in search.py")
    parser.add_argument("--grace_period", type=float, help="short way to rungs, as in search.py")
    parser.add_argument("--confirm", type=int, help="configurations run again (unset: as search.py for that length)")
    parser.add_argument("--orders", type=int, default=300, help="random arrival orders")
    parser.add_argument("--seed", type=int, default=0, help="of the orders")
    parser.add_argument("--json", type=Path, help="file to write the same to")
    args = parser.parse_args()
    for name in ("slots", "orders"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; it must be a whole number, 1 or more")
    names = ("scheduler", "rungs", "rung_metric", "reduction_factor", "grace_period", "confirm")
    config = replace(defaults, **{name: getattr(args, name) for name in names})
    curves = read_curves(args.history, config.rung_metric)
    found: dict[str, Any] = {
        "regret": regrets(curves, config.scheduler, config.ladder, config.confirm, args.slots, args.orders, args.seed)
    }
    found["i_epoch"] = i_epoch(curves, args.slots, args.orders, args.seed)
    rungs = SCHEDULERS[config.scheduler](config.ladder, curves.budget, curves.marks[0]).rungs
    found["rank_correlation"] = rank_correlations(curves, [rung.mark for rung in rungs])
    found["noise_between_seeds"] = noise(curves)
    if max(map(len, curves.seeds.values())) == 1:
        print(
            "warning: one seed a configuration: the regret is flattered, the pick is judged by what picked it",
            file=sys.stderr,
        )
    print(
        f"{len(curves.seeds)} configurations, {config.scheduler}, rungs {format_ladder(config.ladder) or 'none'}, "
        f"{config.rung_metric}, {args.slots} slots, {args.orders} orders"
    )
    print("trainings a slot   " + "".join(f"{t:>8}" for t in found["regret"]))
    for title, values in (("regret, nats/token", found["regret"]), ("i-Epoch, hindsight", found["i_epoch"])):
        print(f"{title} " + "".join(f"{'-' if r is None else f'{r:.4f}':>8}" for r in values.values()))
    for mark, (every, quarter) in found["rank_correlation"].items():
        print(f"rank correlation at {mark / curves.budget:.4g} of the budget: all {every:.2f}, best quarter {quarter:.2f}")
    print(f"noise between seeds, best 20: {found['noise_between_seeds']:.4f} nats/token")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
