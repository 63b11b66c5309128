import math
from types import SimpleNamespace

import pytest
import torch
from conftest import TINY

from myllm.config import GPTConfig, TrainConfig
from myllm.system.errors import InputError, RunError
from myllm.training.adamw import AdamW
from myllm.training.ema import in_place_of
from myllm.training.run import Run
from myllm.training.train import learning_rate_at, mean_loss, train
from myllm.training.train_utils import generate, load_state, plot_losses, save_state


def config(**changes):
    return TrainConfig(**dict(learning_rate=1.0, batch_size=1, max_len=1, stride=1, epochs=1) | changes)


def test_schedule_by_hand():
    v2 = config(warmup_ratio=0.1, min_lr_ratio=0.2)
    rates = [learning_rate_at(step, 101, v2) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.6)  # half-way down
    assert rates[100] == pytest.approx(0.2)
    assert {learning_rate_at(step, 101, config(version="v1")) for step in range(101)} == {1.0}
    assert learning_rate_at(0, 1, v2) == 1.0
    wsd = config(warmup_ratio=0.1, min_lr_ratio=0.2, schedule="wsd", cooldown_ratio=0.5)
    rates = [learning_rate_at(step, 101, wsd) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert set(rates[10:51]) == {1.0} and rates[75] == pytest.approx(0.6) and rates[100] == pytest.approx(0.2)
    assert learning_rate_at(0, 1, wsd) == 1.0


def test_a_half_life_in_tokens_sets_beta2_for_every_batch():
    assert config(beta2_half_life=10.0, batch_size=5, max_len=2).step_beta2 == pytest.approx(0.5)
    assert config(beta2_half_life=10.0, batch_size=5).step_beta2 == pytest.approx(0.5**0.5)
    assert config(beta2=0.9).step_beta2 == 0.9


def test_adamw_is_pytorchs():
    def ended(optimizer):
        torch.manual_seed(0)
        weight, bias = torch.randn(5, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
        groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
        first, state = optimizer(groups, lr=0.01, fused=True), None
        for made in (first, optimizer(groups, lr=0.02, fused=True)):
            if state:
                made.load_state_dict(state)
            for _ in range(3):
                made.zero_grad()
                (torch.randn(4, 5) @ weight + bias).square().mean().backward()
                made.step()
            state = made.state_dict()
        return torch.cat([weight.flatten(), bias]), state

    (weights, state), (expected, expected_state) = ended(AdamW), ended(torch.optim.AdamW)
    assert torch.equal(weights, expected) and str(state) == str(expected_state)


def test_training_learns_and_reports_on_the_marks(make_run):
    run = make_run()
    before = mean_loss(run, run.val_windows, run.val_windows.spread(8))
    reports = list(train(run))
    assert [r.step for r in reports] == [10, 20, 30, 40]
    assert reports[-1].tokens_seen == 40 * 8 * 16
    assert reports[-1].val_loss < before - 1
    assert not any(r.diverged for r in reports)
    assert reports[-1].lr == pytest.approx(1e-3)


def test_an_evaluation_on_a_gpu_has_no_more_logits_than_fit():
    def windows(device, vocab_size, micro_batch_size=32, max_len=1024):
        sizes = SimpleNamespace(max_len=max_len), SimpleNamespace(vocab_size=vocab_size)
        run = SimpleNamespace(device=torch.device(device), micro_batch_size=micro_batch_size, n_layer=12)
        run.config, run.model_config = sizes
        return Run.eval_batch_size.fget(run)

    assert windows("cpu", 257) == 32 and windows("cuda", 257) == 32 * 12  # activations of one layer at a time
    assert windows("cuda", 50_257) == 32 and windows("cuda", 50_257, micro_batch_size=2) == 5


def test_fewer_windows_of_train_than_of_val_can_be_evaluated(make_run):
    run = make_run(train_eval_windows=2)
    *_, last = train(run)
    for windows, count, loss in ((run.train_windows, 2, last.train_loss), (run.val_windows, 8, last.val_loss)):
        assert loss == mean_loss(run, windows, windows.spread(count))


def test_v1_neither_clips_nor_warms_up(make_run):
    run = make_run(version="v1")
    reports = list(train(run))
    assert {r.lr for r in reports} == {1e-2}
    assert all(math.isnan(r.grad_norm) for r in reports)


def test_v2_clips_at_every_step(make_run):
    run = make_run(clip_norm=1e-3, warmup_ratio=0.5)
    norms = []
    step = run.optimizer.step
    run.optimizer.step = lambda: (
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in run.model.parameters()]).item()),
        step(),
    )
    list(train(run))
    assert len(norms) == 40 and max(norms) < 1.01e-3


