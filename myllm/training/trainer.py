"""Command line for one training run.

python myllm/training/trainer.py --train_file train_ids.bin --val_file val_ids.bin --epochs 4 --save_model model.pth
python myllm/training/trainer.py --config experiments/runs/NAME/best_config.json --save_model final.pth
python myllm/training/trainer.py --from_trial experiments/runs/NAME/00007 --save_model final.pth
python myllm/training/trainer.py --load_model final.pth --generate "Once"
"""

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import myllm.system.imports

myllm.system.imports.check_imports()


import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

from myllm.config import PRESETS, TrainConfig, field_help, from_dict, get_preset, value_type
from myllm.datasets.data_paths import BUILTIN, is_builtin
from myllm.datasets.load_tokens import default_tokenizer, prepare
from myllm.datasets.token_layout import DTYPES
from myllm.datasets.tokenizer import get_tokenizer, identity, resolve
from myllm.datasets.windows import Windows
from myllm.models.model_check import choose_model
from myllm.system.errors import InputError, Parser, run_command, warn
from myllm.system.files import check_writable
from myllm.system.progress_bar import Bar
from myllm.training import generate
from myllm.training.gpu import pick_device
from myllm.training.hparam_transfer import Transfer, rescaled_rate, search_command, transferred
from myllm.training.run_artifacts import read_config
from myllm.training.train import Report, Run, learning_rate_at, train
from myllm.training.train_utils import load_state, load_trial, plot_losses, save_state, text_to_token_ids

TRAIN_FLAGS = (
    *("learning_rate", "batch_size", "max_len", "stride", "epochs", "budget_tokens", "eval_freq", "warmup_ratio"),
    *("min_lr_ratio", "schedule", "cooldown_ratio", "clip_norm", "weight_decay", "beta1", "beta2", "beta2_half_life"),
    *("micro_batch_size", "seed", "dtype", "float32_matmul", "compile"),
)
"""fields of the TrainConfig that are flags"""


def parse_args() -> argparse.Namespace:
    parser = Parser(prog="trainer.py", description="Trains one GPT, evaluates it, and saves it after each epoch.")
    parser.add_argument("--config", help="a best_config.json; flags given beside it win")
    parser.add_argument("--from_trial", metavar="RUN/TRIAL", help="a search's trial: its settings, and its weights go on")
    parser.add_argument("--preset", help=f"model shape and reference settings: {', '.join(PRESETS)} (default: nano)")
    parser.add_argument("--model", help="your own model, FILE.py:Class (default: GPT-2's decoder)")
    parser.add_argument(
        "--set", nargs="+", action="extend", metavar="NAME=VALUE", help="settings of the model: n_layer=4 ..."
    )
    parser.add_argument(
        "--version", choices=["v1", "v2"], help="v1: plain loop; v2: warm-up, cosine, clipping (default: v2)"
    )
    parser.add_argument("--train_file", nargs="+", help="token files or text: names, glob, or folder (default: builtin)")
    parser.add_argument("--val_file", nargs="+", help="validation data, likewise (default: builtin)")
    parser.add_argument("--tokenizer", help="byte, a tiktoken encoding, .tiktoken or tokenizer.json (default: by the data)")
    parser.add_argument("--token_dtype", choices=list(DTYPES), help="what bare .bin files hold (default: uint16)")
    parser.add_argument(
        "--text_column", help="column that is the text, of .jsonl, .csv, .parquet and .arrow files (default: found)"
    )
    helps, fields = field_help(TrainConfig), {field.name: field for field in dataclasses.fields(TrainConfig)}
    for name in TRAIN_FLAGS:
        parser.add_argument(f"--{name}", type=value_type(fields[name]), help=helps[name].replace("%", "%%"))
    parser.add_argument("--eval_iter", type=int, help="batches of each of train and val per evaluation (default: 4)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ..., or auto")
    parser.add_argument("--start_context", default="\n", help="text that the sample after each epoch continues")
    parser.add_argument("--save_model", help="file for the whole training state, written after each epoch")
    parser.add_argument("--load_model", help="v2: saved state to go on from")
    parser.add_argument("--generate", metavar="TEXT", help="print how a trained model continues TEXT, and train nothing")
    parser.add_argument("--length", type=int, help="most tokens of such a text (default: 200, of samples 50)")
    parser.add_argument("--temperature", type=float, help="how evenly they are drawn, 0: the likeliest (default: 0.8)")
    parser.add_argument("--top_k", type=int, help="of how many, the likeliest, each is drawn (default: 40)")
    parser.add_argument("--plot", help="PNG of the losses, written at the end")
    parser.add_alias("--fix", "--set")  # its name before 0.1.0
    for action in parser._actions:
        if action.default is None:
            action.default = argparse.SUPPRESS  # absent means "not given"; its default stands in its help
    return parser.parse_args()


