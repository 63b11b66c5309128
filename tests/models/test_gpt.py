from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

from myllm.config import GPTConfig
from myllm.models import gpt as model_module
from myllm.models.custom_model import difference
from myllm.models.gpt import GPT
from myllm.presets import PRESETS
from myllm.system.errors import InputError
from tune.config.spec import read_search

SHAPE = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=101)


def test_logits_and_loss_agree_with_hugging_face_gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=101, n_positions=16, n_embd=32, n_layer=3, n_head=4)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for parameter in theirs.parameters():  # random biases and gains too
        torch.nn.init.normal_(parameter, std=0.3)
    ours = GPT.from_gpt2_state_dict(theirs.state_dict(), n_head=4).eval()
    ids = torch.randint(101, (3, 16))
    with torch.no_grad():
        expected = theirs(ids).logits
        torch.testing.assert_close(ours(ids), expected, atol=1e-4, rtol=0)
        loss = F.cross_entropy(expected[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        assert ours(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(loss.item(), abs=1e-4)


def test_the_activation_is_the_one_that_is_named():
    found = {}
    for activation, approximate in (("gelu", "none"), ("gelu_tanh", "tanh")):
        torch.manual_seed(0)
        mlp = GPT(replace(SHAPE, activation=activation)).blocks[0].mlp
        x = 20 * torch.randn(3, 32)
        torch.testing.assert_close(mlp(x), mlp.proj(F.gelu(mlp.fc(x), approximate=approximate)), rtol=0, atol=0)
        found[activation] = mlp(x)
    assert not found["gelu"].equal(found["gelu_tanh"])
    assert SHAPE.activation == "gelu_tanh"  # what configurations and checkpoints of before mean
    assert {preset.model(10).activation for preset in PRESETS.values()} == {"gelu"}
    with pytest.raises(InputError, match="activation is 'relu'; it must be gelu_tanh or gelu"):
        replace(SHAPE, activation="relu")


def test_a_checkpoint_that_does_not_say_has_the_tanh_activation():
    saved = {name: value for name, value in vars(SHAPE).items() if name != "activation"}
    assert difference(SHAPE, saved) is None
    assert read_search(ROOT / "tests" / "recorded" / "nano-v2").model.activation == "gelu_tanh"
    exact = replace(SHAPE, activation="gelu")
    assert difference(exact, saved) == "the checkpoint's model has activation gelu_tanh, this one gelu"


def test_another_state_dict_is_refused():
    with pytest.raises(InputError, match="GPT2LMHeadModel"):
        GPT.from_gpt2_state_dict({"weight": torch.zeros(2)}, n_head=2)


@pytest.mark.parametrize("chunk", [1, 300, 2**23])
def test_loss_and_gradients_equal_plain_cross_entropy(chunk, monkeypatch):
    monkeypatch.setattr(model_module, "LOSS_CHUNK_LOGITS", chunk)
    torch.manual_seed(0)
    model = GPT(SHAPE)
    ids, targets = torch.randint(101, (2, 3, 16))
    loss = 0.5 * model(ids, targets)
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    plain = 0.5 * F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    plain.backward()
    torch.testing.assert_close(loss, plain)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=1e-4)


def test_bfloat16_autocast_is_close():
    torch.manual_seed(0)
    model = GPT(SHAPE)
    ids, targets = torch.randint(101, (2, 3, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, targets)
    loss.backward()
    assert loss.item() == pytest.approx(model(ids, targets).item(), abs=0.02)


def test_a_token_sees_only_what_came_before():
    model = GPT(SHAPE).eval()
    ids = torch.randint(101, (1, 16))
    changed = ids.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 101
    same = (model(ids) - model(changed)).abs().amax(-1)[0] < 1e-6
    assert same[:9].all() and not same[9:].any()


def test_initialisation():
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=8, n_head=2, n_embd=128, block_size=64, vocab_size=512))
    assert model.blocks[0].mlp.fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.blocks[0].mlp.proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.blocks[0].attn.proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.blocks[0].attn.qkv.bias.any()


def test_too_long_a_context_is_an_error():
    with pytest.raises(ValueError, match="17 tokens"):
        GPT(SHAPE)(torch.zeros(1, 17, dtype=torch.int64))


@pytest.mark.gpu
def test_gpu_agrees_with_cpu():
    torch.manual_seed(0)
    model = GPT(SHAPE)
    ids, targets = torch.randint(101, (2, 3, 16))
    on_cpu = model(ids, targets).item()
    assert model.cuda()(ids.cuda(), targets.cuda()).item() == pytest.approx(on_cpu, abs=1e-3)
