"""How the cost of a search grows with its trials, its reports and its slots.

    python experiments/scale.py                                         # about 12 minutes
    python experiments/scale.py --sizes --trials 0 --slots 16 32 64     # the slots alone
    python experiments/scale.py --quick                                 # only to see that it runs

Printed, in CPU time: a decision, ms a trial of the default rule in simulation (8 slots, all that the coordinator does); a
proposal, ms; reading back a journal of --trials trials with 32 reports each, and the memory a report of them takes;
tune/report.py on it.

Then searches with the default rule on --slots slots, whose trainings wait --wait seconds from report to report instead of
computing: from when all slots have started until --seconds are over, the share of the slots' time spent in training,
how long a slot waits from its last report to its next training, and what the driver takes. The slots are processes of one
Ray on this machine, which takes itself to have so many cores: what the driver has to do for them is the same wherever
they are, but that all of them share this machine's cores.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from myllm.presets import PRESETS
from myllm.system.errors import Parser, run_command
from tune.config.options import SearchOptions
from tune.config.overrides import searched_space
from tune.config.spec import BuiltinSearch, Data, SearchSpec
from tune.core.coordinator import Coordinator
from tune.core.events import REPORTED, Reported, SessionStarted
from tune.core.schedulers import SCHEDULERS
from tune.core.schedulers.baseline import WithBaseline
from tune.core.search_space import get_space, sample
from tune.core.searchers.gaussian_process import Proposals
from tune.core.simulator import play
from tune.core.trials import CONTINUE, STOP, Trial, Trials
from tune.store.journal import FILE_NAME, events_of

ROOT = Path(__file__).resolve().parent.parent
BUDGET, MARKS = 3200, 32


def search_of(trials: int | None, **changes: Any) -> SearchSpec:
    """The settings of a search that trains nothing."""
    preset = PRESETS["nano"]
    training = preset.training(batch_size=1, max_len=10, stride=10, budget_tokens=BUDGET)
    data = Data("builtin", "builtin", "byte", "0", {"train": {}, "val": {}}, {}, 1.0)
    config = SearchOptions(num_samples=trials, name="scale", **changes)
    searched = searched_space(config, preset.model(257), {}, preset)
    return BuiltinSearch(
        options=config,
        model=preset.model(257),
        training=training,
        data=data,
        report_tokens=BUDGET // MARKS,
        **vars(searched),
    )


def decisions(count: int) -> tuple[float, float]:
    """(ms a trial of the rule and all around it, ms a proposal at the end) of a search of `count` trials."""
    preset, space = PRESETS["nano"], get_space("v2")
    configs = [sample(space, preset, 0, index) for index in range(64)]
    rng = random.Random(0)
    levels = [2 + rng.random() for _ in range(count)]
    noise = [rng.random() / 20 for _ in range(997)]
    rule = SCHEDULERS["explore-finish"](SCHEDULERS["explore-finish"].default_rungs, BUDGET, BUDGET // MARKS)
    trials = Trials(BUDGET, count, events=[SessionStarted(session=0, workers=8)])
    coordinator = Coordinator(
        trials, WithBaseline(rule, 3), lambda index, trials, proposed: configs[index % 64], lambda event: event
    )
    begin = time.process_time()
    play(coordinator, lambda trial, tokens: levels[index_of(trial)] + noise[(index_of(trial) * 31 + tokens) % 997])
    a_trial = (time.process_time() - begin) / count
    proposals = Proposals(space.ranges(preset), 0, rule.rung_tokens)
    proposals.propose(count, trials)
    begin = time.process_time()
    for index in range(10):
        proposals.propose(count + index, trials)
    return 1e3 * a_trial, 1e2 * (time.process_time() - begin)


def index_of(trial: Trial) -> int:
    """The number of the trial's configuration, from 0."""
    return int(trial.parent_id.removeprefix("t"))


