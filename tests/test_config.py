import dataclasses

import pytest
from conftest import SHIPPED_NANO

from myllm.config import GPTConfig, TrainConfig, from_dict
from myllm.models.gpt import GPT
from myllm.presets import PRESETS, get_preset
from myllm.system.errors import InputError


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_its_configs(name):
    preset = get_preset(name)
    assert preset.training().budget_tokens % (32 * 4 * preset.batch_size * preset.block_size) == 0
    assert preset.model(257).block_size == preset.training().max_len


@pytest.mark.parametrize(("name", "vocab", "millions"), [("nano", 257, 0.12), ("micro", 257, 0.84), ("mini", 65, 10.8)])
def test_small_presets_have_the_size_they_say(name, vocab, millions):
    parameters = sum(parameter.numel() for parameter in GPT(PRESETS[name].model(vocab)).parameters())
    assert parameters / 1e6 == pytest.approx(millions, rel=0.05)


def test_the_shipped_nano_meets_the_marks_of_its_own_ranges():
    nano = SHIPPED_NANO
    assert (nano.learning_rate, nano.batch_size) == (2e-3, 2)  # experiments/LOG.md, "the presets' baselines"
    assert nano.at(nano.budget_tokens) == nano and nano.budget_tokens % (32 * 4 * nano.batch_size * nano.block_size) == 0


def test_gpt2_preset_is_gpt2():
    shape = PRESETS["gpt2"].model(50257)
    block = 12 * shape.n_embd**2 + 13 * shape.n_embd
    total = shape.n_layer * block + (shape.vocab_size + shape.block_size) * shape.n_embd + 2 * shape.n_embd
    assert total == 124_439_808  # the published count of the smallest GPT-2


@pytest.mark.parametrize("name", ["mini", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "gpt2-modern"])
def test_a_large_presets_own_baseline_is_the_laws_at_its_budget(name):
    assert get_preset(name).at(get_preset(name).budget_tokens) == get_preset(name)


def test_a_large_presets_baseline_follows_budget_shape_and_batch_and_a_small_ones_does_not():
    def baseline(name, *asked):
        preset = get_preset(name).at(*asked)
        return preset.learning_rate, preset.batch_size

    assert baseline("gpt2", 100_000_000) == (0.0011, 16)  # 1.79 N^-.713 D^.307 and .58 D^.571 / 1024, N = 84.9M
    assert baseline("gpt2", 20_000_000_000) == (0.0033, 512)  # the law's .0058 is capped: 3e-3 (512 / 431.5)^.5
    deep = dataclasses.replace(get_preset("gpt2").model(257), n_layer=48, block_size=256)
    assert baseline("gpt2", 100_000_000, deep) == (0.00042, 64)
    assert baseline("gpt2", 2_483_027_968, None, 8) == (0.00074, 8)
    own = get_preset("nano").learning_rate, get_preset("nano").batch_size
    assert baseline("nano", 10**10) == own and baseline("nano", 786_432, None, 64) == own
    wide = dataclasses.replace(get_preset("nano").model(257), n_embd=128, block_size=32)
    assert baseline("nano", 786_432, wide) == (own[0] / 2, own[1] * 4)
    assert baseline("nano", 100_000_000, deep) == (0.00042, 64)


GOOD = dict(learning_rate=1e-3, batch_size=4, max_len=8, stride=8, epochs=1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": 1.5}, "batch_size"),
        ({"stride": 0}, "stride"),
        ({"warmup_ratio": 1}, "warmup_ratio"),
        ({"min_lr_ratio": 1.1}, "min_lr_ratio"),
        ({"clip_norm": -0.1}, "clip_norm"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"beta2": 1.0}, "beta2"),
        ({"version": "v3"}, "version"),
        ({"schedule": "step"}, "schedule"),
        ({"schedule": "wsd", "warmup_ratio": 0.5, "cooldown_ratio": 0.6}, "cooldown_ratio"),
        ({"beta2_half_life": 0}, "beta2_half_life"),
        ({"ema_ratio": -0.1}, "ema_ratio"),
        ({"epochs": None}, "epochs"),
        ({"budget_tokens": 64}, "budget_tokens"),
        ({"epochs": None, "budget_tokens": 33}, "budget_tokens"),
        ({"seed": -1}, "seed"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_bad_training_settings_are_named(change, word):
    with pytest.raises(InputError, match=word):
        from_dict(TrainConfig, GOOD | change, "here")


def test_bad_shapes_are_named():
    good = dict(n_layer=1, n_head=2, n_embd=8, block_size=4)
    with pytest.raises(InputError, match="n_embd is 9"):
        GPTConfig(**good | {"n_embd": 9})
    with pytest.raises(InputError, match="dropout"):
        GPTConfig(**good | {"dropout": 1.0})
    with pytest.raises(InputError, match="'n_layer' is missing"):
        from_dict(GPTConfig, {"n_head": 1}, "here")


def test_round_trip_through_a_dict():
    config = get_preset("gpt2").training()
    assert from_dict(TrainConfig, dataclasses.asdict(config), "here") == config
