"""--cpus_per_trial auto and --gpus_per_trial auto: the divisions that are timed, the choice, and that it is kept."""

import dataclasses

import pytest
from conftest import run_command_line
from helpers import search_of

from myllm.system.errors import InputError
from tune.config.resolve import Resources
from tune.config.spec import read_search
from tune.estimate.benchmark import ConcurrencyTrial, candidates, choose, resolve_auto, time_concurrency


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