def write_journal(folder: Path, count: int) -> None:
    """A search of `count` trials that all trained to the end."""
    search, rng = search_of(count, scheduler="fifo"), random.Random(0)
    search.write(folder)
    preset, space = PRESETS["nano"], get_space("v2")
    with open(folder / FILE_NAME, "w") as file:
        file.write(json.dumps({"event": "session", "time": 0.0, "session": 0, "workers": 8}) + "\n")
        for index in range(count):
            trial_id = f"t{index:05d}"
            trial = {
                "event": "trial",
                "time": float(index),
                "trial_id": trial_id,
                "source": "sampled",
                "parent_id": trial_id,
            }
            file.write(json.dumps(trial | {"segment_end_tokens": BUDGET, "config": sample(space, preset, 0, index)}) + "\n")
            for mark in range(1, MARKS + 1):
                values = {name: 3 + rng.random() for name in REPORTED} | {"step": mark * 8, "tokens_seen": mark * 100}
                event = {"event": "report", "time": index + mark / 64, "trial_id": trial_id}
                decision = STOP if mark == MARKS else CONTINUE
                file.write(json.dumps(event | {"decision": decision} | values | {"diverged": False}) + "\n")


def read_back(folder: Path) -> dict[str, float]:
    """Seconds to fold the journal in `folder`, and bytes of memory a report; for a process of its own."""
    before = psutil.Process().memory_info().rss
    begin = time.process_time()
    trials = Trials(BUDGET, 10**6, events=events_of(folder))
    seconds = time.process_time() - begin
    reports = sum(len(trial.reports) for trial in trials.by_id.values())
    grown = psutil.Process().memory_info().rss - before
    return {"seconds": seconds, "reports": reports, "bytes": grown / reports}


def journal(count: int) -> None:
    """Prints what a journal of `count` trials takes to be read, and to be reported on."""
    with tempfile.TemporaryDirectory(prefix="scale-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        write_journal(folder, count)
        done = subprocess.run([sys.executable, __file__, "--read", folder], capture_output=True, text=True, check=True)
        found = json.loads(done.stdout)
        print(f"\njournal of {count:,} trials, {found['reports']:,} reports, {size(folder):,.0f} MB: ", end="")
        print(f"read back in {found['seconds']:.1f} s, {found['bytes']:.0f} bytes of memory a report", flush=True)
        begin = time.perf_counter()
        command = ["/usr/bin/env", sys.executable, "tune/report.py", str(folder)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        how = (
            f"{time.perf_counter() - begin:.1f} s, at most {peak:,.0f} MiB" if done.returncode == 0 else done.stderr[-300:]
        )
        print(f"tune/report.py on it: {how}", flush=True)


def pretend(
    config: dict[str, Any], search: SearchSpec, storage_root: str, rung_tokens: tuple[int, ...], **task: Any
) -> None:
    """A training that waits: as tuner.run_trial, a trainable of Ray's.

    In its reports `step` is its process, `lr` when it began, `grad_norm` when it reported, seconds since 1970.
    """
    import ray.tune as ray_tune

    from tune.ray_backend.trainable import CHECKPOINT

    began, done = time.time(), 0
    if CHECKPOINT in config:
        done = int((Path(storage_root) / config[CHECKPOINT] / "done").read_text())
    wait = search.training.weight_decay
    for tokens in range(done + search.report_tokens, search.budget_tokens + 1, search.report_tokens):
        time.sleep(wait)
        metrics = dict.fromkeys(REPORTED, 1.0) | {"tokens_seen": tokens, "diverged": False}
        metrics |= {"train_seconds": wait * tokens / search.report_tokens}
        metrics |= {"step": os.getpid(), "lr": began, "grad_norm": time.time()}
        metrics["val_loss"] = 2 + math.sin(config["learning_rate"] * 1e6) + 1 / tokens
        if tokens not in (*rung_tokens, search.budget_tokens):
            ray_tune.report(metrics)
            continue
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "done").write_text(str(tokens))
            ray_tune.report(metrics, checkpoint=ray_tune.Checkpoint.from_directory(folder))


class Watch:
    """Notes every second when it is, and what CPU time this process, all of Ray's and the machine have had."""

    def __init__(self):
        self.rows: list[tuple[float, float, float, float]] = []
        self._over = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        own = psutil.Process()
        while not self._over.wait(1.0):
            servers = 0.0
            for child in own.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    servers += sum(child.cpu_times()[:2]) if child.name() in ("raylet", "gcs_server") else 0.0
            machine = psutil.cpu_times()
            busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0)
            self.rows.append((time.time(), sum(own.cpu_times()[:2]), servers, busy))

    def shares(self, first: float, last: float) -> list[float]:
        """Cores that each took between two moments."""
        self._over.set()
        rows = [row for row in self.rows if first <= row[0] <= last]
        passed = rows[-1][0] - rows[0][0]
        return [(after - before) / passed for before, after in zip(rows[0][1:], rows[-1][1:], strict=True)]


