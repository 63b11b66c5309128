"""What was found at one size or budget, at another: which values move, by which rule, and who has the last word."""

import dataclasses
import json
import math
import shlex

import pytest

from myllm.models.custom_model import custom_model, fix_settings
from myllm.presets import PRESETS
from myllm.scaling_laws import Size, movement, step_law_point
from myllm.system.errors import InputError
from myllm.training.hparam_transfer import carried, search_command, times_as_wide
from myllm.training.train_utils import load_state
from tune import search


@pytest.fixture
def found(byte_files, tmp_path):
    """A best_config.json of preset nano."""
    train = {"learning_rate": 0.004, "batch_size": 8, "max_len": 128, "stride": 128, "budget_tokens": 8192}
    train |= {"clip_norm": 0.5, "warmup_ratio": 0.1, "eval_freq": 100, "eval_windows": 2}
    train_file, val_file = ([str(path)] for path in byte_files)
    data = {"train_file": train_file, "val_file": val_file, "tokenizer": "byte"}
    config = {"preset": "nano", "model": vars(PRESETS["nano"].model(257)), "train": train, "data": data}
    (tmp_path / "best_config.json").write_text(json.dumps(config))
    return tmp_path / "best_config.json"


def test_width_is_that_of_the_matrices_whatever_the_model(tmp_path):
    def shape(name, **changes):
        return fix_settings(PRESETS[name].model(257), [f"{n}={v}" for n, v in changes.items()])

    nano = shape("nano")
    assert times_as_wide(shape("micro"), nano) == 2 and times_as_wide(nano, shape("micro")) == 0.5
    assert times_as_wide(shape("nano", n_layer=7), nano) == 1 == times_as_wide(nano, nano)
    (tmp_path / "m.py").write_text(
        "import torch\n"
        "class M(torch.nn.Module):\n"
        "    settings = {'wide': 8}\n"
        "    def __init__(self, settings, vocab_size):\n"
        "        super().__init__()\n"
        "        self.table = torch.nn.Embedding(vocab_size, settings['wide'])\n"
        "        self.inner = torch.nn.Linear(settings['wide'], 5)\n"
        "        assert self.inner.weight.sum().item() < 1e9, 'the meta device has no values'\n"
    )
    own = custom_model(f"{tmp_path}/m.py:M", 257, 16)
    assert times_as_wide(fix_settings(own, ["wide=24"]), own) == 3 and times_as_wide(own, nano) == 1


def test_what_was_found_stays_until_the_model_is_wider(found, command, tmp_path, capsys):
    def trained(*flags):
        path = tmp_path / "final.pth"
        path.unlink(missing_ok=True)
        assert command("--config", found, "--save_model", path, *flags) == 0
        return load_state(path), capsys.readouterr().out

    before = json.loads(found.read_text())["train"]
    state, said = trained("--epochs", "2")  # another budget alone moves nothing
    assert state["train_config"].items() >= (before | {"budget_tokens": None, "epochs": 2}).items()
    assert "rescaled" not in said and state["rescaled"] == []
    assert "kept: the learning rate, for 7.25 times the tokens: no law of the tokens holds below 10M" in said

    state, said = trained("--set", "n_embd=128", "n_head=4")
    assert state["train_config"].items() >= (before | {"learning_rate": 0.002}).items()
    assert "rescaled: learning_rate 0.004 -> 0.002 (90%: 0.0" in said
    assert "): 2 times the width (1/width, Yang et al., arXiv 2203.03466)" in said
    assert "kept: 1,024 tokens a step, clip_norm 0.5, warmup_ratio 0.1, weight_decay 0.1" in said
    assert state["rescaled"] == [
        {
            "name": "learning_rate",
            "old": 0.004,
            "new": 0.002,
            "why": "2 times the width (1/width, Yang et al., arXiv 2203.03466)",
            "sd": pytest.approx(movement(Size(98_304, 8192), Size(393_216, 8192)).log_rate_sd),
        }
    ]
    state, said = trained("--set", "n_embd=128", "--learning_rate", "0.01")
    assert state["train_config"]["learning_rate"] == 0.01 and "rescaled" not in said
    state, said = trained("--set", "n_embd=32")
    assert state["train_config"]["learning_rate"] == 0.004 and "learning_rate stays 0.004 (90%: 0.0" in said
    assert "): not raised to 0.008, above what was tried" in said