def test_weight_decay_leaves_out_biases_and_norms(make_run):
    run = make_run(weight_decay=0.3)
    decays = {p: g["weight_decay"] for g in run.optimizer.param_groups for p in g["params"]}
    for name, parameter in run.model.named_parameters():
        assert decays[parameter] == (0.0 if "norm" in name or name.endswith("bias") else 0.3)


@pytest.mark.parametrize(("dropout", "ema_ratio"), [(0.0, 0.0), (0.2, 0.0), (0.0, 0.1)])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(make_run, tmp_path, dropout, ema_ratio):
    shape = GPTConfig(**vars(TINY) | {"dropout": dropout})
    whole = make_run(shape, ema_ratio=ema_ratio)
    curve = [(r.val_loss, r.val_loss_ema if ema_ratio else 0) for r in train(whole)]
    first = make_run(shape, ema_ratio=ema_ratio)
    reports = train(first)
    next(reports), next(reports)
    save_state(first.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(99)  # another process would have other generators
    second = make_run(shape, ema_ratio=ema_ratio)
    second.load_state_dict(load_state(tmp_path / "state.pt"))
    assert [(r.val_loss, r.val_loss_ema if ema_ratio else 0) for r in train(second)] == curve[2:]
    for ours, theirs in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_micro_batches_give_the_same_losses(make_run):
    whole = [r.val_loss for r in train(make_run())]
    pieces = [r.val_loss for r in train(make_run(micro_batch_size=3))]
    assert pieces == pytest.approx(whole, abs=1e-4)


def limit_memory(run, windows, monkeypatch):
    """Makes the model of `run` run out of memory above `windows` windows at once."""
    forward = run.model.forward

    def limited(ids, targets=None):
        if len(ids) > windows:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return forward(ids, targets)

    monkeypatch.setattr(run.model, "forward", limited)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_result(make_run, monkeypatch):
    whole = [r.val_loss for r in train(make_run())]
    run = make_run()
    limit_memory(run, 3, monkeypatch)
    assert [r.val_loss for r in train(run)] == pytest.approx(whole, abs=1e-4)
    assert run.micro_batch_size == 2 and run.config.batch_size == 8
    run = make_run()
    limit_memory(run, 0, monkeypatch)
    with pytest.raises(RunError, match="micro_batch_size 1"):
        list(train(run))


def test_averaged_weights_follow_their_formula_and_leave_training_alone(make_run):
    plain, run = make_run(), make_run(ema_ratio=0.25)
    losses = [r.val_loss for r in train(plain)]
    expected, averages = None, []
    update = run.update

    def check(rate):
        nonlocal expected
        norm = update(rate)
        weight = run.parameters[0].detach().clone().double()
        share = min(1.0, 1 / (0.25 * run.step))
        expected = weight if expected is None else expected + share * (weight - expected)
        averages.append((run.average[0].double() - expected).abs().max().item())
        return norm

    run.update = check
    reports = list(train(run))
    assert [r.val_loss for r in reports] == losses and max(averages) < 1e-6
    assert all(r.val_loss_ema != r.val_loss for r in reports[1:]) and reports[-1].val_loss_ema < reports[0].val_loss
    with in_place_of(run.parameters, run.average):
        assert mean_loss(run, run.val_windows, run.val_windows.spread(8)) == reports[-1].val_loss_ema
    assert mean_loss(run, run.val_windows, run.val_windows.spread(8)) == losses[-1]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_run_that_turns_non_finite_ends_as_diverged(make_run, version):
    run = make_run(version=version, learning_rate=1e30, warmup_ratio=0.0)
    reports = list(train(run))
    assert reports[-1].diverged and run.step <= 20
    assert not math.isfinite(reports[-1].val_loss)


def test_a_spike_that_recovers_is_no_divergence(make_run):
    run = make_run()
    backward, calls = run.backward, []

    def spiking(*batch):
        calls.append(batch)
        return backward(*batch) * (1e30 if len(calls) in (5, 10) else 1)

    run.backward = spiking
    reports = list(train(run))
    assert not any(r.diverged for r in reports) and reports[-1].step == run.total_steps == len(calls)


def test_a_state_of_another_shape_or_place_is_refused(make_run):
    state = make_run().state_dict()
    with pytest.raises(InputError, match="n_embd 16, this one 32"):
        make_run(GPTConfig(**vars(TINY) | {"n_embd": 32})).load_state_dict(state)
    with pytest.raises(InputError, match="batch_size 8, not 4"):
        make_run(batch_size=4).load_state_dict(state)
    with pytest.raises(InputError, match="max_len 32 exceeds"):
        make_run(max_len=32)


def test_load_state_runs_no_code_and_names_damage(tmp_path):
    import pickle

    path = tmp_path / "state.pt"
    path.write_bytes(pickle.dumps(print))
    with pytest.raises(InputError, match="not a checkpoint"):
        load_state(path)
    torch.save({"model_config": print}, path)
    with pytest.raises(InputError, match="not a checkpoint"):
        load_state(path)
    torch.save({"weights": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="not a training state"):
        load_state(path)
    with pytest.raises(InputError, match="no such"):
        load_state(tmp_path / "missing.pt")
    torch.save({"model_config": {}, "weights": torch.zeros(10000)}, path)
    whole = path.read_bytes()
    assert load_state(path)["weights"].sum() == 0
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        load_state(path)
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + b"\x40" + whole[middle + 1 :])  # torch.load alone would take it
    with pytest.raises(InputError, match="checksum"):
        load_state(path)


def test_a_failed_save_leaves_the_old_file_whole(tmp_path, make_run):
    path = tmp_path / "state.pt"
    save_state(make_run().state_dict(), path)
    before = path.read_bytes()
    with pytest.raises(AttributeError):
        save_state({"model_config": lambda: None}, path)  # can't be pickled: fails half-way
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


class Counts(torch.nn.Module):
    """A model whose next token is always the last one plus one."""

    config = TINY

    def forward(self, ids):
        return 10.0 * torch.nn.functional.one_hot((ids + 1) % 257, 257).float()


def test_generation_by_hand():
    ids = torch.tensor([[5], [8]])
    assert generate(Counts(), ids, 3).tolist() == [[5, 6, 7, 8], [8, 9, 10, 11]]
    assert generate(Counts(), ids, 9, eos_id=9).tolist() == [[5, 6, 7, 8, 9], [8, 9, 9, 9, 9]]
    assert generate(Counts(), ids, 2, temperature=5.0, top_k=1).tolist() == [[5, 6, 7], [8, 9, 10]]
    drawn = generate(Counts(), ids, 30, temperature=100.0, generator=torch.Generator().manual_seed(0))
    assert len(set(drawn[0].tolist())) > 10
    with pytest.raises(ValueError, match="temperature"):
        generate(Counts(), ids, 1, temperature=-1)


def test_plot_is_a_png(tmp_path):
    plot_losses([0, 1], [0, 100], [5, 4], [5, 4.5], tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
