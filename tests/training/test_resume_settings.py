"""Every setting that a resume can change is applied, or refused by name; no flag is accepted that does nothing."""

import pytest
import torch
from test_trainer_command import weights

from myllm.system.errors import InputError
from myllm.training.train import train
from myllm.training.train_utils import generate


@pytest.fixture
def flags(byte_files):
    train_file, val_file = byte_files
    data = ["--train_file", train_file, "--val_file", val_file]
    return [*data, "--max_len", "32", "--batch_size", "8", "--eval_freq", "50", "--eval_iter", "1"]


@pytest.mark.parametrize(
    ("changes", "group"),
    [
        ({"weight_decay": 10.0}, {"weight_decay": 10.0, "betas": (0.9, 0.95)}),
        ({"beta1": 0.5, "beta2": 0.7}, {"weight_decay": 0.1, "betas": (0.5, 0.7)}),
        ({"beta2_half_life": 8.0 * 16}, {"weight_decay": 0.1, "betas": (0.9, 0.5)}),
    ],
)
def test_the_optimizer_goes_on_as_the_settings_say(make_run, changes, group):
    half = make_run()
    list(train(half, 20))
    same, other = make_run(), make_run(**changes)
    for run in (same, other):
        run.load_state_dict(half.state_dict())
        list(train(run))
    saved = other.state_dict()
    assert {name: saved["optimizer"]["param_groups"][0][name] for name in group} == group
    assert saved["optimizer"]["param_groups"][1]["weight_decay"] == 0  # biases and norms
    assert {name: saved["train_config"][name] for name in changes} == changes
    assert not all(torch.equal(a, b) for a, b in zip(same.parameters, other.parameters, strict=True))


def test_a_micro_batch_is_that_of_the_settings_and_a_halved_one_stays_halved(make_run):
    half = make_run()
    half.micro_batch_size = 2  # as memory allowed
    for changes, size in (({}, 2), ({"micro_batch_size": 4}, 4)):
        run = make_run(**changes)
        run.load_state_dict(half.state_dict())
        assert run.micro_batch_size == size


def test_a_resume_says_which_settings_change(flags, tmp_path, command, capsys):
    first, second = tmp_path / "1.pth", tmp_path / "2.pth"
    assert command(*flags, "--epochs", "1", "--save_model", first) == 0
    capsys.readouterr()
    more = ["--epochs", "2", "--load_model", first, "--weight_decay", "10", "--beta1", "0.5", "--micro_batch_size", "3"]
    assert command(*flags, *more, "--save_model", second) == 0
    said = "settings: from here on weight_decay 0.1 -> 10.0, beta1 0.9 -> 0.5, micro_batch_size None -> 3\n"
    assert said in capsys.readouterr().out
    assert weights(first).keys() == weights(second).keys()
    state = torch.load(second, weights_only=True)
    assert state["optimizer"]["param_groups"][0]["weight_decay"] == state["train_config"]["weight_decay"] == 10
    for extra in (["--seed", "7"], ["--stride", "8"], ["--ema_ratio", "0.1"]):
        with pytest.raises(InputError, match=f"was trained with {extra[0][2:]}"):
            command(*flags, "--epochs", "2", "--load_model", first, *extra)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--beta2", "0.9", "--beta2_half_life", "1e5"], "--beta2 does nothing where beta2_half_life is set"),
        (["--cooldown_ratio", "0.5"], "--cooldown_ratio does nothing with --schedule cosine"),
        (["--version", "v1", "--clip_norm", "2"], "--clip_norm does nothing with --version v1"),
        (["--save_every", "5m"], "--save_every says how often --save_model is written"),
        (["--generate", "a", "--load_model", "m.pth", "--start_context", "b"], "--start_context does not go with it"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(flags, command, extra, words):
    with pytest.raises(InputError, match=words):
        command(*(flags if extra[0] != "--generate" else ()), *extra)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["--temperature", "inf"], "--temperature is inf"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--seed", "12345678901234567890"], r"seed is 12345678901234567890; .* 2\^31"),
        (["--seed", "-1"], "seed is -1"),
        (["--micro_batch_size", "99999999999999999999"], r"micro_batch_size is 99999999999999999999; .* 2\^63"),
        (["--save_every", "soon", "--save_model", "m.pth"], "--save_every 'soon' is no duration"),
        (["--save_every", "0", "--save_model", "m.pth"], "--save_every '0' is no duration"),
    ],
)
def test_a_number_out_of_range_is_one_line(flags, command, extra, words):
    with pytest.raises(InputError, match=words) as error:
        command(*flags, *extra)
    assert "\n" not in str(error.value)
    if extra[0] == "--seed":
        with pytest.raises(InputError, match=words):
            command("--generate", "a", "--load_model", "m.pth", *extra)


def test_the_cure_that_an_error_names_cures(byte_files, tmp_path, command):
    """Beside nanoGPT's meta.pkl a tokenizer must be named; once it is, nothing asks for it again."""
    ids = []
    for path in byte_files:
        (tmp_path / path.name).write_bytes(path.read_bytes())
        ids.append(tmp_path / path.name)
    (tmp_path / "meta.pkl").write_bytes(b"")
    flags = ["--train_file", ids[0], "--val_file", ids[1], "--max_len", "32", "--budget_tokens", "4096"]
    with pytest.raises(InputError, match="name their --tokenizer"):
        command(*flags)
    assert command(*flags, "--tokenizer", "byte") == 0


@pytest.mark.parametrize("temperature", [1e-40, 1e-320, 1e-7])
def test_next_to_no_temperature_takes_the_likeliest_token(make_run, temperature):
    model, ids = make_run().model, torch.tensor([[1, 2, 3]])
    assert torch.equal(generate(model, ids, 8, temperature, top_k=40), generate(model, ids, 8, 0.0))
    assert generate(model, ids, 8, 1e300, top_k=40).shape == (1, 11)  # and next to all temperature draws evenly