def kinds_of(*files: str | list[str] | None) -> set[str]:
    """The endings of files' names."""
    return {Path(name).suffix for names in files for name in ([names] if isinstance(names, str) else names or ())}


def settle(args: argparse.Namespace, config: dict[str, Any], where: str) -> tuple[Run, str, list[Transfer]]:
    """The Run that flags, the config of the file `where`, and preset describe (the earlier wins).

    Returns also the tokenizer's name, and what of the config was rescaled to another model or budget.
    """
    given = vars(args)
    preset = get_preset(given.get("preset", config.get("preset", "nano")))
    data = config.get("data", {})
    train_file = given.get("train_file", data.get("train_file", BUILTIN))
    val_file = given.get("val_file", data.get("val_file", BUILTIN))
    if is_builtin(train_file) != is_builtin(val_file):
        raise InputError("--train_file and --val_file belong together: give both, or neither for the built-in corpus")
    tokenizer_name = resolve(given.get("tokenizer", data.get("tokenizer", default_tokenizer(train_file))))
    tokenizer = get_tokenizer(tokenizer_name)
    if data.get("tokenizer_sha256") not in (None, identity(tokenizer)):
        raise InputError(f"{where}: found with a tokenizer of other contents than --tokenizer {tokenizer_name}")
    device = pick_device(args.device)

    model_config = choose_model(given, config, where, preset, tokenizer.n_vocab)
    if model_config.vocab_size != tokenizer.n_vocab:
        raise InputError(
            f"{where}: the model has vocab_size {model_config.vocab_size}, --tokenizer {tokenizer_name} {tokenizer.n_vocab}"
        )
    flags = {name: given[name] for name in [*TRAIN_FLAGS, "version"] if name in given}
    if "train" in config:
        train_config, rescaled = transferred(config, where, flags, model_config, preset)
    else:
        flags.setdefault("max_len", model_config.block_size)
        batch_tokens = flags.get("batch_size", preset.batch_size) * flags["max_len"]
        if not {"epochs", "budget_tokens"} & flags.keys() and batch_tokens > 0:
            flags["budget_tokens"] = max(1, preset.budget_tokens // batch_tokens) * batch_tokens
        flags.setdefault("eval_windows", 4 * max(1, flags.get("batch_size", preset.batch_size)))
        train_config, rescaled = preset.training(**flags), []
    if "eval_iter" in given:
        if args.eval_iter < 1:
            raise InputError(f"--eval_iter is {args.eval_iter}; it must be a positive whole number of batches")
        eval_windows = args.eval_iter * train_config.batch_size
        train_config = dataclasses.replace(train_config, eval_windows=eval_windows, train_eval_windows=None)

    known = data if kinds_of(train_file, val_file) == kinds_of(data.get("train_file"), data.get("val_file")) else {}
    how = {name: given.get(name, known.get(name)) for name in ("token_dtype", "text_column")}
    windows = []
    for split, file in (("train", train_file), ("val", val_file)):
        tokens = prepare(file, split, tokenizer_name, tokenizer, **how)
        windows.append(Windows(tokens, train_config.max_len, train_config.stride))
        saved = (data.get("fingerprint") or {}).get(split)
        if saved and f"{split}_file" not in given and saved != tokens.fingerprint():
            warn(f"{tokens.name} is not the data that {where} was found on")
    if "train" in config and "learning_rate" not in given:
        train_config, change = rescaled_rate(config, train_config, model_config)
        rescaled += [change] if change else []
    return Run(model_config, train_config, *windows, device=device), tokenizer_name, rescaled


def steps_of(before: TrainConfig, run: Run) -> int:
    """Optimizer steps of the run that `before` laid out; its data taken for that of `run`, where nothing else is known."""
    if before.budget_tokens is not None:
        return before.budget_tokens // before.tokens_per_step
    return max(run.step, before.epochs * run.stream.steps_per_epoch)


def restore(run: Run, state: dict[str, Any], path: str) -> None:
    """Loads the state of the file `path` into `run`, and says where it goes on."""
    run.load_state_dict(state, other_data=True)
    before = from_dict(TrainConfig, state["train_config"], path)
    print(f"resumed from {path} at step {run.step} of {run.total_steps}")
    saved, now = state.get("data"), run.data_identity()
    if run.trained_on_other_data(state):
        was = f"{saved['train']['tokens']:,} tokens" if saved else "of unknown length"
        print(
            f"data: {run.train_windows.tokens.name} ({now['train']['tokens']:,} tokens) is not what {path} was trained on "
            f"({was}); a new pass over it begins, after {run.earlier_epochs} over the other"
        )
    if saved and saved["val"] != now["val"]:
        print(
            f"data: {run.val_windows.tokens.name} is not the validation data of {path}: val_loss can't be compared with it"
        )
    old_total = state.get("total_steps") or steps_of(before, run)
    if old_total != run.total_steps and run.step < run.total_steps:
        old = learning_rate_at(max(0, run.step - 1), old_total, before)
        new = learning_rate_at(run.step, run.total_steps, run.config)
        print(
            f"schedule: laid out anew over {run.total_steps} steps (was {old_total}); "
            f"the learning rate goes from {old:.3g} to {new:.3g}"
        )
    code = getattr(run.model_config, "sha256", None)
    if code != state["model_config"].get("sha256"):
        print(f"model: the code of {run.model_config.source} is not what {path} was trained with")


def describe(report: Report, epoch: float) -> str:
    return (
        f"epoch {epoch:.2f} step {report.step}: train_loss {report.train_loss:.4f} val_loss {report.val_loss:.4f} "
        f"lr {report.lr:.2e} {report.tok_per_sec:,.0f} tok/s"
    )


def tell_rescaled(run: Run, config: dict[str, Any], given: dict[str, Any], rescaled: list[Transfer]) -> None:
    """Says what is not as the search found it, what is, and by which command one would look again."""
    tokens, before = run.total_steps * run.config.tokens_per_step, config.get("train", {}).get("budget_tokens")
    times = tokens / before if before and "learning_rate" not in given else 1.0
    for change in rescaled:
        print(f"rescaled: {change}")
    if not 0.5 < times < 2:
        print(f"kept: the learning rate, for {times:.3g} times the tokens: published laws disagree in sign")
    elif not rescaled:
        return
    kept = ", ".join(f"{name} {getattr(run.config, name):.4g}" for name in ("clip_norm", "warmup_ratio", "weight_decay"))
    print(f"kept: {run.config.tokens_per_step:,} tokens a step, {kept}")
    if run.config.version == "v1":
        return  # of which only v1's own space searches
    names = ("train_file", "val_file", "tokenizer", "token_dtype", "text_column")
    data = {name: given.get(name, config.get("data", {}).get(name)) for name in names}
    embedded = is_builtin(data["train_file"] or BUILTIN)
    flags = {} if embedded else {n: [v] if isinstance(v, str) else v for n, v in data.items() if v is not None}
    preset = given.get("preset", config.get("preset", "nano"))
    again = search_command(run.config, run.model_config, preset, tokens, config["train"]["learning_rate"], flags)
    print(f"a law is no measurement; to search the rate again: {again}")


def check_places(given: dict[str, Any]) -> None:
    """Tries every file that will be written, and what writes it. Raises InputError."""
    for flag in ("save_model", "plot"):
        if flag in given:
            check_writable(given[flag], f"--{flag}")
    if "plot" in given and importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs the package matplotlib; pip install matplotlib")


def main() -> int:
    args = parse_args()
    given = vars(args)
    generate.check_flags(given)
    if "generate" in given:
        print(generate.write(args))
        return 0
    save_model, load_model = given.get("save_model"), given.get("load_model")
    if load_model and given.get("version") == "v1":
        raise InputError("--load_model belongs to v2: V1 starts anew each time")
    goes_on = save_model and load_model and os.path.realpath(save_model) == os.path.realpath(load_model)
    if save_model and Path(save_model).exists() and not goes_on:
        raise InputError(f"--save_model {save_model} exists; go on from it with --load_model, or choose another name")
    check_places(given)
    config, where, state = {}, "", None
    if "from_trial" in given:
        if "config" in given:
            raise InputError("--from_trial brings its trial's settings: leave out --config, or continue nothing")
        trial, state, place = load_trial(args.from_trial)
        where = place if "://" not in place else str(trial.run_dir / "search.json")
        config = {
            "preset": trial.preset,
            "model": state["model_config"],
            "train": state["train_config"],
            "data": trial.data,
        }
    elif "config" in given:
        config, where = read_config(args.config), args.config
    run, tokenizer_name, rescaled = settle(args, config, where)
    tokenizer = get_tokenizer(tokenizer_name)
    if load_model and run.config.version == "v1":
        raise InputError("--load_model belongs to v2, and the config says v1: V1 starts anew each time")
    if not text_to_token_ids(args.start_context, tokenizer).numel():
        raise InputError("--start_context is empty; give at least one character")
    if load_model:
        state, place = load_state(load_model), load_model
    if state:
        restore(run, state, place)
    tell_rescaled(run, config, given, rescaled)
    history = (state or {}).get("history", [])
    notes = [vars(change) for change in rescaled if change.old != change.new] or (state or {}).get("rescaled", [])
    kept = {"history": history, "tokenizer": tokenizer_name, "rescaled": notes}
    parameters = sum(parameter.numel() for parameter in run.parameters)
    print(
        f"{parameters:,} parameters, {run.total_steps} steps of {run.config.tokens_per_step:,} tokens, "
        f"{run.stream.steps_per_epoch} steps an epoch, on {run.device}"
    )
    if run.step >= run.total_steps:
        longer = "--epochs, which counts all passes so far," if run.config.epochs else "--budget_tokens"
        print(f"nothing left to train: the saved run is at its end; a larger {longer} goes on")
    with Bar(run.total_steps, "training", "steps", begin=run.step) as bar:
        while run.step < run.total_steps:
            for report in train(run, run.epoch_end):
                bar.update(report.step - bar.n)
                if compiled := run.compilation.news():
                    print(compiled)
                print(describe(report, run.epoch_at(report.step)))
                history.append(dataclasses.asdict(report) | {"epoch": run.epoch_at(report.step)})
                if report.diverged:
                    print(f"diverged at step {report.step}: the loss is no longer finite; try a lower --learning_rate")
                    return 1
            if save_model:
                save_state(run.state_dict() | kept, save_model)
            if generate.can_write(run.model, run.model_config):
                how = {"length": generate.SAMPLE_LENGTH} | given
                text = generate.draw(run.model, run.model_config, args.start_context, tokenizer, how, run.config.seed)
                print("sample: " + repr(text))
    if "plot" in given and history:
        columns = [[row[name] for row in history] for name in ("epoch", "tokens_seen", "train_loss", "val_loss")]
        plot_losses(*columns, args.plot)
        print(f"wrote {args.plot}")
    return 0


def cli() -> None:
    """Runs the command with its errors in one line; ends the process."""
    run_command(main)


if __name__ == "__main__":
    cli()
