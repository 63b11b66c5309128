"""Spellings of before 0.1.0: they work, --help does not name them, and one beside its new spelling is refused."""

import json
import sys

import pytest
from helpers import RECORDED, search_of

from myllm.system.errors import InputError
from tune.config.command_line import parse_args, read_experiment, search_parser
from tune.config.options import OLD_NAMES, OLD_VALUES, SearchOptions
from tune.config.spec import read_search

OLD = {
    "patience": ("60", "stall_timeout", 60.0),
    "fix": ("beta1=0.8", "set", ["beta1=0.8"]),
    "confirm": ("2", "replicate_best", 2),
    "audit": ("0.5", "audit_fraction", 0.5),
    "scheduler": ("half", "scheduler", "explore-finish"),
    "space": ("own", "space", "custom"),
    "train_file": ("embedded", "train_file", ["builtin"]),
    "val_file": ("embedded", "val_file", ["builtin"]),
}
"""flag -> (its text, today's name, the value that it stands for)"""


def parsed(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["search.py", *words])
    return parse_args()


@pytest.mark.parametrize("flag", OLD)
def test_an_old_flag_means_what_the_new_one_does(flag, monkeypatch):
    text, name, value = OLD[flag]
    assert parsed(monkeypatch, f"--{flag}", text) == {name: value}
    assert parsed(monkeypatch, f"--{flag}={text}") == {name: value}


def test_every_old_name_is_tried_here_and_none_is_shown():
    assert OLD_NAMES.keys() - OLD.keys() == {"trust"} and OLD_VALUES.keys() <= OLD.keys()
    words = search_parser().format_help().replace(",", " ").split()
    assert not {f"--{name}" for name in OLD_NAMES} & {*words} and "embedded" not in words


def test_trust_is_a_flag_without_a_value(monkeypatch):
    assert parsed(monkeypatch, "--resume", "x", "--trust") == {"resume": "x", "allow_other_owner": True}


@pytest.mark.parametrize("old", [name for name in OLD_NAMES if name in OLD])
def test_both_spellings_together_are_one_clear_line(old, monkeypatch, tmp_path):
    text, new = OLD[old][0], OLD_NAMES[old]
    with pytest.raises(InputError, match=f"^--{old} is the old name of --{new}; leave out one of the two$"):
        parsed(monkeypatch, f"--{old}", text, f"--{new}={text}")
    path = tmp_path / "both.toml"
    value = json.dumps([text]) if old == "fix" else text
    path.write_text(f"{old} = {value}\n{new} = {value}\n")
    with pytest.raises(InputError, match=rf"both\.toml: {old} is the old name of {new}; leave out one of the two$"):
        read_experiment(str(path), {})


def test_an_experiment_of_before_is_read(tmp_path):
    path = tmp_path / "old.toml"
    path.write_text(
        'patience = 60.0\nconfirm = 2\naudit = 0.5\nscheduler = "half"\ntrain_file = "embedded"\nval_file = ["embedded"]\n'
        '[space]\nbase = "own"\ndropout = "0:0.2"\nbeta1 = 0.8\n'
    )
    values = read_experiment(str(path), {})
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    assert SearchOptions(**values) == SearchOptions(
        space="custom",
        range=("dropout=0:0.2",),
        set=("beta1=0.8",),
        stall_timeout=60.0,
        replicate_best=2,
        audit_fraction=0.5,
    )
    path.write_text('fix = ["beta1=0.8"]\nspace = "own"\n')
    assert read_experiment(str(path), {}) == {"set": ["beta1=0.8"], "space": "custom"}


def test_a_search_json_of_before_is_read_and_written_in_todays_words(tmp_path):
    options = read_search(RECORDED).options
    assert (options.scheduler, options.train_file, options.stall_timeout) == ("explore-finish", ("builtin",), 300.0)
    options = read_search(RECORDED.parent / "release-0" / "run").options
    assert options.replicate_best == 1 and options.set[0] == "n_layer=1" and options.audit_fraction is None
    search_of(name="x").write(tmp_path)
    assert not {*OLD_NAMES} & json.loads((tmp_path / "search.json").read_text())["options"].keys()
