"""Muon beside AdamW, and the optimizers that a custom model makes for itself."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TINY
from helpers import BIGRAM

from myllm.config import GPTConfig
from myllm.datasets.windows import BatchStream
from myllm.models.custom_model import custom_model
from myllm.models.gpt import GPT
from myllm.system.errors import InputError
from myllm.training.muon import Muon, block_matrices
from myllm.training.optimizers import Optimizers
from myllm.training.train import learning_rate_at, train, train_steps
from myllm.training.train_utils import load_state, save_state

OWN = """
    def optimizers(self, settings):
        fast = torch.optim.SGD(self.table.parameters(), lr=10 * settings["learning_rate"], momentum=0.9)
        return [fast, torch.optim.AdamW(self.head.parameters(), lr=settings["learning_rate"])]
"""


@pytest.fixture
def bigram(tmp_path):
    """bigram(method): the model BIGRAM with a method more."""

    def make(method=OWN):
        (tmp_path / "mine.py").write_text(BIGRAM + method)
        return custom_model(f"{tmp_path / 'mine.py'}:Bigram", 257, 16)

    return make


def test_fifty_steps_equal_a_plain_loop_with_torchs_muon(make_run):
    run = make_run(optimizer="muon", budget_tokens=8 * 16 * 50, weight_decay=0.2)
    torch.manual_seed(run.config.seed)
    model = GPT(TINY)
    parts = []  # of each block: queries, keys and values as matrices of their own, then the other three
    for block in model.blocks:
        parts += [part.detach() for part in block.attn.qkv.weight.split(16)]
        parts += [block.attn.proj.weight, block.mlp.fc.weight, block.mlp.proj.weight]
    inside = {id(p) for p in model.blocks.parameters() if p.dim() == 2}
    rest = [p for p in model.parameters() if id(p) not in inside]
    groups = [{"params": [p for p in rest if (p.dim() >= 2) == decays], "weight_decay": 0.2 * decays} for decays in (1, 0)]
    muon = torch.optim.Muon(parts, lr=1e-2, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), fused=True)
    stream = BatchStream(run.train_windows, 8, run.config.seed)
    for step, _ in enumerate(train_steps(run)):
        model.zero_grad()
        loss = model(*stream.next())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for index, block in enumerate(model.blocks):
            for part, gradient in zip(parts[6 * index :], block.attn.qkv.weight.grad.split(16), strict=False):
                part.grad = gradient
        for optimizer in (muon, adamw):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, 50, run.config)
            optimizer.step()
        for ours, theirs in zip(run.model.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert step == 49


def test_embeddings_norms_biases_and_head_are_left_to_adamw(make_run):
    run = make_run(optimizer="muon", muon_lr_ratio=3.0, weight_decay=0.3)
    muon, adamw = run.optimizer.optimizers
    names = {id(p): name for name, p in run.model.named_parameters()}
    theirs = [{names[id(p)].split(".", 2)[-1] for p in group["params"]} for group in muon.param_groups]
    assert theirs == [{"attn.qkv.weight"}, {"attn.proj.weight", "mlp.fc.weight", "mlp.proj.weight"}]
    decayed, others = ({names[id(p)] for p in group["params"]} for group in adamw.param_groups)
    assert decayed == {"token_embedding.weight", "position_embedding.weight"}
    assert all("norm" in name or name.endswith("bias") for name in others)
    for step, _ in enumerate(train_steps(run, 3)):
        rate = learning_rate_at(step, run.total_steps, run.config)
        assert [group["lr"] for group in run.optimizer.param_groups] == [3 * rate, 3 * rate, rate, rate]
    alike = GPT(dataclasses.replace(TINY, vocab_size=64))  # a vocabulary as large as the hidden layer
    assert sum(map(len, block_matrices(alike, 64).values())) == 4


@pytest.mark.parametrize("changes", [{"dropout": 0.2}, {}])
def test_a_resumed_run_with_muon_equals_an_unbroken_one_bit_for_bit(make_run, tmp_path, changes):
    shape = GPTConfig(**vars(TINY) | changes)
    whole = make_run(shape, optimizer="muon", ema_ratio=0.1)
    curve = [(r.val_loss, r.val_loss_ema) for r in train(whole)]
    first = make_run(shape, optimizer="muon", ema_ratio=0.1)
    reports = train(first)
    next(reports), next(reports)
    save_state(first.state_dict(), tmp_path / "state.pt")
    second = make_run(shape, optimizer="muon", ema_ratio=0.1)
    second.load_state_dict(load_state(tmp_path / "state.pt"))
    assert [(r.val_loss, r.val_loss_ema) for r in train(second)] == curve[2:]
    for ours, theirs in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_goes_on_with_its_own_optimizer_only(make_run):
    state = make_run().state_dict()
    with pytest.raises(InputError, match="trained with optimizer adamw, not muon; it can't go on"):
        make_run(optimizer="muon").load_state_dict(state)
    del state["train_config"]["optimizer"], state["train_config"]["muon_lr_ratio"]  # of before 0.2.0
    make_run().load_state_dict(state)


def matrices():
    """Two optimizers over a fused matrix and a whole one, with the same gradients."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        fused, whole = (torch.nn.Parameter(torch.randn(rows, 8)) for rows in (12, 24))
        groups = [{"params": [fused], "rows": (8, 2, 2)}, {"params": [whole], "rows": None}]
        made.append((Muon(groups, lr=0.02, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"), fused, whole))
    return made


def test_a_rate_in_a_tensor_moves_as_the_number_does():
    """As in a recorded step, on a GPU."""
    (plain, *one), (recorded, *other) = matrices()
    for _ in range(5):
        for p, q in zip(one, other, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        for group in recorded.param_groups:
            group["lr"] = torch.tensor(0.02)
        plain.step(), recorded.step()
    for p, q in zip(one, other, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=2e-6)


def test_a_rate_in_a_tensor_is_never_read():
    """A recorded step may not wait for the GPU; a tensor on the device meta has no value that could be read."""
    parameter = torch.nn.Parameter(torch.empty(12, 8, device="meta"))
    parameter.grad = torch.empty_like(parameter)
    muon = Muon([{"params": [parameter], "rows": (8, 2, 2)}], lr=0.02, adjust_lr_fn="match_rms_adamw")
    muon.param_groups[0]["lr"] = torch.empty((), device="meta")
    muon.step()
    with pytest.raises(RuntimeError, match="meta"):
        torch.optim.Muon([parameter], lr=torch.empty((), device="meta")).step()


def test_an_own_model_says_how_it_is_trained(bigram, make_run, tmp_path):
    run = make_run(bigram())
    assert isinstance(run.optimizer, Optimizers) and run.optimizer.ratios == [10.0, 1.0]
    losses = [r.val_loss for r in train(run)]
    assert losses[-1] < losses[0]
    first = make_run(bigram())
    next(train(first))
    save_state(first.state_dict(), tmp_path / "state.pt")
    second = make_run(bigram())
    second.load_state_dict(load_state(tmp_path / "state.pt"))
    assert [r.val_loss for r in train(second)] == losses[1:]
    with pytest.raises(InputError, match="the checkpoint's optimizer is another one"):
        one = "\n    def optimizers(self, settings):\n        return torch.optim.SGD(self.parameters(), lr=1.0)\n"
        make_run(bigram(one)).load_state_dict(first.state_dict())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1", r"optimizers\(settings\) of Bigram returns a int; it must return torch optimizers"),
        ("return []", "returns a NoneType"),
        ("return settings['rate']", r"raises KeyError: 'rate' \(mine.py:"),
        ("return torch.optim.SGD(self.table.parameters(), lr=1)", "the parameter head.weight is in 0 groups"),
        ("return [torch.optim.SGD(self.parameters(), lr=1)] * 2", "the parameter table.weight is in 2 groups"),
    ],
)
def test_optimizers_that_do_not_fit_are_one_line_before_anything_starts(bigram, command, byte_files, body, words):
    model = bigram(f"\n    def optimizers(self, settings):\n        {body}\n")
    with pytest.raises(InputError, match=words):
        command("--model", model.source, "--train_file", byte_files[0], "--val_file", byte_files[1])


def test_muon_without_matrices_is_one_line(bigram, command, byte_files):
    data = ["--train_file", byte_files[0], "--val_file", byte_files[1]]
    with pytest.raises(InputError, match="optimizer muon has nothing to train: the model has no matrix beside"):
        command("--model", bigram("").source, "--optimizer", "muon", *data)
    with pytest.raises(InputError, match="--muon_lr_ratio does nothing with --optimizer adamw"):
        command("--muon_lr_ratio", "2", *data)
    with pytest.raises(InputError, match="optimizer is 'sgd'; it must be adamw or muon"):
        command("--optimizer", "sgd", *data)


def test_adamw_imports_neither_muon_nor_the_compiler():
    code = (
        "import dataclasses, sys, torch\n"
        "from myllm.config import TrainConfig\n"
        "from myllm.training.optimizers import build_optimizers\n"
        "config = TrainConfig(learning_rate=1.0, batch_size=1, max_len=1, stride=1, epochs=1)\n"
        "for name in ('adamw', 'muon'):\n"
        "    model = torch.nn.Linear(3, 3)\n"
        "    named = dataclasses.replace(config, optimizer=name)\n"
        "    optimizer = build_optimizers(model, named, torch.device('cpu'), 9)\n"
        "    model(torch.ones(1, 3)).sum().backward()\n"
        "    optimizer.step(), optimizer.zero_grad()\n"
        "    print('torch._dynamo' in sys.modules, 'myllm.training.muon' in sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.split() == ["False", "False", "False", "True"], found.stderr
