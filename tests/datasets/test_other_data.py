"""Going on with other data, another tokenizer, or an older checkpoint."""

import copy
import json

import numpy as np
import pytest
import torch
from conftest import TINY, run_command_line

from myllm.config import TrainConfig
from myllm.datasets.token_file import TokenFile
from myllm.datasets.tokenizer import byte_tokenizer, identity
from myllm.datasets.windows import BatchStream, Windows, shuffled
from myllm.system.errors import InputError
from myllm.training.train import Run, train

TRAINER = "myllm/training/trainer.py"
WINDOW, BATCH = 16, 4
OLDER = ("data", "earlier", "total_steps", "steps_per_epoch")
"""what checkpoints did not have before they knew their data"""


@pytest.fixture
def run_on(tmp_path):
    """run_on(steps_per_epoch, epochs): a tiny Run whose training file has so many batches a pass."""

    def make(steps_per_epoch, epochs=None, tokenizer=None, **changes):
        ids = np.random.default_rng(steps_per_epoch).integers(0, 200, steps_per_epoch * BATCH * WINDOW + 1)
        path = tmp_path / f"{steps_per_epoch}.bin"
        ids.astype("<u2").tofile(path)
        tokens = TokenFile(path, tokenizer_sha256=tokenizer)
        config = TrainConfig(1e-3, BATCH, WINDOW, WINDOW, epochs=epochs, eval_freq=1000, eval_windows=1, **changes)
        return Run(TINY, config, Windows(tokens, WINDOW, WINDOW), Windows(tokens, WINDOW, WINDOW))

    return make


def state_after(run, steps):
    list(train(run, steps))
    return copy.deepcopy(run.state_dict())


@pytest.mark.parametrize("new", [3, 5, 40])  # smaller, a little smaller, larger
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("steps", [20, 13])  # two passes of ten; one and a part
def test_other_data_begins_a_new_pass_over_all_of_it(run_on, new, older, steps):
    state = state_after(run_on(10, epochs=4), steps)
    if older:
        state = {key: value for key, value in state.items() if key not in OLDER}
        if state["batch"] <= new:
            return  # nothing tells that the data is another
    run = run_on(new, epochs=4)
    with pytest.raises(InputError, match="trained on other data than"):
        run.load_state_dict(state)
    run = run_on(new, epochs=4)
    run.load_state_dict(state, other_data=True)
    passes = 2 if steps == 20 or older else 1
    assert (run.step, run.earlier_epochs, run.earlier_steps) == (steps, passes, steps)
    assert run.total_steps == steps + (4 - passes) * new and run.epoch_end == steps + new
    seen = []
    batch_of = run.train_windows.batch
    run.train_windows.batch = lambda indices: seen.extend(np.asarray(indices).tolist()) or batch_of(indices)
    for _ in range(new):
        run.stream.next()
    assert sorted(seen) == list(range(new * BATCH))  # every window once
    assert run.epoch_at(steps + new) == passes + 1


def test_a_run_over_other_data_resumes_where_it_was(run_on):
    first = state_after(run_on(10, epochs=2), 20)
    whole = run_on(6, epochs=4)
    whole.load_state_dict(copy.deepcopy(first), other_data=True)  # the optimizer goes on with the tensors it is given
    list(train(whole))
    assert whole.step == whole.total_steps == 32
    broken = run_on(6, epochs=4)
    broken.load_state_dict(first, other_data=True)
    state = state_after(broken, 29)
    again = run_on(6, epochs=4)
    again.load_state_dict(state)  # its own data by now
    assert again.total_steps == 32 and again.epoch_end == 32
    list(train(again))
    for ours, theirs in zip(whole.parameters, again.parameters, strict=True):
        assert torch.equal(ours, theirs)


def test_an_older_checkpoint_goes_on_with_its_own_data(run_on):
    state = state_after(run_on(10, epochs=4), 13)
    run = run_on(10, epochs=4)
    run.load_state_dict({key: value for key, value in state.items() if key not in OLDER})
    assert (run.stream.epoch, run.stream.batch, run.total_steps) == (1, 3, 40)


def test_a_checkpoint_does_not_go_on_with_another_tokenizer(run_on):
    state = state_after(run_on(10, epochs=4, tokenizer="a" * 64), 3)
    run_on(10, epochs=4, tokenizer="a" * 64).load_state_dict(state)
    run_on(10, epochs=4).load_state_dict(state)  # unknown: nothing to compare
    for other_data in (False, True):
        with pytest.raises(InputError, match=r"of other contents \(sha256 aaaaaaaa, not bbbbbbbb\)"):
            run_on(10, epochs=4, tokenizer="b" * 64).load_state_dict(state, other_data)


def test_positions_outside_of_the_data_are_an_error_and_no_endless_walk(run_on):
    for positions in ([3], [-1], [0, 5]):
        with pytest.raises(ValueError, match=r"do not lie in range\(3\)"):
            shuffled(np.array(positions), 3, 0)
    stream = BatchStream(run_on(3, epochs=1).train_windows, BATCH, seed=0)
    stream.batch = 9
    stream.next()
    assert (stream.epoch, stream.batch) == (1, 1)


def test_trainer_says_that_the_data_is_another_and_how_long_the_old_run_was(byte_files, tmp_path):
    train_file, val_file = map(str, byte_files)
    size = len(TokenFile(train_file))
    small = tmp_path / "small.bin"
    TokenFile(train_file).ids[: size // 3].tofile(small)
    shards = [tmp_path / "a.npy", tmp_path / "b.npy"]
    for path, ids in zip(shards, np.array_split(TokenFile(train_file).ids, 2), strict=True):
        np.save(path, ids)
    flags = ["--val_file", val_file, "--tokenizer", "byte", "--max_len", "32", "--batch_size", "8", "--eval_iter", "1"]
    model = tmp_path / "m.pth"
    done = run_command_line(TRAINER, *flags, "--train_file", *shards, "--epochs", "1", "--save_model", model)
    assert done.returncode == 0, done.stderr
    state = torch.load(model, weights_only=True)
    steps = state["total_steps"]
    assert steps == (size - 33) // 32 // 8 + (1 if ((size - 33) // 32 + 1) % 8 == 0 else 0)
    assert state["data"]["tokenizer_sha256"] == identity(byte_tokenizer())
    flags += ["--epochs", "2", "--load_model", model]
    done = run_command_line(TRAINER, *flags, "--train_file", small, "--save_model", tmp_path / "n.pth")
    assert done.returncode == 0, done.stderr
    assert f"{small} ({size // 3:,} tokens) is not what {model} was trained on ({size:,} tokens)" in done.stdout
    assert "a new pass over it begins, after 1 over the other" in done.stdout
    assert f"(was {steps})" in done.stdout and "validation" not in done.stdout
    assert "epoch 2.00" in done.stdout
    done = run_command_line(TRAINER, *flags, "--train_file", val_file, "--val_file", str(small), "--epochs", "1")
    assert done.returncode == 0 and "a larger --epochs, which counts all passes so far, goes on" in done.stdout
    assert f"{small} is not the validation data of {model}" in done.stdout


def test_a_config_that_was_found_with_another_tokenizer_is_refused(byte_files, tmp_path):
    train_file, val_file = map(str, byte_files)
    config = tmp_path / "best_config.json"
    values = {"data": {"train_file": [train_file], "val_file": val_file, "tokenizer": "byte", "tokenizer_sha256": "0" * 64}}
    config.write_text(json.dumps(values))
    done = run_command_line(TRAINER, "--config", config)
    assert done.returncode == 2 and "found with a tokenizer of other contents" in done.stderr
    assert done.stderr.count("\n") == 1
