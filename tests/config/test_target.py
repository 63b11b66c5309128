"""--target: what is refused, in one line, and the specification of a ladder."""

import pytest
from conftest import ROOT
from helpers import BIGRAM

from myllm.config import TrainConfig
from myllm.models.model_check import parameter_shapes
from myllm.presets import PRESETS
from myllm.system.errors import InputError
from myllm.text.format import parse_amount
from tune.config.ladder import _shape
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search
from tune.config.spec import read_search
from tune.estimate import ladder as estimate
from tune.estimate.ladder import resolve_target
from tune.ladder.rule import LadderScheduler
from tune.ray_backend.begin import resume, start

SIZE = ("n_layer=4", "n_head=4", "n_embd=64")


@pytest.fixture
def ladder(byte_files, tmp_path):
    """ladder(**options): the specification of a small ladder."""
    train, val = ((str(path),) for path in byte_files)

    def make(**options):
        usual = {"target": SIZE, "target_tokens": 400_000, "target_share": 0.8}
        return resolve_target(SearchOptions(train_file=train, val_file=val, **(usual | options)), tmp_path)

    return make


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"target_share": 0.1}, "--target_share says how the target is trained; name it"),
        ({"target": ["gpt3"]}, "--target gpt3 is no preset; known are nano"),
        ({"target": ["micro"], "preset": "mini"}, "--preset does not go with --target micro"),
        ({"target": ["micro"], "model": "a.py:B"}, "name the settings that grow"),
        ({"target": list(SIZE)}, "give --target_tokens or --target_seconds"),
        ({"target": ["micro"], "target_tokens": 10**6, "target_seconds": 60.0}, "both say how long"),
        ({"target": ["micro"], "num_samples": 20}, "--num_samples does not go with --target"),
        ({"target": ["micro"], "range": ["learning_rate=1e-4:1e-2"]}, "--range does not go with --target"),
        ({"target": ["micro"], "budget_seconds": 9.0}, "--budget_seconds does not go with --target"),
        ({"target": ["micro"], "target_share": 1.5}, "--target_share is 1.5; it must be a share"),
        ({"target": ["n_layer=4", "dropout=1"], "target_tokens": 10**6}, "dropout is 1.0"),
        ({"target": ["block_size=64"], "target_tokens": 10**6}, "block_size is no setting that grows with the model"),
        ({"target": ["n_layer=1", "n_embd=64"], "target_tokens": 10**6}, "no level"),
        ({"target": ["micro"], "target_share": 0.01}, "buys 0 runs .* a ladder takes 8 .* would do; without a ladder"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(flags, complaint, byte_files):
    train, val = byte_files
    with pytest.raises(InputError, match=complaint) as error:
        start({"train_file": [str(train)], "val_file": [str(val)]} | flags)
    assert "\n" not in str(error.value)


def test_a_program_of_ones_own_has_no_ladder():
    with pytest.raises(InputError, match="--target does not go with --command"):
        start({"target": ["micro"], "command": "train.py --lr {lr}", "range": ["lr=1e-4:1e-2"], "budget": 9})


def test_a_ladder_is_written_and_read_as_it_was(ladder, tmp_path):
    spec = ladder()
    spec.write(tmp_path)
    assert read_search(tmp_path) == spec
    assert isinstance(spec.scheduler(), LadderScheduler)
    level = spec.ladder.levels[0]
    config = level.settings | {"learning_rate": 1e-3, "batch_size": 2, "budget_tokens": level.tokens, "warmup_ratio": 0.02}
    model, training = spec.model_config(config), spec.train_config(config)
    assert (model.n_embd, model.block_size, model.vocab_size) == (16, spec.model.block_size, spec.model.vocab_size)
    assert training.budget_tokens == level.tokens and training.eval_windows == spec.training.eval_windows
    reports = level.tokens / (training.eval_freq * 2 * training.max_len)
    assert 7 < reports < 9.5


def test_a_preset_is_a_target_with_its_own_length(byte_files, tmp_path):
    train, val = ((str(path),) for path in byte_files)
    with pytest.raises(InputError, match="fewer than the target's largest batch"):  # 16M tokens have large batches
        resolve_target(SearchOptions(train_file=train, val_file=val, target=("micro",), target_share=0.5), tmp_path)
    options = SearchOptions(train_file=train, val_file=val, target=("micro",), target_share=0.8, target_tokens=500_000)
    spec = resolve_target(options, tmp_path)
    assert spec.options.preset == "micro" and spec.model.n_embd == 128 and spec.training.beta2 == 0.99


def test_settings_of_a_custom_model_grow(ladder, tmp_path):
    (tmp_path / "bigram.py").write_text(BIGRAM)
    own = {"model": f"{tmp_path}/bigram.py:Bigram"}
    with pytest.raises(InputError, match="source is no setting that grows with the model; it must be a whole number"):
        ladder(**own, target=("source=plain",))
    with pytest.raises(InputError, match="there is no 'depth' to set"):
        ladder(**own, target=("depth=4",))
    with pytest.raises(InputError, match="make the model no larger"):  # a table and a head, and nothing between them
        ladder(**own, target=("width=48",))
    spec = ladder(model=str(ROOT / "experiments" / "own_model" / "my_model.py") + ":MyGPT", target=SIZE)
    assert [level.settings["n_embd"] for level in spec.ladder.levels] == [16, 32, 48]
    assert spec.model_config(spec.ladder.levels[0].settings).settings["n_layer"] == 1
    assert spec.ladder.target.head == 64 * 257 and spec.ladder.target.params > 12 * 4 * 64**2


def test_a_search_of_one_size_has_no_ladder(byte_files, tmp_path):
    train, val = ((str(path),) for path in byte_files)
    spec = resolve_search(SearchOptions(train_file=train, val_file=val, budget_tokens=262_144), tmp_path)
    assert spec.ladder is None and isinstance(spec.training, TrainConfig)


def test_a_resume_keeps_target_and_data(ladder, byte_files, tmp_path):
    spec, run_dir = ladder(), tmp_path / "run"
    run_dir.mkdir()
    spec.write(run_dir)
    assert resume({"resume": str(run_dir), "target": list(SIZE), "target_tokens": 400_000})[1].ladder == spec.ladder
    with pytest.raises(InputError, match="--target_tokens can't change on --resume"):
        resume({"resume": str(run_dir), "target_tokens": 500_000})
    with pytest.raises(InputError, match="--num_samples does not go with --target"):
        resume({"resume": str(run_dir), "num_samples": 99})
    with pytest.raises(InputError, match="has changed since the search began"):
        resume({"resume": str(run_dir), "train_file": [str(byte_files[1])]})


def test_seconds_become_tokens_at_the_targets_speed_and_bound_the_plan(ladder, monkeypatch):
    speed = 1e9  # operations a second

    def measured(search, levels, resources):
        return {level.params: level.flops / speed for level in levels}

    monkeypatch.setattr(estimate, "measured_seconds", measured)
    spec = ladder(target_tokens=None, target_seconds=1800.0)
    goal = spec.ladder.target
    assert goal.flops / speed == pytest.approx(1800, rel=0.1)
    bounded = ladder(time_budget=100.0, max_concurrent=1)
    plain = ladder()
    taken = sum(level.runs * level.flops for level in bounded.ladder.levels) / speed
    assert taken < 100 and bounded.ladder.planned_share < plain.ladder.planned_share
    with pytest.raises(InputError, match=r"--time_budget 20 s is too little for a ladder; .* s would do"):
        ladder(time_budget=20.0, max_concurrent=1)


@pytest.mark.parametrize(("text", "number"), [("2.5B", 2_500_000_000), ("66k", 66_000), ("1e6", 10**6), ("1_000", 1000)])
def test_tokens_as_people_write_them(text, number):
    assert parse_amount(text) == number


@pytest.mark.parametrize("text", ["many", "2.5X", "", "1..5M"])
def test_what_is_no_number_of_tokens(text):
    with pytest.raises(InputError, match="is no number of tokens"):
        parse_amount(text)


def test_a_modern_level_counts_the_matrices_that_its_model_has():
    model = PRESETS["micro-modern"].model(257)
    built = [shape for shape in parameter_shapes(model).values() if len(shape) == 2 and 257 not in shape]
    assert _shape(model, {}).params == sum(shape.numel() for shape in built)
