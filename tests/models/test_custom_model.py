"""A model of the user's own: its contract, what is refused, and that it trains, resumes and is searched like ours."""

import dataclasses
import json
import math
import re
import shutil

import pandas as pd
import pytest
import torch
from conftest import ROOT, run_command_line, summary
from helpers import BIGRAM, HEAD

from myllm.config import TrainConfig
from myllm.datasets.token_file import TokenFile
from myllm.datasets.windows import Windows
from myllm.models.custom_model import (
    CustomModelConfig,
    builder,
    custom_model,
    difference,
    fix_settings,
    is_changed,
    read_model,
)
from myllm.models.model_check import check_trains
from myllm.presets import PRESETS
from myllm.system.errors import InputError
from myllm.training.train import Run, train
from tune.config.options import SearchOptions
from tune.config.resolve import CODE, resolve_search
from tune.config.spec import read_search

EXAMPLE = ROOT / "experiments" / "own_model"


def bigram(tmp_path, text=BIGRAM, name="Bigram", block_size=16):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return custom_model(f"{path}:{name}", 257, block_size)


@pytest.fixture
def example(tmp_path):
    """The shipped example, in a folder of its own."""
    shutil.copytree(EXAMPLE, tmp_path / "own", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "own" / "my_model.py"


def test_the_shipped_example_is_what_it_says(example):
    model = custom_model(f"{example}:MyGPT", 257, 32)
    assert list(model.files) == ["my_model.py", "gpt.py"]
    assert model.settings == {"block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 64, "dropout": 0.0}
    check_trains(model)
    lines = example.read_text().partition("class MyGPT")[2].strip().splitlines()
    assert len([line for line in lines if line.strip()]) <= 10


def open_run(model, byte_files, **changes):
    windows = [Windows(TokenFile(path), model.block_size, model.block_size) for path in byte_files]
    values = dict(learning_rate=1e-2, batch_size=8, max_len=model.block_size, stride=model.block_size, eval_freq=10)
    return Run(model, TrainConfig(**values | {"budget_tokens": 8 * model.block_size * 20} | changes), *windows)


def test_it_trains_and_goes_on_bit_for_bit_from_a_checkpoint_that_holds_its_code(tmp_path, byte_files):
    model = bigram(tmp_path, BIGRAM.replace("import torch\n", "import torch\ntorch.manual_seed(1337)\n", 1))
    run = open_run(model, byte_files)
    first, last = train(run)
    assert last.val_loss < first.val_loss < math.log(257)
    half = open_run(model, byte_files)
    next(train(half))
    torch.save(half.state_dict(), tmp_path / "s.pt")
    state = torch.load(tmp_path / "s.pt", weights_only=True)
    assert state["model_config"]["sha256"] == model.sha256 and state["model_config"]["files"] == model.files
    again = open_run(model, byte_files)
    again.load_state_dict(state)
    assert [report.val_loss for report in train(again)] == [last.val_loss]
    with pytest.raises(InputError, match="the checkpoint's model has width 8, this one 9"):
        open_run(fix_settings(model, ["width=9"]), byte_files).load_state_dict(state)
    other = bigram(
        tmp_path, BIGRAM.replace("self.table, self.head", "self.rows, self.head").replace("self.table", "self.rows")
    )
    with pytest.raises(InputError, match=r"weights are not this model's: .*rows\.weight"):
        open_run(other, byte_files).load_state_dict(state)
    assert difference(bigram(tmp_path, BIGRAM + "# a remark\n"), state["model_config"]) is None


def test_code_goes_on_as_it_was_whatever_happens_to_the_files(example):
    model = custom_model(f"{example}:MyGPT", 257, 32)
    values = json.loads(json.dumps(dataclasses.asdict(model)))
    read = read_model(values, "search.json: model")
    assert read == model and not is_changed(read)
    (example.parent / "gpt.py").write_text("raise SystemExit('gone mad')\n")
    assert is_changed(read)
    shutil.rmtree(example.parent)
    assert is_changed(read) and sum(p.numel() for p in builder(read)().parameters()) > 1000
    with pytest.raises(InputError, match=r"search.json: model: the code of .* was edited"):
        read_model(values | {"files": {"my_model.py": "pass"}}, "search.json: model")


def test_a_package_beside_it_is_kept_too_and_two_models_of_the_same_module_names_do_not_mix(tmp_path):
    models = []
    for width in (4, 6):
        folder = tmp_path / str(width)
        (folder / "parts").mkdir(parents=True)
        (folder / "parts" / "sizes.py").write_text(f"WIDTH = {width}\n")
        text = BIGRAM.replace("def __init__", "from parts.sizes import WIDTH\n    def __init__").replace(
            '["width"]', '["width"] + self.WIDTH'
        )
        models.append(bigram(folder, text))
        assert list(models[-1].files) == ["mine.py", "parts/sizes.py"]
        shutil.rmtree(folder)
    assert [builder(model)().table.weight.size(1) for model in models] == [12, 14]


RETURNS = "return F.cross_entropy(self.head(self.table(ids)).flatten(0, 1), targets.flatten())"


@pytest.mark.parametrize(
    "text, words",
    [
        ("class Bigram(:\n", "mine.py: not Python, line 1"),
        (HEAD + "class Trigram(torch.nn.Module): pass\n", "it has no class Bigram; it has Trigram"),
        ("x = 1\n", "it has no class Bigram; it has none"),
        ("import not_installed_anywhere\n", "importing it raises ModuleNotFoundError: No module"),
        ("import sys\nsys.exit('usage')\n", "importing it raises SystemExit: usage"),
        ("class Bigram: settings = {}\n", "Bigram is no torch.nn.Module"),
        (BIGRAM.replace("settings, vocab_size", "config"), "called as Bigram(settings, vocab_size), and takes (config)"),
        (BIGRAM.replace("(self, ids, targets)", "(self, ids)"), "it is called as forward(self, ids, targets), and takes"),
        (BIGRAM.replace('settings["width"]', 'settings["depth"]'), "raises KeyError: 'depth'"),
        (BIGRAM.replace(RETURNS, "return ids, ids.float().mean()"), "returns a tuple; it must return the loss"),
        (BIGRAM.replace(RETURNS, "return None"), "returns a NoneType"),
        (BIGRAM.replace(RETURNS, RETURNS[:-1] + ", reduction='none')"), "tensor of shape (32,); it must be a scalar"),
        (BIGRAM.replace(RETURNS, RETURNS + ".detach()"), "its loss has no gradient"),
        (BIGRAM.replace(RETURNS, RETURNS + " * float('nan')"), "its loss is nan before any training"),
        (BIGRAM.replace(RETURNS, RETURNS[:-1] + ", reduction='sum')"), "it must be the mean over tokens"),
        (BIGRAM.replace("torch.nn.Linear(width, ", "torch.nn.LazyLinear("), "it has lazy modules"),
        (
            BIGRAM.replace("        width =", "        raise SystemExit(3)\n        width ="),
            "raises SystemExit: 3 (mine.py:9: raise",
        ),
        (BIGRAM.replace(RETURNS, "return self.missing(ids)"), "forward(ids, targets) of (2, 16) ids raises AttributeError"),
        (BIGRAM.replace('{"width": 8', '["width"'), "not Python, line"),
        (BIGRAM.replace('{"width": 8, "source": "plain"}', '["width"]'), "its `settings` is a list; it must be a dict"),
        (BIGRAM.replace('"width"', '"learning_rate"'), "its setting 'learning_rate' is one of the training's; rename it"),
        (BIGRAM.replace('"plain"', "(1, 2)"), "its setting 'source' is (1, 2); it must be a number, text or bool"),
    ],
)
def test_each_bad_file_is_one_line(tmp_path, text, words):
    with pytest.raises(InputError) as error:
        check_trains(bigram(tmp_path, text))
    assert words in str(error.value) and "\n" not in str(error.value) and "mine.py" in str(error.value)


def test_settings_are_fixed_together():
    model = PRESETS["nano"].model(257)
    assert fix_settings(model, ["n_embd=99", "n_head=3"]).n_embd == 99  # 99 alone would not go with two heads
    for texts, words in (
        (["n_embd=99"], "n_embd is 99; it must be a multiple of n_head (2)"),
        (["learning_rate=1"], "it is the training's, --learning_rate"),
        (["n_layer"], "'' is no whole number"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            fix_settings(model, texts)


def test_what_is_no_file_or_names_no_class_is_one_line(tmp_path):
    (tmp_path / "latin.py").write_bytes(b"x = '\xe9'\n")
    for spec, words in (
        (str(tmp_path / "mine.py"), "names no class; write FILE.py:Class"),
        (f"{tmp_path}/missing.py:A", "no such file"),
        (f"{tmp_path}:A", "a folder, not a file"),
        (f"{tmp_path}/latin.py:A", "not UTF-8"),
    ):
        with pytest.raises(InputError, match=words):
            custom_model(spec, 257, 16)


LOGITS = "\n    def logits(self, ids):\n        return self.head(self.table(ids))\n"


@pytest.mark.parametrize("rest", ["", LOGITS])
@pytest.mark.parametrize("unit", ["1", "math.log(2)", "1 / ids.size(1)", "4"])
def test_a_loss_in_another_unit_is_noticed_near_a_uniform_guess(tmp_path, capsys, unit, rest):
    text = "import math\n" + BIGRAM.replace(RETURNS, f"{RETURNS} / ({unit})") + rest
    check_trains(bigram(tmp_path, text))
    said = capsys.readouterr().err
    assert said.count("\n") == (unit != "1") and ("mean over tokens, in nats" in said) == (unit != "1")


def test_logits_are_checked_and_a_loss_that_sees_its_targets_is_noticed(tmp_path, capsys):
    sees = BIGRAM.replace("self.table(ids)", "(self.table(ids) + 9 * self.head.weight[targets])") + LOGITS
    check_trains(bigram(tmp_path, sees))
    assert "each told from those up to it alone" in capsys.readouterr().err
    for wrong, words in (
        (LOGITS.replace("self.head(", "("), r"logits(ids) of (1, 1) ids has the shape (1, 1, 8)"),
        (LOGITS.replace("self.head", "self.missing"), "logits(ids) of (1, 1) ids raises AttributeError"),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            check_trains(bigram(tmp_path, BIGRAM + wrong))


def test_ranges_over_its_settings_are_checked_by_building_it(tmp_path, byte_files):
    bigram(tmp_path, BIGRAM.replace('"source": "plain"', '"style": "plain", "source": "plain"'))
    train_file, val_file = ((str(path),) for path in byte_files)
    common = dict(
        train_file=train_file, val_file=val_file, budget_tokens=32768, name="x", model=f"{tmp_path}/mine.py:Bigram"
    )

    def prepared(**options):
        return resolve_search(SearchOptions(**common | options), tmp_path / "cache")

    search = prepared(range=("width=4:32:log",), choices=("style=plain,fancy,odd",), set=("block_size=64", "batch_size=8"))
    assert search.sample(0) == {"learning_rate": 3e-3, "warmup_ratio": 0.02, "clip_norm": 1.0, "width": 8, "style": "plain"}
    model = search.model_config(search.sample(7))
    assert isinstance(model.settings["width"], int) and model.block_size == 64 == search.training.max_len
    for options, words in (
        ({"range": ("width=8:200",)}, "'width': 200"),
        ({"range": ("widht=8:20",)}, "there is no 'widht' to set; near are width"),
        ({"set": ("n_layer=3",)}, "there is no 'n_layer' to set"),
        ({"choices": ("source=plain,odd",)}, "'source' can't be searched: a search's tables have a column of that name"),
        ({"set": ("width=many",)}, "'many' is no whole number"),
    ):
        with pytest.raises(InputError) as error:
            prepared(**options)
        assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.timeout(300)
def test_a_search_over_it_is_interrupted_by_nothing_that_happens_to_the_file(
    example, byte_files, tmp_path, command, capsys
):
    flags = [
        "--train_file",
        byte_files[0],
        "--val_file",
        byte_files[1],
        "--model",
        f"{example}:MyGPT",
        "--range",
        "dropout=0:0.3",
    ]
    flags += [
        "--choices",
        "n_layer=1,2",
        "batch_size=8,16",
        "--set",
        "n_embd=32",
        "block_size=32",
        "--budget_tokens",
        "8192",
    ]
    flags += [
        "--num_samples",
        "2",
        "--scheduler",
        "fifo",
        "--replicate_best",
        "0",
        "--storage_path",
        tmp_path,
        "--name",
        "run",
    ]
    done, run_dir = run_command_line("tune/search.py", *flags, "--max_concurrent", "1"), tmp_path / "run"
    assert done.returncode == 0, done.stderr
    search = read_search(run_dir)
    (example.parent / "gpt.py").write_text("raise ValueError\n")
    dataclasses.replace(search, origin=search.origin | {"git_commit": "of then"}).write(run_dir)

    done = run_command_line("tune/search.py", "--resume", run_dir, "--num_samples", "3", "--max_concurrent", "1")
    assert done.returncode == 0, done.stderr
    assert f"note: {example}:MyGPT has changed since the search began, which goes on with the code of then" in done.stdout
    assert "note: the code has changed since the search began: git_commit of then -> " in done.stdout
    events = [json.loads(line) for line in (run_dir / "journal.jsonl").read_text().splitlines()]
    sessions = [event for event in events if event["event"] == "session"]
    assert len(sessions) == 2 and all(set(CODE) <= event.keys() for event in sessions)
    assert all(event["packages"] == search.origin["packages"] for event in sessions)
    trials = pd.read_csv(run_dir / "trials.csv")
    assert trials["status"].tolist() == ["completed"] * 3 and set(trials["n_layer"]) == {1, 2}
    assert f"model       {example}:MyGPT (sha256 {search.model.sha256[:8]})" in summary(run_dir)

    best = json.loads((run_dir / "best_config.json").read_text())
    known = {name: best["data"][name] for name in ("tokenizer_sha256", "fingerprint")}
    assert known == {name: getattr(search.data, name) for name in known}
    assert best["model"]["sha256"] == search.model.sha256 and best["model"]["settings"]["n_embd"] == 32
    arguments = ["myllm/training/trainer.py", "--config", run_dir / "best_config.json", "--save_model", tmp_path / "f.pth"]
    done = run_command_line(*arguments, "--device", "cpu")
    assert done.returncode == 0 and "has changed since; this is the code" in done.stdout, done.stderr
    expected = trials.sort_values("val_loss")["val_loss"].iloc[0]
    assert f"val_loss {expected:.4f}" in done.stdout.splitlines()[-2]  # before the sample: the same training as the trial's
    state = torch.load(tmp_path / "f.pth", weights_only=True)
    assert isinstance(read_model(state["model_config"], "f.pth"), CustomModelConfig)

    assert command("--from_trial", run_dir.rename(tmp_path / "moved") / "2", "--generate", "ab", "--length", "9") == 0
    assert capsys.readouterr().out.startswith("ab")