def busy(slots: int, seconds: float, wait: float, folder: Path) -> dict[str, float]:
    """What a search of so many seconds with the default rule over pretended trainings does, once all slots have started."""
    from tune.config.resolve import Resources
    from tune.ray_backend import tuner

    tuner.run_trial = pretend
    search, watch = search_of(None, time_budget=seconds), Watch()
    search = dataclasses.replace(search, training=dataclasses.replace(search.training, weight_decay=wait))
    tuner.run_search(folder, search, Resources(1, 0, slots))
    events = list(events_of(folder))
    reports = [event for event in events if isinstance(event, Reported)]
    by_process: dict[int, list[Reported]] = {}
    for report in reports:
        by_process.setdefault(report.step, []).append(report)
    first, last = max(rows[0].lr for rows in by_process.values()), events[0].time + seconds - wait
    within = [report for report in reports if first < report.grad_norm <= last]
    gaps = [
        after.lr - before.grad_norm
        for rows in by_process.values()
        for before, after in itertools.pairwise(rows)
        if first < before.grad_norm <= last and after.lr != before.lr
    ]
    driver, servers, machine = watch.shares(first, last)
    return {
        "slots": len(by_process),
        "busy": len(within) * wait / (slots * (last - first)),
        "reports/s": len(within) / (last - first),
        "wait, ms": 1e3 * statistics.median(gaps),
        "99%, ms": 1e3 * statistics.quantiles(gaps, n=100)[-1],
        "report to journal, ms": 1e3 * statistics.median(report.time - report.grad_norm for report in within),
        "driver, cores": driver,
        "ms a report": 1e3 * driver * (last - first) / len(within),
        "Ray's servers": servers,
        "machine, cores": machine,
    }


def main() -> None:
    parser = Parser(prog="scale.py", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[500, 1000, 2000, 10_000], help="trials simulated")
    parser.add_argument("--trials", type=int, default=10_000, help="trials in the journal; 0: leave it out")
    parser.add_argument("--slots", type=int, nargs="*", default=[16, 32, 64], help="trials at once in pretended searches")
    parser.add_argument("--wait", type=float, default=2.0, help="seconds between two reports of a pretended training")
    parser.add_argument("--seconds", type=float, default=150.0, help="that each of these searches has")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.trials, args.slots, args.wait, args.seconds = [100, 200], 100, [2], 0.3, 15
    print("| trials | a decision, ms a trial | a proposal, ms |\n|-|-|-|")
    for count in args.sizes:
        print("| {:,} | {:.2f} | {:.1f} |".format(count, *decisions(count)), flush=True)
    if args.trials:
        journal(args.trials)
    for number, slots in enumerate(args.slots):
        with tempfile.TemporaryDirectory(prefix="slots-", ignore_cleanup_errors=True) as scratch:
            found = busy(slots, args.seconds, args.wait, Path(scratch))
        if number == 0:
            print(f"\n| {' | '.join(found)} |\n|{'-|' * len(found)}")
        print(f"| {' | '.join(f'{value:,.3g}' for value in found.values())} |", flush=True)


def size(folder: Path) -> float:
    """Megabytes of the journal."""
    return (folder / FILE_NAME).stat().st_size / 1e6


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if sys.argv[1:2] == ["--read"]:
        print(json.dumps(read_back(Path(sys.argv[2]))))
    else:
        run_command(main)
