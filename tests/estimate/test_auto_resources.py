"""--cpus_per_trial auto and --gpus_per_trial auto: the divisions that are timed, the choice, and that it is kept."""

import dataclasses

import pytest
from conftest import run_command_line
from helpers import search_of

from myllm.system.errors import InputError, RunError
from tune.config.resolve import Resources, resolve_resources
from tune.config.spec import read_search
from tune.estimate.auto import ConcurrencyTrial, candidates, choose, resolve_auto, time_concurrency
from tune.estimate.benchmark import StepTimings
from tune.estimate.forecast import Throughput


def rated(*rates, fits=True):
    """Trials of 1, 2, 4, ... at once that train so much together."""
    return [ConcurrencyTrial(Resources(1, 0, 2**place), rate, fits) for place, rate in enumerate(rates)]


def test_more_at_once_must_be_worth_it():
    assert choose(rated(100, 150, 190))[0].workers == 4
    assert choose(rated(100, 105))[0].workers == 1  # fewer at once know more when they begin
    assert choose(rated(100, 90, 500))[0].workers == 1  # none is looked at after one that trains less
    hungry = [*rated(100), ConcurrencyTrial(Resources(1, 0, 2), 190, False)]
    resources, why = choose(hungry)
    assert resources.workers == 1 and "2 at once with 1 core each: too little memory" in why


def test_the_divisions_that_are_timed():
    assert [(r.cpus_per_trial, r.workers) for r in candidates(2, 0, None)] == [(2, 1), (1, 2)]
    assert [(r.cpus_per_trial, r.workers) for r in candidates(6, 0, None)] == [(6, 1), (3, 2), (1, 4), (1, 6)]
    assert [(r.cpus_per_trial, r.workers) for r in candidates(8, 0, 2)] == [(8, 1), (4, 2)]
    assert [(r.gpus_per_trial, r.workers, r.cpus_per_trial) for r in candidates(16, 2, None)] == [
        *((1, 1, 8), (0.5, 2, 4), (0.25, 4, 2), (0.125, 8, 1))
    ]
    assert [r.workers for r in candidates(1, 1, None)] == [1]


def asking(**options):
    search = search_of()
    return dataclasses.replace(search, options=dataclasses.replace(search.options, **options))


def doubling(search, resources):
    """A machine on which trials do not get into one another's way."""
    return ConcurrencyTrial(resources, 100.0 * resources.workers, True)


def test_numbers_take_the_place_of_auto_and_the_reason_is_kept(tmp_path):
    search, said = resolve_auto(asking(cpus_per_trial="auto"), 4, 0, doubling)
    assert search.options.cpus_per_trial == 1 and "--cpus_per_trial auto: 1 (" in said and "4 at once" in said
    search.write(tmp_path)
    again = read_search(tmp_path)
    assert again == search and again.auto_resolved["cpus_per_trial"] in said
    assert resolve_auto(again, 4, 0, doubling) == (again, "")  # a resume asks nobody
    search, said = resolve_auto(asking(gpus_per_trial="auto"), 16, 1, doubling)
    assert search.options.gpus_per_trial == 0.125 and search.options.cpus_per_trial is None
    search, said = resolve_auto(asking(gpus_per_trial="auto", cpus_per_trial="auto"), 2, 0, doubling)
    assert (search.options.gpus_per_trial, search.options.cpus_per_trial) == (0, 1) and "no GPU here" in said
    with pytest.raises(InputError, match="give a number"):
        resolve_auto(asking(cpus_per_trial="auto", address="auto"), 2, 0, doubling)


def sharing(efficiency):
    """A machine on which several processes together are so much of as fast as they could be."""

    def timed(search, resources, seconds):
        if efficiency is None and resources.processes > 1:
            raise RunError("a training can't begin: no NCCL")
        step = 1.0 / (1 + (resources.processes - 1) * (efficiency or 1))
        one = {batch: step * batch / 16 for batch in search.batch_sizes if batch % resources.processes == 0}
        pace = Throughput(step / 16 / search.training.max_len, 0.0)
        return StepTimings(pace, one, 0.0, 1e6, 0.0, 0.0, 1e6, 1.0)

    return timed


@pytest.mark.parametrize(
    ("efficiency", "joins", "said"), [(0.9, True, "1.90 times"), (0.2, False, "1.20 times"), (None, False, "no NCCL")]
)
def test_idle_slots_join_where_timed_steps_say_that_it_helps(efficiency, joins, said, tmp_path):
    search, text = resolve_auto(asking(processes_per_trial="auto"), 2, 0, doubling, sharing(efficiency))
    assert search.options.joins_idle_slots == joins and said in text and said in search.auto_resolved["processes_per_trial"]
    search.write(tmp_path)
    again = read_search(tmp_path)
    assert resolve_auto(again, 2, 0, doubling, sharing(0.5)) == (search, "")  # a resume asks nobody
    assert resolve_resources(search.options, 2, 0) == Resources(1, 0, 2)


def test_auto_of_several_gpus_lets_idle_ones_join():
    def one_each(search, resources):
        return ConcurrencyTrial(resources, 100.0, True)

    search, text = resolve_auto(asking(gpus_per_trial="auto"), 16, 4, one_each, sharing(0.9))
    assert search.options.gpus_per_trial == 1 and search.options.joins_idle_slots and "4 slots is" in text
    search, _ = resolve_auto(asking(gpus_per_trial="auto"), 16, 4, doubling, sharing(0.9))
    assert search.options.gpus_per_trial < 1 and not search.options.joins_idle_slots  # shares of a GPU
    search, _ = resolve_auto(asking(gpus_per_trial="auto"), 16, 1, one_each, sharing(0.9))
    assert not search.options.joins_idle_slots
    with pytest.raises(InputError, match=r"--processes_per_trial auto .* give a number"):
        resolve_auto(asking(processes_per_trial="auto", address="auto"), 2, 0, doubling)


def test_a_trial_that_no_second_slot_can_have_stays_as_it_is():
    one_worker, text = resolve_auto(asking(processes_per_trial="auto", max_concurrent=1), 2, 0, doubling)
    assert not one_worker.options.joins_idle_slots and "can't have more than one slot" in text


@pytest.mark.slow
def test_a_dry_run_times_divisions_and_says_its_choice(byte_files):
    train, val = byte_files
    flags = ["--train_file", train, "--val_file", val, "--budget_tokens", "262144", "--num_samples", "2"]
    done = run_command_line("tune/search.py", *flags, "--dry_run", "--cpus_per_trial", "auto", "--max_concurrent", "1")
    assert done.returncode == 0 and "--cpus_per_trial auto: " in done.stdout and "tokens/s" in done.stdout, done.stderr
    bad = run_command_line("tune/search.py", "--cpus_per_trial", "some")
    assert bad.returncode == 2 and "neither a number nor auto" in bad.stderr


@pytest.mark.gpu
def test_steps_on_a_gpu_are_timed_too():
    found = time_concurrency(asking(), Resources(1, 0.5, 2))
    assert found.rate > 0 and found.fits