def test_what_was_chosen_beside_a_models_size_goes_with_it_to_another(found, command, tmp_path):
    config = json.loads(found.read_text())
    config["model"] |= {"activation": "gelu_tanh", "bias": not config["model"]["bias"]}
    found.write_text(json.dumps(config))
    small = ("--set", "n_layer=1", "--budget_tokens", "2048", "--save_model", tmp_path / "a.pth")
    assert command("--config", found, "--preset", "micro", *small) == 0
    model = load_state(tmp_path / "a.pth")["model_config"]
    assert (model["activation"], model["bias"]) == ("gelu_tanh", config["model"]["bias"]) and model["n_embd"] == 128
    (tmp_path / "m.py").write_text("import torch\nclass M(torch.nn.Module):\n    settings = {'wide': 8}\n")
    found.write_text(json.dumps(config | {"model": vars(custom_model(f"{tmp_path}/m.py:M", 257, 128))}))
    with pytest.raises(InputError, match=r"--preset micro: .* is for your own model .*M, which has no presets"):
        command("--config", found, "--preset", "micro")


def test_windows_that_lay_side_by_side_do_so_at_another_length(found, command, tmp_path, capsys):
    assert command("--config", found, "--max_len", "64", "--save_model", tmp_path / "a.pth") == 0
    now = load_state(tmp_path / "a.pth")["train_config"]
    assert (now["max_len"], now["stride"]) == (64, 64) and "rescaled: stride 128 -> 64" in capsys.readouterr().out


def test_a_half_life_decides_beta2_in_the_command_to_search_again():
    training = PRESETS["nano"].training(beta2=0.7, beta2_half_life=1e6)
    said = search_command(training, PRESETS["nano"].model(257), "nano", 1000, 0.01, {})
    assert "beta2_half_life=1000000.0" in said and "beta2=" not in said


def test_another_preset_brings_its_context_and_keeps_the_tokens_of_a_step(found, command, tmp_path, capsys, monkeypatch):
    path = tmp_path / "final.pth"
    wide = PRESETS["mini"].__class__(
        1, 2, 128, 256, learning_rate=1e-3, batch_size=64, budget_tokens=16384, micro_batch_size=2
    )
    monkeypatch.setitem(PRESETS, "test-wide", wide)
    assert command("--config", found, "--preset", "test-wide", "--save_model", path) == 0
    said, now = capsys.readouterr().out, load_state(path)["train_config"]
    assert (now["max_len"], now["stride"], now["batch_size"], now["micro_batch_size"]) == (256, 256, 4, 2)
    assert now["budget_tokens"] == 8192 and now["learning_rate"] == 0.002 and now["clip_norm"] == 0.5
    assert "rescaled: max_len 128 -> 256" in said and "rescaled: batch_size 8 -> 4: as many tokens a step" in said


def test_the_command_to_search_again_is_one(found, command, monkeypatch, capsys):
    flags = ("--preset", "micro", "--set", "n_layer=1", "n_embd=256", "--budget_tokens", "16384")
    assert command("--config", found, *flags) == 0
    *_, line = [line for line in capsys.readouterr().out.splitlines() if "search the rate again" in line]
    words = shlex.split(line.partition(" python ")[2])
    monkeypatch.setattr("sys.argv", words)
    _, again = search.start(search.parse_args())
    assert again.range_texts == {"learning_rate": "0.0005 to 0.004 (log)"} and again.options.trials == 8
    assert (
        vars(again.model) == vars(PRESETS["micro"].model(257)) | {"n_layer": 1, "n_embd": 256}
        and again.budget_tokens == 16384
    )
    assert (again.training.batch_size, again.training.clip_norm, again.training.warmup_ratio) == (8, 0.5, 0.1)


GPT2 = PRESETS["gpt2"].model(50257)
LARGE = {"model": vars(GPT2), "train": {"budget_tokens": 2**30}}
"""a result of 84.9M parameters and 1.07B tokens"""


def moved(config, training, model, preset="gpt2", windows=100, flags=()):
    return carried(config, training, model, PRESETS[preset], windows, flags)


