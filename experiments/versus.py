"""Our search against Ray Tune's own ASHA and against Optuna's, at equal wall time on equal cores.

    python myllm/data.py --input tinyshakespeare.txt --out_dir data --tokenizer byte
    python experiments/versus.py --name shakespeare --train_file data/train_ids.bin --val_file data/val_ids.bin \
        --figure experiments/versus.png

Every method searches space v2 with the same model, budget, marks and validation windows, --slots trainings at once on a
core and a torch thread each, for --seconds from the start of its first process, so that imports count:

  ours    the public command, `python tune/search.py --time_budget SECONDS`; as ours-tpe with --searcher optuna.
  ray     Ray Tune as its documentation shows it: a Tuner around a plain function, random draws, ASHAScheduler on
          training_iteration (one a mark) with max_t 32 (the whole budget), grace_period 2 and its default factor of 4. Its
          pick is that of results.get_best_result(): the lowest last val_loss of all trials, stopped ones among them.
  optuna  as its documentation uses several cores: a process a slot, a JournalStorage in common, TPESampler, and
          SuccessiveHalvingPruner with the rungs of ray. Its pick is study.best_trial: the lowest val_loss at the end of the
          budget. optimize(timeout=...) would finish what runs when the time is up, so it is killed. A diverged trial counts
          as pruned, which tells its sampler more than the failure that Optuna would make of a NaN.
  expert  optuna with a sampler and a pruner that an expert may choose: multivariate TPE that knows what runs, and rungs at
          1/8 and 1/2. dense.py compares more of them.

What each would hand its user after 1/4, 1/2, 3/4 and all of the time (--shares) is trained in full with seeds that no
search used; its score is the mean val_loss (nats per token) over 16 times as many validation windows, infinite where one
diverged. Without a pick yet it is that of the preset's reference configuration, which one has without any search; at the
end that wins nothing. Its gain is how far it lies below the reference on the same seeds. Methods take turns within each
search seed, another one first each time. What comes after the time is up does not count. Leave the machine to it: Ray's
start-up is on the clock, and a busy machine makes it several times as long.

It shows what one has in hand when, on this data, budget and machine. Ours knows its end, and before it names what is best
at a rung: its curve over time is that of one search, not of searches with less time. It does not show
other sizes, GPUs, longer searches, or the peers in an expert's hands: our rungs were chosen by replays of such small
trainings (LOG.md), theirs are as in the ASHA paper. Ours tries the reference configuration first; the peers do with
--reference. A few search seeds tell apart only what differs by more than their spread. Draws repeat with the seed; what
fits into the time does not.

experiments/runs/versus-NAME holds results.csv, one row a (method, seed, time), retrained.jsonl, one row a training, and a
folder a search with its log. The command goes on where it stopped, also with more --methods, --seeds or --retrain_seeds.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import torch

from myllm.datasets.data_paths import BUILTIN
from myllm.system.errors import InputError, Parser, RunError, run_command
from myllm.system.files import cache_dir
from myllm.system.machine import available_cpus
from myllm.training.train import Report, train
from tune.config.open_run import open_run
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search
from tune.config.spec import RUNS_DIR, SearchSpec, read_search
from tune.core.search_space import Range

# What only one method or only the main process needs is imported where it is used: start-up is on the clock.

ROOT = Path(__file__).resolve().parent.parent
PEERS = ("ray", "optuna", "expert")
METHODS = ("ours", *PEERS, "ours-tpe")
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the wall time, when picks are scored
FIRST_SEED, FIRST_RETRAIN_SEED = 100, 10_001  # of the searches, and of the trainings of their picks
MARKS, GRACE_MARKS, REDUCTION_FACTOR = 32, 2, 4  # the peers' rungs: marks 2 and 8
Config = dict[str, Any]
Pick = tuple[Config | None, int, int]
"""(hyper-parameters or None, trials begun, trials at the full budget) of a search up to some time"""


def training(search: SearchSpec, config: Config, **changes: Any) -> Iterator[Report]:
    """Trains the hyper-parameters `config` to the full budget on one thread, with a report at every mark."""
    torch.set_num_threads(1)
    yield from train(open_run(search, config, **changes))


# The methods: what searches, and what tells its pick at some time (UNIX, seconds) from what it left in `folder`


def our_command(job: dict[str, Any], folder: Path, searcher: str) -> list[str]:
    """The search as people run it."""
    search = job["search"]
    options = {n: getattr(search.options, n) for n in ("space", "preset")}
    options |= {n: getattr(search.options, n)[0] for n in ("train_file", "val_file")} | {"tokenizer": search.data.tokenizer}
    options |= {"budget_tokens": search.budget_tokens, "seed": job["seed"], "searcher": searcher}
    options |= {"time_budget": job["seconds"], "max_concurrent": job["slots"], "storage_path": folder, "name": "search"}
    return [sys.executable, "tune/search.py", *(part for n, v in options.items() for part in (f"--{n}", str(v)))]


def our_pick(folder: Path, until: float, budget_tokens: int) -> Pick:
    """The leader of the standings, by the journal up to then."""
    from tune.core.ranking import ranking
    from tune.core.trials import COMPLETED, Trials
    from tune.store.journal import read_journal

    events = [event for event in read_journal(folder / "search") if event.time <= until]
    trials = Trials(budget_tokens, num_samples=0, events=events)
    completed = sum(trial.status == COMPLETED for trial in trials.drawn)
    _, best = ranking(trials)
    return best[0].config if best else None, len(trials.drawn), completed


def search_with_ray(job: dict[str, Any], folder: Path, scratch: str, index: int) -> None:
    """Searches until job["until"]; notes every report when the driver sees it."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.basic_variant import BasicVariantGenerator

    def objective(config: Config) -> None:
        for report in training(job["search"], config, seed=job["seed"]):
            tune.report({"val_loss": report.val_loss, "tokens_seen": report.tokens_seen})

    class Notes(tune.Callback):
        def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
            row = {"time": time.time(), "trial_id": trial.trial_id, "config": trial.config}
            with open(folder / "reports.jsonl", "a") as file:
                print(json.dumps(row | {n: result[n] for n in ("val_loss", "tokens_seen")}), file=file)

    ray.init("local", num_cpus=job["slots"], include_dashboard=False, _temp_dir=scratch, _node_ip_address="127.0.0.1")
    space = {
        name: tune.loguniform(d.low, d.high) if isinstance(d, Range) else tune.choice(list(d.values))
        for name, d in job["search"].ranges.items()
    }
    tuner = tune.Tuner(
        objective,
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="val_loss",
            mode="min",
            scheduler=ASHAScheduler(max_t=MARKS, grace_period=GRACE_MARKS, reduction_factor=REDUCTION_FACTOR),
            search_alg=BasicVariantGenerator(points_to_evaluate=job["first"], random_state=job["seed"]),
            num_samples=-1,
            time_budget_s=job["until"] - time.time(),
        ),
        run_config=tune.RunConfig(storage_path=f"{scratch}/results", callbacks=[Notes()], verbose=0),
    )
    results = tuner.fit()
    with contextlib.suppress(RuntimeError):  # not one report
        print("get_best_result:", results.get_best_result().config)  # into log.txt: rays_pick must say the same


