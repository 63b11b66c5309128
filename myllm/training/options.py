"""The flags of trainer.py, generated from dataclasses: their names, types and help stand beside each field."""

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

from myllm.config import TrainConfig, field_help, value_type
from myllm.datasets.token_layout import DTYPES
from myllm.system.errors import Parser
from myllm.text.durations import parse_duration


@dataclass(frozen=True)
class TrainerOptions:
    """The options of trainer.py beside the training settings of TrainConfig."""

    config: str | None = None
    """a best_config.json; flags given beside it win"""
    from_trial: str | None = None
    """RUN/TRIAL, a trial of a search: training goes on with its settings and its weights"""
    preset: str | None = None
    """model shape and baseline settings: nano, micro, mini, gpt2, gpt2-medium, gpt2-large or gpt2-xl,
    each also with -modern behind it (default: nano)"""
    model: str | None = None
    """your own model, FILE.py:Class (default: GPT-2's decoder)"""
    set: tuple[str, ...] = ()
    """settings of the model: of the built-in one n_layer, n_head, n_embd, block_size, dropout, bias, activation, norm,
    position, mlp, qk_norm, n_kv_head and tied"""
    train_file: tuple[str, ...] = ()
    """token files or text: names, glob, or folder (default: builtin)"""
    val_file: tuple[str, ...] = ()
    """validation data, likewise (default: builtin)"""
    tokenizer: str | None = None
    """byte, a tiktoken encoding, .tiktoken or tokenizer.json (default: by the data)"""
    token_dtype: str | None = None
    """what bare .bin files hold (default: uint16)"""
    text_column: str | None = None
    """column that is the text, of .jsonl, .csv, .parquet and .arrow files (default: found)"""
    eval_iter: int | None = None
    """batches of each of train and val per evaluation (default: 4)"""
    device: str = "auto"
    """cpu, cuda, cuda:1, ..., or auto"""
    start_context: str = "\n"
    """text that the sample after each epoch continues (default: a line break)"""
    save_model: str | None = None
    """file for the whole training state, written after each epoch, every --save_every, and on Ctrl-C or SIGTERM"""
    save_every: str = "10m"
    """time between two saves within a pass, such as 30s, 10m or 2h; a number alone counts minutes (default: 10m)"""
    load_model: str | None = None
    """v2: saved state to go on from"""
    generate: str | None = None
    """print how a trained model continues this text, and train nothing"""
    length: int | None = None
    """most tokens of a drawn text (default: 200, of samples 50)"""
    temperature: float = 0.8
    """how evenly tokens are drawn, 0: always the likeliest (default: 0.8)"""
    top_k: int = 40
    """number of likeliest tokens of which each is drawn (default: 40)"""
    plot: str | None = None
    """PNG of the losses, written at the end"""


NOT_FLAGS = ("eval_windows", "train_eval_windows")
"""fields of TrainConfig that --eval_iter sets"""
CHOICES = {"token_dtype": list(DTYPES), "version": ["v1", "v2"]}


def parse_args() -> dict[str, Any]:
    """Returns the flags that were given, by name. Raises InputError for those that can't be read."""
    parser = Parser(
        prog="trainer.py",
        description="Trains one GPT, evaluates it, and saves it after each epoch.",
        argument_default=argparse.SUPPRESS,
    )
    for options in (TrainerOptions, TrainConfig):
        helps = field_help(options)
        for field in dataclasses.fields(options):
            if field.name in NOT_FLAGS:
                continue
            kind = value_type(field)
            how: dict[str, Any] = {"type": kind, "choices": CHOICES.get(field.name)}
            if kind is tuple:
                how = {"nargs": "+"}
            if field.name == "budget_seconds":
                how = {"metavar": "TIME"}
            if field.name == "set":
                how = {"nargs": "+", "action": "extend", "metavar": "NAME=VALUE"}
            parser.add_argument(f"--{field.name}", help=helps[field.name].replace("%", "%%"), **how)
    parser.add_alias("--fix", "--set")  # the name before 0.1.0
    given = vars(parser.parse_args())
    if "budget_seconds" in given:
        given["budget_seconds"] = parse_duration(given["budget_seconds"])
    return given


def trainer_options(given: dict[str, Any]) -> TrainerOptions:
    """Returns the options among the flags that were given, with the defaults of the others."""
    names = {field.name for field in dataclasses.fields(TrainerOptions)}
    return TrainerOptions(**{name: value for name, value in given.items() if name in names})


def training_flags(given: dict[str, Any]) -> dict[str, Any]:
    """Returns the flags that are fields of TrainConfig."""
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    return {name: value for name, value in given.items() if name in names}
