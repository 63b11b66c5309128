"""The block's switches against implementations of others, and against plain formulas written here."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from conftest import SHIPPED_NANO

from myllm.config import GPTConfig
from myllm.models.gpt import GPT
from myllm.presets import MODERN as QWEN3
from myllm.presets import PRESETS, matrix_params
from myllm.system.errors import InputError
from myllm.training.train import train
from myllm.training.train_utils import generate, load_state, save_state
from tune.config.options import SearchOptions
from tune.config.overrides import check_space, parse_overrides, searched_space
from tune.config.resolve import resolve_search

GPT2 = GPTConfig(n_layer=2, n_head=4, n_embd=32, block_size=16, vocab_size=101)
MODERN = dict(norm="rmsnorm", position="rotary", mlp="swiglu", bias=False)
SWITCHES = [
    {},
    {"norm": "rmsnorm"},
    {"position": "rotary"},
    {"mlp": "swiglu"},
    {"mlp": "relu2"},
    {"qk_norm": True},
    {"n_kv_head": 2},
    {"tied": False},
    MODERN | {"qk_norm": True, "n_kv_head": 1, "tied": False},
]


def random_gpt(**changes):
    """A decoder in which every weight, gains and biases too, is drawn at random."""
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(GPT2, **changes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def plain_logits(model, ids):
    """Logits by formulas alone, head by head; positions turn by complex numbers."""
    c, w = model.config, model.state_dict()
    T, D, heads = ids.size(1), c.n_embd // c.n_head, c.n_kv_head or c.n_head

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def rms(x, gain):
        return gain * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    def norm(name, x):
        if c.norm == "rmsnorm":
            return rms(x, w[f"{name}.weight"])
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    def turn(x):  # (B, T, D)
        angles = torch.arange(T)[:, None] / 10_000.0 ** (torch.arange(D // 2) * 2 / D)
        turned = torch.complex(x[..., : D // 2], x[..., D // 2 :]) * torch.polar(torch.ones(T, D // 2), angles)
        return torch.cat([turned.real, turned.imag], -1)

    x = w["token_embedding.weight"][ids]
    x = x + w["position_embedding.weight"][:T] if c.position == "learned" else x
    hidden = torch.full((T, T), -torch.inf).triu(1)
    for layer in range(c.n_layer):
        name, outs = f"blocks.{layer}", []
        qkv = linear(f"{name}.attn.qkv", norm(f"{name}.norm1", x))
        q, k, v = qkv.split([c.n_head * D, heads * D, heads * D], -1)
        for head in range(c.n_head):
            shared = head // (c.n_head // heads)
            one, other, value = (part[..., i * D : (i + 1) * D] for part, i in ((q, head), (k, shared), (v, shared)))
            if c.qk_norm:
                one, other = rms(one, w[f"{name}.attn.q_norm.weight"]), rms(other, w[f"{name}.attn.k_norm.weight"])
            if c.position == "rotary":
                one, other = turn(one), turn(other)
            outs.append((one @ other.mT / D**0.5 + hidden).softmax(-1) @ value)
        x = x + linear(f"{name}.attn.proj", torch.cat(outs, -1))
        y = linear(f"{name}.mlp.fc", norm(f"{name}.norm2", x))
        if c.mlp == "swiglu":
            gate, up = y.chunk(2, -1)
            y = gate * torch.sigmoid(gate) * up
        else:
            y = F.relu(y) ** 2 if c.mlp == "relu2" else F.gelu(y, approximate="tanh")
        x = x + linear(f"{name}.mlp.proj", y)
    return norm("norm", x) @ w["token_embedding.weight" if c.tied else "head.weight"].T


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@torch.no_grad()
def test_each_switch_alone_and_all_of_them_follow_the_formulas(switches):
    model, ids = random_gpt(**switches), torch.randint(101, (3, 16))
    expected = plain_logits(model.double(), ids)
    torch.testing.assert_close(random_gpt(**switches)(ids).double(), expected, rtol=1e-5, atol=1e-4)


def as_ours(theirs, layers):
    """The state dict of a transformers Llama, or a relative, under our names."""
    found = {"token_embedding.weight": theirs["model.embed_tokens.weight"], "norm.weight": theirs["model.norm.weight"]}
    found["head.weight"] = theirs["lm_head.weight"]
    for layer in range(layers):
        ours, prefix = f"blocks.{layer}.", f"model.layers.{layer}."
        fused = {"attn.qkv": [f"self_attn.{part}_proj" for part in "qkv"], "mlp.fc": ["mlp.gate_proj", "mlp.up_proj"]}
        fused |= {"attn.proj": ["self_attn.o_proj"], "mlp.proj": ["mlp.down_proj"]}
        fused |= {"norm1": ["input_layernorm"], "norm2": ["post_attention_layernorm"]}
        fused |= {f"attn.{part}_norm": [f"self_attn.{part}_norm"] for part in "qk"}
        for name, parts in fused.items():
            if f"{prefix}{parts[0]}.weight" in theirs:
                found[f"{ours}{name}.weight"] = torch.cat([theirs[f"{prefix}{part}.weight"] for part in parts])
    return found


@pytest.mark.parametrize(
    ("family", "tied", "kv_heads"), [("Llama", False, 4), ("Llama", True, 2), ("Qwen3", False, 2)], ids=str
)
@torch.no_grad()
def test_logits_agree_with_transformers_llama_and_qwen3(family, tied, kv_heads):
    transformers = pytest.importorskip("transformers")
    shape = dict(vocab_size=101, hidden_size=48, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    shape |= dict(num_key_value_heads=kv_heads, head_dim=12, max_position_embeddings=16, rms_norm_eps=1e-6)
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**shape, tie_word_embeddings=tied, hidden_act="silu")
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.1)
    ours = GPT(GPTConfig(2, 4, 48, 16, 101, **MODERN, n_kv_head=kv_heads, tied=tied, qk_norm=family == "Qwen3")).eval()
    state = as_ours(theirs.state_dict(), 2)
    ours.load_state_dict({name: state[name] for name in ours.state_dict()})
    ids = torch.randint(101, (3, 16))
    torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@torch.no_grad()
def test_a_cache_changes_no_logits_and_no_text(switches):
    model, ids = random_gpt(**switches), torch.randint(101, (2, 16))
    cache, whole = model.new_cache(), model(ids)
    pieces = [model(ids[:, :5], cache=cache), *(model(ids[:, t : t + 1], cache=cache) for t in range(5, 16))]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="17 tokens"):
        model(ids[:, :1], cache=cache)
    expected = ids[:, :3]
    for _ in range(20):  # beyond the context, too
        expected = torch.cat([expected, model(expected[:, -16:])[:, -1].argmax(-1, keepdim=True)], 1)
    lengths, forward = [], model.forward
    model.forward = lambda ids, cache=None: (lengths.append(ids.size(1)), forward(ids, cache=cache))[1]
    assert torch.equal(generate(model, ids[:, :3], 20), expected)
    assert lengths == [3] + [1] * 13 + [16] * 6


@pytest.mark.parametrize("switches", SWITCHES[1:], ids=str)
def test_each_switch_trains_and_goes_on_from_its_checkpoint(switches, make_run, tmp_path):
    shape = dataclasses.replace(GPT2, vocab_size=257, n_layer=1, **switches)
    run = make_run(shape, budget_tokens=8 * 16 * 4, optimizer="muon")
    *_, report = train(run, 2)
    save_state(run.state_dict(), tmp_path / "state.pt")
    again = make_run(shape, budget_tokens=8 * 16 * 4, optimizer="muon")
    again.load_state_dict(load_state(tmp_path / "state.pt"))
    *_, one = train(run)
    *_, other = train(again)
    assert one.val_loss == other.val_loss < 6 and report.step == 2
    with pytest.raises(InputError, match=f"the checkpoint's model has ({'|'.join(switches)}) "):
        make_run(dataclasses.replace(GPT2, vocab_size=257, n_layer=1)).load_state_dict(run.state_dict())


def test_parameters_are_those_of_the_formulas():
    def count(**changes):
        model = GPT(GPTConfig(1, 4, 48, 16, 101, **changes))
        return sum(parameter.numel() for parameter in model.parameters())

    one, block = 101 * 48, 48 * 48
    norms = 3 * 48
    assert count(bias=False) == one + 16 * 48 + 12 * block + norms
    assert count(bias=False, position="rotary", tied=False) == 2 * one + 12 * block + norms
    assert count(bias=False, n_kv_head=1) == one + 16 * 48 + (1 + 2 / 4 + 1 + 8) * block + norms
    assert count(bias=False, qk_norm=True) == one + 16 * 48 + 12 * block + norms + 2 * 12
    assert count(**MODERN) == one + 4 * block + 3 * 48 * 128 + norms


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n_kv_head": 3}, r"n_kv_head is 3; it must be a divisor of n_head \(4\), or 0 for as many"),
        ({"n_kv_head": -1}, "n_kv_head is -1"),
        ({"position": "rotary", "n_embd": 36}, "a head of n_embd 36 / n_head 4 has an odd number of channels"),
        ({"norm": "batch"}, "norm is 'batch'; it must be layernorm or rmsnorm"),
        ({"mlp": "relu"}, "mlp is 'relu'; it must be gelu or swiglu or relu2"),
        ({"position": "alibi"}, "position is 'alibi'; it must be learned or rotary"),
        ({"qk_norm": 1}, "qk_norm is 1; it must be true or false"),
    ],
)
def test_what_a_block_can_not_be_is_one_line(wrong, words):
    with pytest.raises(InputError, match=words):
        dataclasses.replace(GPT2, **wrong)


def test_the_switches_can_be_searched_and_the_baseline_keeps_its_heads():
    options = SearchOptions(choices=("n_kv_head=1,2", "mlp=gelu,swiglu", "qk_norm=true,false"), set=("norm=rmsnorm",))
    model = dataclasses.replace(GPT2, n_head=2)
    overrides = parse_overrides(vars(options), model)
    space = searched_space(options, model, overrides, PRESETS["nano"])
    check_space(options, space, overrides)
    assert space.baseline | {"n_kv_head": 2, "mlp": "gelu", "qk_norm": False} == space.baseline
    assert space.fixed == {"norm": "rmsnorm"} and space.clipped_baseline == {}


def test_every_preset_has_a_modern_one_of_its_size():
    plain = [name for name in PRESETS if not name.endswith("-modern")]
    for name in plain:
        ours, modern = PRESETS[name].model(257), PRESETS[f"{name}-modern"].model(257)
        assert vars(modern) == vars(ours) | QWEN3
        shipped = SHIPPED_NANO if name == "nano" else PRESETS[name]
        measured = {"learning_rate": 1e-3} if name == "micro" else {}
        assert PRESETS[f"{name}-modern"].training() == shipped.training(**measured)
        model = GPT(dataclasses.replace(modern, n_layer=1, n_embd=64, n_head=4, n_kv_head=2))
        counted = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
        assert matrix_params(model.config) == counted  # what laws of scale go by
    for name in ("nano", "mini"):  # of about as many parameters
        counts = [sum(p.numel() for p in GPT(PRESETS[f"{name}{end}"].model(257)).parameters()) for end in ("", "-modern")]
        assert 0.9 < counts[1] / counts[0] < 1.1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"choices": ("n_kv_head=1,3",)}, r"--choices n_kv_head=1,3: n_kv_head is 3; it must be a divisor of n_head \(2\)"),
        ({"set": ("position=rotary", "n_embd=66")}, "--set position=rotary, --set n_embd=66: .* odd number of channels"),
        ({"choices": ("mlp=gelu,relu",)}, "--choices mlp=gelu,relu: mlp is 'relu'"),
        ({"set": ("qk_norm=yes",)}, "--set qk_norm=yes: 'yes' is neither true nor false"),
        ({"set": ("muon_lr_ratio=2",)}, "--set muon_lr_ratio=2: only optimizer muon has it; add --set optimizer=muon"),
        ({"choices": ("optimizer=adamw,sgd",)}, "--choices optimizer=adamw,sgd: optimizer is 'sgd'"),
    ],
    ids=str,
)
def test_what_can_not_be_searched_is_one_line_before_the_search(flags, words, byte_files, tmp_path):
    train, val = ((str(path),) for path in byte_files)
    with pytest.raises(InputError, match=words):
        resolve_search(SearchOptions(train_file=train, val_file=val, budget_tokens=262144, **flags), tmp_path)
