"""How well does a loss in the middle of training say how it ends? Records full curves for replay.py.

    python experiments/rung_metric.py --name embedded-cosine
    python experiments/rung_metric.py --name shakespeare --train_file train.bin --val_file val.bin --tokenizer byte

Trains sampled configurations of space v2, each with several seeds, to the full budget, stopping none. At each of the 32
report marks it records val_loss, val_loss_ema (averaged weights) and, at the marks in BRANCHES, val_loss_cooldown: the loss
at the end of a branch that trains on for BRANCH_SHARE of the tokens so far while the rate falls to zero, then discarded.
Each training is a file of its own, so the command goes on where it was stopped; at the end they become
experiments/data/NAME.csv.gz, all losses in nats per token. Configurations come in order, so a part of the study is a study:
--collect makes the table of what there is. A dense table for dense.py has many configurations and val_loss alone:

    python experiments/rung_metric.py --name perl-131k --train_file train.bin --val_file val.bin --plain --configs 400 \
        --seeds 2 --budget_tokens 131072 --eval_windows 32 --range learning_rate=2e-4:2e-2 --choices batch_size=1,2,4,8,16
"""

import argparse
import copy
import dataclasses
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
import torch

from myllm.system.files import cache_dir
from myllm.training.train import Run, mean_loss, train
from tune.config.open_run import open_run
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search
from tune.config.spec import RUNS_DIR, SearchSpec
from tune.core.search_space import even_draw

BRANCHES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2)
BRANCH_SHARE = 0.2


def cooldown_loss(run: Run) -> float:
    """val_loss (nats per token) after a branch whose rate falls to 0; `run` stays as it is."""
    state = copy.deepcopy(run.state_dict())
    steps = max(1, round(BRANCH_SHARE * run.step))
    rates = [group["lr"] for group in run.optimizer.param_groups]
    for step in range(steps):
        for group, rate in zip(run.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - (step + 1) / (steps + 1))
        run.backward(*run.stream.next())
        torch.nn.utils.clip_grad_norm_(run.parameters, run.config.clip_norm)
        run.optimizer.step()
    loss = mean_loss(run, run.val_windows, run.val_windows.spread(run.config.eval_windows))
    run.load_state_dict(state)
    return loss


def be_modest() -> None:
    """Leaves this process one core, and that after all others."""
    os.nice(19)
    torch.set_num_threads(1)


def record(search: SearchSpec, draw_seed: int, index: int, seed: int, path: Path, plain: bool = False) -> None:
    """Trains configuration `index` with `seed` and writes its curve to `path`, whole or not at all. A `plain` curve has
    val_loss alone.
    """
    hyper_parameters = even_draw(search.ranges, draw_seed, index) if index > 0 else dict(search.baseline)
    changes = {"ema_ratio": 0.0} if plain else {}
    run = open_run(search, hyper_parameters, seed=seed, **changes)
    config = run.config
    rows = []
    for report in train(run):
        row = {"trial_id": f"{index:05d}", "seed": seed, "tokens_seen": report.tokens_seen, "val_loss": report.val_loss}
        if not plain:
            branch = report.tokens_seen / config.budget_tokens in BRANCHES and not report.diverged
            row |= {"val_loss_ema": report.val_loss_ema, "val_loss_cooldown": cooldown_loss(run) if branch else math.nan}
        rows.append(row)
    temporary = path.with_suffix(".part")
    values = {name: float(f"{value:.5g}") for name, value in hyper_parameters.items()}
    table = pd.DataFrame(rows).round(5).assign(**values | {"batch_size": config.batch_size})
    table.to_csv(temporary, index=False)
    temporary.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="of the study: experiments/data/NAME.csv.gz")
    parser.add_argument("--preset", default="nano", help="model shape")
    parser.add_argument("--train_file", default="builtin", help="training data")
    parser.add_argument("--val_file", default="builtin", help="validation data")
    parser.add_argument("--tokenizer", default="byte", help="byte, a tiktoken encoding, or a .tiktoken file")
    parser.add_argument("--draw_seed", type=int, default=20, help="of the configurations; not that of a test or search")
    parser.add_argument("--configs", type=int, default=64, help="sampled configurations")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each")
    parser.add_argument("--budget_tokens", type=int, default=524_288, help="tokens of one training")
    parser.add_argument("--eval_windows", type=int, default=48, help="validation windows at each mark")
    parser.add_argument("--schedule", default="cosine", choices=["cosine", "wsd"], help="shape of the learning rate")
    parser.add_argument("--range", nargs="+", default=(), help="NAME=MIN:MAX, as in search.py")
    parser.add_argument("--choices", nargs="+", default=(), help="NAME=VALUE,VALUE,..., as in search.py")
    parser.add_argument("--plain", action="store_true", help="val_loss alone, no averaged weights and no branches")
    parser.add_argument("--collect", action="store_true", help="train nothing: the table of what is whole")
    parser.add_argument("--workers", type=int, default=2, help="trainings at once, one core each, at the lowest priority")
    args = parser.parse_args()
    settings = {name: getattr(args, name) for name in ("preset", "tokenizer", "budget_tokens")}
    settings |= {name: (getattr(args, name),) for name in ("train_file", "val_file")}
    settings |= {name: tuple(getattr(args, name)) for name in ("range", "choices")}
    search = resolve_search(SearchOptions(space="v2", **settings), cache_dir())
    changes = {"schedule": args.schedule, "ema_ratio": 0.1, "eval_windows": args.eval_windows}
    search = dataclasses.replace(search, training=dataclasses.replace(search.training, **changes))
    folder = RUNS_DIR / f"study-{args.name}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = {(i, s): folder / f"{i:05d}-{s}.csv" for i in range(args.configs) for s in range(args.seeds)}
    missing = [key for key, path in paths.items() if not path.exists()]
    if args.collect:
        whole = {i for i in range(args.configs) if all((i, s) not in missing for s in range(args.seeds))}
        paths, missing = {key: path for key, path in paths.items() if key[0] in whole}, []
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn"), be_modest) as pool:
        futures = [pool.submit(record, search, args.draw_seed, *key, paths[key], args.plain) for key in missing]
        for done, future in enumerate(futures, 1):
            try:
                future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            print(f"{len(paths) - len(missing) + done} of {len(paths)} trainings", flush=True)
    table = pd.concat([pd.read_csv(path, dtype={"trial_id": str}) for path in paths.values()])
    output = Path(__file__).parent / "data" / f"{args.name}.csv.gz"
    output.parent.mkdir(exist_ok=True)
    table.to_csv(output, index=False)
    print(f"wrote {output}: {len(table)} rows")


if __name__ == "__main__":
    main()
