"""What a search costs beside its trainings: ours, Ray Tune as its documentation shows it, with reused actors, and Optuna.

    python experiments/overhead.py                                              # about 14 minutes on 2 cores
    python experiments/overhead.py --methods ours --rounds 1 --trials 16 --budget_tokens 1048576    # the share, directly

Every method trains the same --trials configurations of space v2 to --budget_tokens, --slots at once on a core and a thread
each, in rounds, one method after the other. Leave the machine to it. Printed are medians over the rounds:

  start      s from the command to the first report, its training left out
  end        s from the last report to the prompt
  a trial    slot-seconds from training to training, the wait for the last trial of a round among them
  share      of the slots' time that went into training, from the command to the prompt
  16 x 20 s  that share for 16 trials of 20 s on 2 slots, by the three before
"""

import contextlib
import json
import os
import pty
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from myllm.presets import get_preset
from myllm.system.errors import InputError, Parser, RunError, run_command
from myllm.system.files import cache_dir
from tune.config.options import SearchOptions
from tune.config.spec import read_search
from tune.core.search_space import get_space, sample

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("ours", "ray", "ray-reuse", "optuna")


def training(folder: Path, index: int, report: Any) -> None:
    """Trains configuration `index` of the search in `folder`; notes each report beside it, and gives it to `report`."""
    import torch

    from myllm.training.train import train
    from tune.config.open_run import open_run

    torch.set_num_threads(1)
    search = read_search(folder)
    config = sample(get_space("v2"), get_preset(search.options.preset), 0, index)
    for seen in train(open_run(search, config)):
        row = {"time": time.time(), "trial": index, "train_seconds": seen.train_seconds}
        with open(folder / "reports.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        report(seen)


def with_ray(folder: Path, trials: int, slots: int, reuse: bool) -> None:
    import ray
    from ray import tune

    def objective(config: dict[str, int]) -> None:
        training(folder, config["index"], lambda seen: tune.report({"val_loss": seen.val_loss}))

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        ray.init("local", num_cpus=slots, include_dashboard=False)
        settings = tune.TuneConfig(metric="val_loss", mode="min", reuse_actors=reuse)
        where = tune.RunConfig(storage_path=scratch, verbose=0)
        tune.Tuner(
            objective, param_space={"index": tune.grid_search(range(trials))}, tune_config=settings, run_config=where
        ).fit()


def with_optuna(folder: Path, trials: int, slots: int, first: int) -> None:
    """One of --slots processes, each with its share of the trials."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    def objective(trial: optuna.Trial) -> float:
        losses: list[float] = []
        training(folder, first + slots * trial.number, lambda seen: losses.append(seen.val_loss))
        return losses[-1]

    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / f"study-{first}.log")))
    optuna.create_study(storage=storage).optimize(objective, n_trials=len(range(first, trials, slots)))


@contextlib.contextmanager
def terminal(log: BinaryIO) -> Iterator[int]:
    """A pseudo-terminal, on which a command ends when its prompt would be back; what is shown goes into `log`."""
    ours, theirs = pty.openpty()

    def copy() -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(ours, 65536):
                log.write(data)

    reader = threading.Thread(target=copy)
    reader.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        reader.join(timeout=5)
        os.close(ours)


def measure(method: str, args: Any, folder: Path) -> dict[str, float]:
    """Runs one method once. Raises RunError where it fails."""
    config = SearchOptions(space="v2", budget_tokens=args.budget_tokens, num_samples=args.trials)
    if method != "ours":
        from tune.config.resolve import resolve_search

        resolve_search(config, cache_dir()).write(folder)
    worker = [sys.executable, __file__, "--worker", method, str(folder), str(args.trials), str(args.slots)]
    ours = [
        "--scheduler",
        "fifo",
        "--replicate_best",
        "0",
        "--searcher",
        "random",
        "--max_concurrent",
        args.slots,
        "--name",
        "run",
    ]
    ours += ["--num_samples", args.trials, "--budget_tokens", args.budget_tokens, "--storage_path", folder]
    commands = {"optuna": [[*worker, str(first)] for first in range(args.slots)]}
    commands["ours"] = [[sys.executable, "tune/search.py", *map(str, ours)]]
    begin = time.time()
    with open(folder / "log.txt", "wb") as log, terminal(log) as screen:
        running = [
            subprocess.Popen(c, cwd=ROOT, stdin=screen, stdout=screen, stderr=screen)
            for c in commands.get(method, [[*worker, "0"]])
        ]
        failed = any([process.wait() for process in running])
        end = time.time()
    if failed:
        raise RunError(f"{method} failed: {(folder / 'log.txt').read_text()[-500:]}")
    while (folder / "run" / "report.log").exists():
        time.sleep(0.1)  # drawn behind the prompt; the next method is not to be disturbed
    path = folder / ("run/journal.jsonl" if method == "ours" else "reports.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row.get("event", "report") == "report"]
    trained = {row.get("trial_id", row.get("trial")): row["train_seconds"] for row in rows}
    if len(trained) != args.trials:
        raise RunError(f"{method} trained {len(trained)} of {args.trials} trials: see its log")
    total, slots = sum(trained.values()), args.slots
    found = {"start": rows[0]["time"] - rows[0]["train_seconds"] - begin, "end": end - rows[-1]["time"]}
    beside = slots * (end - begin) - total
    found["a trial"] = (beside - slots * (found["start"] + found["end"])) / args.trials
    found["share"] = total / (slots * (end - begin))
    found["16 x 20 s"] = 320 / (320 + 2 * (found["start"] + found["end"]) + 16 * found["a trial"])
    return found


def main() -> None:
    parser = Parser(prog="overhead.py", description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, help="those to compare")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each method")
    parser.add_argument("--trials", type=int, default=10, help="trials a run")
    parser.add_argument("--slots", type=int, default=2, help="trials at once")
    parser.add_argument("--budget_tokens", type=int, default=262_144, help="of a trial: the default takes about 5 s")
    parser.add_argument("--quick", action="store_true", help="one round of two trials: only to see that it runs")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.trials = 1, 2
    for name in ("rounds", "trials", "slots"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; it must be a whole number, 1 or more")
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}  # cores only; nothing leaves the machine
    found: dict[str, list[dict[str, float]]] = {method: [] for method in args.methods}
    for turn in range(args.rounds):
        first = turn % len(args.methods)
        for method in (*args.methods[first:], *args.methods[:first]):
            with tempfile.TemporaryDirectory(prefix="overhead-", ignore_cleanup_errors=True) as folder:
                found[method].append(measure(method, args, Path(folder)))
            print(method, {name: round(value, 3) for name, value in found[method][-1].items()}, file=sys.stderr, flush=True)
    names = list(found[args.methods[0]][0])
    print(f"\n| {args.trials} trials, {args.rounds} rounds | {' | '.join(names)} |\n|-|{'-|' * len(names)}")
    for method, runs in found.items():
        medians = [statistics.median(run[name] for run in runs) for name in names]
        print(f"| {method} | {' | '.join(f'{value:.2f}' for value in medians)} |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        method, where, trials, slots, first = sys.argv[2:]
        if method == "optuna":
            with_optuna(Path(where), int(trials), int(slots), int(first))
        else:
            with_ray(Path(where), int(trials), int(slots), method == "ray-reuse")
    else:
        run_command(main)