def rays_pick(folder: Path, until: float, budget_tokens: int) -> Pick:
    """What results.get_best_result() would have said."""
    path = folder / "reports.jsonl"
    reports = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    last = {report["trial_id"]: report for report in reports if report["time"] <= until}
    best = min((r for r in last.values() if math.isfinite(r["val_loss"])), key=lambda r: r["val_loss"], default=None)
    return best and best["config"], len(last), sum(r["tokens_seen"] == budget_tokens for r in last.values())


def open_study(folder: Path, **settings: Any) -> Any:
    """The optuna.Study in `folder`."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    return optuna.create_study(storage=storage, study_name="versus", load_if_exists=True, **settings)


def search_with_optuna(job: dict[str, Any], folder: Path, scratch: str, index: int, expert: bool = False) -> None:
    """Process `index` of those that search until job["until"]. An `expert` chose sampler and pruner."""
    import optuna

    def objective(trial: optuna.Trial) -> float:
        config = {}
        for name, d in job["search"].ranges.items():
            if isinstance(d, Range):
                config[name] = trial.suggest_float(name, d.low, d.high, log=True)
            else:
                config[name] = trial.suggest_categorical(name, d.values)
        for mark, report in enumerate(training(job["search"], config, seed=job["seed"]), 1):
            trial.report(report.val_loss, mark)
            if report.diverged or (mark < MARKS and trial.should_prune()):
                raise optuna.TrialPruned
        return report.val_loss

    os.nice(15)  # as Ray's workers have by default, so that what else runs on the machine hits all methods alike
    seed = 1000 * job["seed"] + index  # one seed for all would give the same draws
    if expert:
        sampler = optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=2 * GRACE_MARKS, reduction_factor=REDUCTION_FACTOR)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed)
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=GRACE_MARKS, reduction_factor=REDUCTION_FACTOR)
    study = open_study(folder, sampler=sampler, pruner=pruner)
    for config in job["first"] if index == 0 else ():
        study.enqueue_trial(config)
    study.optimize(objective, timeout=job["until"] - time.time())


def optunas_pick(folder: Path, until: float, budget_tokens: int) -> Pick:
    """What study.best_trial would have been."""
    begun = [t for t in open_study(folder).get_trials() if t.datetime_start and t.datetime_start.timestamp() <= until]
    done = [t for t in begun if t.state.name == "COMPLETE" and t.datetime_complete.timestamp() <= until]
    best = min(done, key=lambda t: t.value, default=None)
    return best and best.params, len(begun), len(done)


WORKERS = {"ray": search_with_ray, "optuna": search_with_optuna, "expert": partial(search_with_optuna, expert=True)}
PICKS = {"ours": our_pick, "ours-tpe": our_pick, "ray": rays_pick, "optuna": optunas_pick, "expert": optunas_pick}


def read_job(folder: Path) -> dict[str, Any]:
    """What the process of a search in `folder` is to do."""
    return json.loads((folder / "job.json").read_text()) | {"search": read_search(folder.parent)}


def run_search(method: str, job: dict[str, Any], folder: Path) -> None:
    """Runs one search in processes of its own. Raises RunError where one of them fails."""
    shutil.rmtree(folder, ignore_errors=True)  # of a search that was cut short
    folder.mkdir()
    processes: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="versus-", ignore_cleanup_errors=True))
        log = stack.enter_context(open(folder / "log.txt", "w"))
        start = time.time()
        settings = {name: value for name, value in job.items() if name != "search"}
        (folder / "job.json").write_text(json.dumps(settings | {"until": start + job["seconds"]}))
        worker = [sys.executable, __file__, "--worker", method, str(folder), scratch]
        commands = {"ours": [our_command(job, folder, "gp")], "ours-tpe": [our_command(job, folder, "optuna")]}
        commands |= {"ray": [[*worker, "0"]], "optuna": [[*worker, str(index)] for index in range(job["slots"])]}
        commands["expert"] = commands["optuna"]
        end = start + job["seconds"] * (1 if method in ("optuna", "expert") else 1.5)  # later does not count
        try:
            for command in commands[method]:
                processes.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True))
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.time()))
            took, codes = time.time() - start, [process.returncode for process in processes]
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and what it left behind
                process.wait()
    if any(codes):
        raise RunError(f"{method}, seed {job['seed']}, failed: see {folder / 'log.txt'}")
    shutil.rmtree(folder / "search" / "ray", ignore_errors=True)  # checkpoints
    (folder / "done.part").write_text(json.dumps({"start": start, "took": round(took, 1)}))
    (folder / "done.part").rename(folder / "done.json")


# Scores


def retrained_loss(search: SearchSpec, config: Config, seed: int) -> float:
    """val_loss (nats per token) at the full budget over 16 times the search's validation windows; infinite if diverged."""
    eval_windows = 16 * search.training.eval_windows
    *_, last = training(search, config, seed=seed, eval_freq=search.budget_tokens, eval_windows=eval_windows)
    return math.inf if last.diverged else last.val_loss