def test_from_ten_million_parameters_on_rate_and_batch_follow_parameters_and_tokens():
    training = PRESETS["gpt2"].training(learning_rate=2e-3, batch_size=64, budget_tokens=2**34, micro_batch_size=32)
    twice = dataclasses.replace(GPT2, n_layer=48)  # four times the parameters, sixteen times the tokens
    now, changes = moved(LARGE, training, twice)
    assert now.learning_rate == pytest.approx(2e-3 * 4**-0.5 * 16**0.2, rel=0.01) and now.batch_size == 64 * 4
    assert now.budget_tokens == 2**34 and [change.name for change in changes] == ["learning_rate", "batch_size"]
    assert str(changes[0]).startswith("learning_rate 0.002 -> 0.00174 (90%: 0.00078 to 0.0039)")
    assert "4 times the parameters, 16 times the tokens (rate N^-.5 D^.2, batch D^.5" in str(changes[1])
    now, changes = moved(LARGE, training, twice, flags=("learning_rate", "batch_size"))
    assert now == training and changes == []
    for same in ({"budget_tokens": 2**30}, {"budget_tokens": None, "budget_seconds": 60.0}):  # tokens of a time are unknown
        assert moved(LARGE, kept := dataclasses.replace(training, **same), GPT2) == (kept, [])


def test_a_moved_batch_is_whole_micro_batches_and_the_budget_whole_steps():
    training = PRESETS["gpt2"].training(learning_rate=2e-3, batch_size=64, budget_tokens=2**31, micro_batch_size=32)
    now, changes = moved(LARGE, training, GPT2)  # twice the tokens: 64 x 2^.5 = 90.5 windows
    assert now.batch_size == 96 and now.budget_tokens == 2**31 // (96 * 1024) * 96 * 1024
    assert [change.name for change in changes] == ["learning_rate", "batch_size", "budget_tokens"]


def test_across_ten_million_parameters_no_rule_holds_and_the_baseline_is_used():
    nano = PRESETS["nano"]
    small = {"model": vars(nano.model(257)), "train": {"budget_tokens": 786_432}}
    training = PRESETS["gpt2"].training(learning_rate=7e-3, batch_size=1, budget_tokens=2**31, micro_batch_size=None)
    now, changes = moved(small, training, GPT2)
    law = step_law_point(Size(84_934_656, 2**31))
    assert now.learning_rate == pytest.approx(law[0], rel=0.01) and now.batch_size == round(law[1] / 1024)
    assert all("no rule holds across 10M parameters" in change.why for change in changes[:2])
    assert [change.sd for change in changes[:2]] == [pytest.approx(math.log(3)), pytest.approx(math.log(2))]
    training = nano.training(learning_rate=7e-3, batch_size=512)
    now, _ = moved(LARGE, training, nano.model(257), "nano")
    assert (now.learning_rate, now.batch_size) == (nano.learning_rate, nano.batch_size)


def test_muons_rate_stays_with_the_widest_interval():
    settings = {"learning_rate": 2e-3, "batch_size": 64, "budget_tokens": 2**34, "micro_batch_size": 32}
    training = PRESETS["gpt2"].training(**settings, optimizer="muon")
    now, changes = moved(LARGE, training, dataclasses.replace(GPT2, n_layer=48))
    assert (now.learning_rate, now.batch_size) == (2e-3, 64 * 4)
    assert [(change.name, change.sd) for change in changes] == [
        ("learning_rate", pytest.approx(math.log(3))),
        ("batch_size", pytest.approx(math.log(2))),
    ]
    assert str(changes[0]) == "learning_rate stays 0.002 (90%: 0.00033 to 0.012): no published law moves Muon's rate"
    nano = PRESETS["nano"].model(257)
    small = {"model": vars(nano), "train": {"budget_tokens": 786_432}}
    for width, lines in ((128, 1), (64, 0)):  # no rule of the width; no line where nothing grows
        model = dataclasses.replace(nano, n_embd=width)
        now, changes = moved(small, PRESETS["nano"].training(optimizer="muon"), model, "nano")
        assert now.learning_rate == PRESETS["nano"].learning_rate and len(changes) == lines
