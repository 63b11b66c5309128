"""Trainings with a number of seconds: on a simulated clock, and for a moment on the real one."""

import pytest
import torch

from myllm.config import TIMED_REPORTS
from myllm.system.errors import InputError
from myllm.training import pace as pace_module
from myllm.training.pace import Pace
from myllm.training.train import train, train_steps
from myllm.training.train_utils import load_state, save_state


class Clock:
    """A clock that only the steps of a simulated training move."""

    def __init__(self, monkeypatch, per_step):
        self.now, self.per_step = 0.0, per_step
        monkeypatch.setattr(pace_module.time, "perf_counter", lambda: self.now)

    def pass_(self):
        self.now += self.per_step(0)


def played(monkeypatch, budget, per_step, begin=0):
    """(step, total_steps, seconds done) at each report of a training whose step number n takes per_step(n)."""
    clock, pace, reports, step, seconds = Clock(monkeypatch, per_step), Pace(budget), [], begin, 0.0
    pace.measure(clock.pass_, 1, 0, torch.device("cpu"))
    while not pace.is_over:
        step += 1
        seconds += per_step(step)
        if pace.add(step, per_step(step)):
            reports.append((step, pace.total_steps, pace.done, seconds))
    assert pace.total_steps == step
    return reports


@pytest.mark.parametrize(
    ("budget", "per_step"),
    [
        (100.0, lambda n: 0.1),
        (100.0, lambda n: 0.1 if n < 300 else 0.25),  # a neighbour comes
        (100.0, lambda n: 0.3 if n < 100 else 0.1),  # and goes
        (100.0, lambda n: 0.05 if n == 0 else 0.2),  # the first measurement was far off
        (100.0, lambda n: 0.1 + 0.05 * (n % 7)),
        (40.0, lambda n: 1.0),  # hardly more steps than reports
    ],
)
def test_a_training_ends_when_its_time_does_whatever_its_pace(monkeypatch, budget, per_step):
    reports = played(monkeypatch, budget, per_step)
    assert len(reports) == TIMED_REPORTS
    for number, (_, _, done, seconds) in enumerate(reports, 1):
        assert done == number * budget / TIMED_REPORTS
        assert abs(seconds - done) < 0.05 * budget
    assert abs(reports[-1][3] - budget) < 0.02 * budget


def test_the_steps_to_come_are_counted_anew(monkeypatch):
    reports = played(monkeypatch, 100.0, lambda n: 0.1 if n <= 500 else 0.2)
    assert [total for step, total, *_ in reports if step < 450] == [1000] * len([r for r in reports if r[0] < 450])
    assert [total for step, total, *_ in reports if step > 600] == [750] * len([r for r in reports if r[0] > 600])


def test_too_few_seconds_are_one_line(make_run, monkeypatch):
    run = make_run(budget_tokens=None, budget_seconds=1e-4)
    with pytest.raises(InputError, match=r"budget_seconds is 0\.0001, and a step takes .* s here: fewer steps than its 32"):
        next(train(run))


def test_a_timed_training_reports_in_equal_parts_and_its_schedule_ends(make_run):
    run = make_run(budget_tokens=None, budget_seconds=2.0, warmup_ratio=0.1, min_lr_ratio=0.1)
    rates = []
    for _ in train_steps(run):
        rates.append(run.optimizer.param_groups[0]["lr"])
    assert run.pace.is_over and run.total_steps == run.step == len(rates)
    assert abs(run.pace.seconds - 2.0) < 0.5
    assert rates[0] < 0.5 * max(rates) and max(rates) <= 1e-2 and rates[-1] < 0.2 * 1e-2
    parts = [report.budget_seconds for report in train(make_run(budget_tokens=None, budget_seconds=1.6))]
    assert parts == pytest.approx([number * 0.05 for number in range(1, 33)])


def test_a_timed_training_goes_on_from_its_checkpoint(make_run, tmp_path):
    run = make_run(budget_tokens=None, budget_seconds=1.6)
    reports = train(run)
    for _ in range(10):
        next(reports)
    save_state(run.state_dict(), tmp_path / "state.pt")
    again = make_run(budget_tokens=None, budget_seconds=1.6)
    again.load_state_dict(load_state(tmp_path / "state.pt"))
    assert vars(again.pace) == vars(run.pace) and again.total_steps == run.total_steps
    assert [report.budget_seconds for report in train(again)] == pytest.approx([n * 0.05 for n in range(11, 33)])
    longer = make_run(budget_tokens=None, budget_seconds=3.2)
    longer.load_state_dict(load_state(tmp_path / "state.pt"))
    assert longer.pace.seconds == run.pace.seconds and longer.pace.reports in (4, 5)
    in_tokens = make_run()
    next(train(in_tokens))
    timed = make_run(budget_tokens=None, budget_seconds=1.6)
    timed.load_state_dict(in_tokens.state_dict())
    assert timed.pace.seconds == in_tokens.train_seconds


def test_the_trainer_takes_a_time_and_goes_on(command, byte_files, tmp_path, capsys):
    data = ["--train_file", byte_files[0], "--val_file", byte_files[1], "--set", "n_layer=1", "n_embd=16", "n_head=1"]
    data += ["--max_len", "16", "--eval_iter", "1", "--batch_size", "4"]
    assert command(*data, "--budget_seconds", "1s", "--save_model", tmp_path / "model.pth") == 0
    said = capsys.readouterr().out
    assert "1 s of steps of 64 tokens" in said and said.count("val_loss") == 32
    assert command(*data, "--budget_seconds", "1.5", "--load_model", tmp_path / "model.pth") == 0
    assert 8 <= capsys.readouterr().out.count("val_loss") <= 13
    for flags, words in (
        (["--budget_seconds", "soon"], "'soon' is no time"),
        (["--budget_seconds", "9", "--budget_tokens", "64"], "budget_tokens is 64 and budget_seconds is 9.0; exactly one"),
        (["--budget_seconds", "9", "--eval_freq", "5"], "--eval_freq does nothing with --budget_seconds"),
        (["--budget_seconds", "0"], "budget_seconds is 0.0; it must be a positive number"),
    ):
        with pytest.raises(InputError, match=words):
            command(*data, *flags)


def test_a_timed_training_that_diverges_ends_at_once_between_two_reports(make_run):
    run = make_run(budget_tokens=None, budget_seconds=60.0, learning_rate=1e6, clip_norm=1e9)
    run.pace.per_step = 0.001
    run.pace._plan(0)
    for _ in train(run, 3):
        pass
    with torch.no_grad():
        run.parameters[0].fill_(float("nan"))
    *_, last = train(run)
    assert last.diverged and last.step < 200 and 0 < last.budget_seconds * 32 / 60 % 1 < 1