def retrain(search: SearchSpec, configs: list[Config], seeds: list[int], slots: int, path: Path) -> dict:
    """(configuration, seed) -> loss; trains what `path` lacks, `slots` at once, and adds it there as it comes."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    losses = {(json.dumps(row["config"]), row["seed"]): row["val_loss"] for row in rows}
    wanted = {(json.dumps(config), seed): (config, seed) for config in configs for seed in seeds}
    missing = [pair for key, pair in wanted.items() if key not in losses]
    with ProcessPoolExecutor(slots, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(retrained_loss, search, *pair): pair for pair in missing}
        for future in as_completed(futures):
            config, seed = futures[future]
            losses[json.dumps(config), seed] = future.result()
            with open(path, "a") as file:
                print(json.dumps({"config": config, "seed": seed, "val_loss": future.result()}), file=file)
    return losses


def show(table: Any, methods: list[str], figure: Path | None) -> None:
    """Prints the scores of each search seed at the end, who wins how often, and the scores over time; draws the last."""
    at_end = table[table["share"] == 1].pivot(index="search_seed", columns="method")
    final, has_pick = at_end["val_loss"][methods], at_end["has_pick"].astype(bool)
    print(f"\nscores at the end, nats per token\n{final.round(4).to_string()}")
    print("median      " + "".join(f"{loss:8.4f}" for loss in final.median()))
    for peer in (name for name in PEERS if {"ours", name} <= set(methods)):
        gain = final[peer] - final["ours"]
        wins = f"{((gain > 0) & has_pick['ours']).sum()} of {len(gain)} seeds, equal in {(gain == 0).sum()}"
        print(f"ours is better than {peer} in {wins}; median gain {gain.median():.4f}")
    without = ", ".join(f"{method} {(~has_pick[method]).sum()}" for method in methods)
    print(f"searches that ended without a pick, scored with the reference, which wins nothing: {without}")
    over_time = table.groupby(["seconds", "method"])["val_loss"].agg(["median", "min", "max"])
    print(f"\nscores over time\n{over_time.unstack().swaplevel(axis=1)[methods].round(4).to_string()}")
    if figure is None:
        return
    from matplotlib.figure import Figure

    picture = Figure(figsize=(6.4, 4), layout="constrained")
    axes = picture.subplots()
    for method in methods:
        losses = over_time.xs(method, level="method")
        (line,) = axes.plot(losses["median"], marker="o", label=method)
        axes.fill_between(losses.index, losses["min"], losses["max"], color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set(xlabel="wall time of the search, s", ylabel="val_loss of its pick, nats per token")
    axes.legend(title=f"median and range of {len(final)} searches")
    picture.savefig(figure, dpi=150)


def parse_args() -> argparse.Namespace:
    parser = Parser(prog="versus.py", description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the study: experiments/runs/versus-NAME")
    parser.add_argument("--methods", nargs="+", default=["ours", "ray", "optuna"], choices=METHODS, help="those to compare")
    parser.add_argument("--preset", default="nano", help="model shape")
    parser.add_argument("--train_file", default=BUILTIN, help="training data: .bin, UTF-8 text, or 'builtin'")
    parser.add_argument("--val_file", default=BUILTIN, help="validation data, likewise")
    parser.add_argument("--tokenizer", default="byte", help="byte, a tiktoken encoding, or a .tiktoken file")
    parser.add_argument("--budget_tokens", type=int, help="tokens of one full training (unset: the preset's)")
    parser.add_argument("--slots", type=int, default=2, help="trainings at once, a core each")
    parser.add_argument("--seconds", type=float, default=120.0, help="wall time of a search, seconds")
    parser.add_argument("--seeds", type=int, default=5, help="search seeds: so many searches with each method")
    parser.add_argument("--retrain_seeds", type=int, default=3, help="trainings of each pick")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the time, when picks are scored")
    parser.add_argument("--reference", action="store_true", help="the peers, too, try the reference configuration first")
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the scores over time there")
    args = parser.parse_args()
    args.methods = list(dict.fromkeys(args.methods))
    for name in ("slots", "seconds", "seeds", "retrain_seeds"):
        if not getattr(args, name) > 0:
            raise InputError(f"--{name} is {getattr(args, name)}; it must be above 0")
    return args


def main() -> None:
    import pandas as pd

    args = parse_args()
    if args.slots > available_cpus():
        raise InputError(f"--slots is {args.slots}, but there are {available_cpus()} CPU cores")
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}  # cores only; nothing leaves the machine
    asked = {n: getattr(args, n) for n in ("preset", "tokenizer", "budget_tokens")}
    asked |= {n: (getattr(args, n),) for n in ("train_file", "val_file")}
    search = resolve_search(SearchOptions(space="v2", **asked), cache_dir())
    reference = search.sample(0)
    job = {"slots": args.slots, "seconds": args.seconds, "first": [reference] if args.reference else []}
    folder = RUNS_DIR / f"versus-{args.name}"
    path = folder / "settings.json"
    if path.exists():
        before = read_search(folder)
        same = json.loads(path.read_text()) == job
        if not same or any(getattr(before, n) != getattr(search, n) for n in ("model", "training", "data")):
            raise InputError(f"--name {args.name}: {path} has other settings; choose another name")
    else:
        folder.mkdir(parents=True)
        search.write(folder)
        path.write_text(json.dumps(job, indent=2))

    rows: list[dict[str, Any]] = []
    seeds = [FIRST_RETRAIN_SEED + i for i in range(args.retrain_seeds)]
    for turn in range(args.seeds):
        seed = FIRST_SEED + turn
        first = turn % len(args.methods)
        for method in args.methods[first:] + args.methods[:first]:
            where = folder / f"{method}-{seed}"
            if not (where / "done.json").exists():
                run_search(method, job | {"seed": seed, "search": search}, where)
            done = json.loads((where / "done.json").read_text())
            for share in sorted({*args.shares, 1.0}):
                row = {"method": method, "search_seed": seed, "share": share, "seconds": share * args.seconds}
                config, begun, full = PICKS[method](where, done["start"] + row["seconds"], search.budget_tokens)
                row |= {"trials": begun, "completed": full, "took_seconds": done["took"], "has_pick": config is not None}
                rows.append(row | {"config": dict(sorted((config or reference).items()))})
            print(f"seed {seed}, {method}: {begun} trials, {full} in full; ended after {done['took']:.0f} s", flush=True)
        baseline = dict(sorted(reference.items()))
        picks = [row["config"] for row in rows]
        losses = retrain(search, [*picks, baseline], seeds, args.slots, folder / "retrained.jsonl")
        for row in rows:
            of_pick, of_baseline = ([losses[json.dumps(c), s] for s in seeds] for c in (row["config"], baseline))
            row |= {"val_loss": sum(of_pick) / len(seeds), "spread": max(of_pick) - min(of_pick)}
            row["gain"] = sum(of_baseline) / len(seeds) - row["val_loss"]
        table = pd.DataFrame(rows)
        table.assign(config=table["config"].map(json.dumps)).to_csv(folder / "results.csv", index=False)
    show(table, args.methods, args.figure)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        method, folder, scratch, index = sys.argv[2:]
        WORKERS[method](read_job(Path(folder)), Path(folder), scratch, int(index))
    else:
        run_command(main)
