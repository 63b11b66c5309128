"""Times a few real steps of a search here, with as many processes at once as it will have: for --dry_run and `auto`.

python -m tune.estimate.benchmark FOLDER_WITH_SEARCH_JSON ARGUMENTS_OF_MEASURE_AS_JSON
"""

import dataclasses
import functools
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import Any

import psutil

from myllm.config import TIMED_REPORTS
from myllm.system.errors import InputError, RunError
from myllm.system.machine import gpu_names, peak_memory
from myllm.text.durations import duration
from myllm.text.format import amount, share_text
from tune.config.options import AUTO, PICKED
from tune.config.resolve import Resources
from tune.config.spec import RUNS_DIR, BuiltinSearch, read_search
from tune.core.clock import ENDING_SECONDS, search_seconds
from tune.core.events import Event
from tune.estimate.forecast import Throughput, fit_throughput, is_finished, simulate_rest
from tune.store.checkpoints import STATE_FILE

TIMED_SECONDS = 1.0  # for each batch size
WARM_STEPS = {"cpu": 1, "cuda": 3}  # untimed: memory is allocated, code compiled, CUDA graphs captured
RAY_SECONDS = 1.0  # of a search's start, beside the start of a process that trains
REPORT_SECONDS = 3.0  # from the summary until all files are written; on a terminal the command does not wait for them
MOST_IMPORT_SECONDS = 20.0  # a command that is older has done more than start
DRIVER_BYTES = 1.2e9  # memory of the command and of Ray's own processes
GIVE_UP_SECONDS = 600.0  # for all timings together
AUTO_SECONDS = 0.5  # for each batch size, where `auto` chooses
MIN_SPEEDUP = 1.1  # of more trials at once over fewer: fewer at once know more when the next begins
MOST_ON_A_GPU = 8  # trials at once
GPU_SHARE = 0.9  # of a GPU's memory that trials may fill; each process' own context takes some


@dataclass(frozen=True)
class StepTimings:
    """The measurements of all processes: their mean."""

    throughput: Throughput
    steps: dict[int, float]  # batch size -> seconds of an optimizer step
    evaluation: float  # seconds
    memory: float  # peak bytes of one process
    device_memory: float  # peak bytes on its GPU; 0 without one
    device_total: float  # bytes of its whole GPU
    checkpoint: float  # bytes
    ready: float  # seconds from the start of a process until it could train


def time_steps(search: BuiltinSearch, resources: Resources, seconds: float = TIMED_SECONDS) -> StepTimings:
    """Times the smallest and the largest batch, with all workers at once because they share the memory bus.

    Where several processes share a training, each times its part of a batch; the time to add up gradients is left out.
    Raises RunError with the reason where a training fails.
    """
    batches = sorted({min(search.batch_sizes), max(search.batch_sizes)})
    device, processes, sharing = "cuda" if resources.gpus_per_trial else "cpu", [], resources.processes
    with tempfile.TemporaryDirectory() as folder:
        search.write(Path(folder))
        command = [sys.executable, "-m", "tune.estimate.benchmark", folder]
        parts, each = [batch // sharing for batch in batches], resources.gpus_per_trial / sharing
        asked = {"batches": parts, "device": device, "threads": resources.threads, "seconds": seconds}
        for worker in range(resources.workers * sharing):
            shown = {"CUDA_VISIBLE_DEVICES": _gpus(worker, each)} if each else {}
            arguments, environment = json.dumps(asked | {"start": time.time()}), os.environ | shown
            processes.append(
                Popen([*command, arguments], env=environment, stdout=PIPE, stderr=PIPE, encoding="utf-8", errors="replace")
            )
        try:
            answers = [process.communicate(timeout=GIVE_UP_SECONDS) for process in processes]
        except TimeoutExpired:
            late = f"not one step of batch {batches[-1]} in {GIVE_UP_SECONDS:g} s"
            raise RunError(f"{late}: the model is too large for {device}") from None
        finally:
            for process in processes:
                process.kill()
    for process, (_, errors) in zip(processes, answers, strict=True):
        if process.returncode:
            raise RunError(f"a training can't begin: {errors.strip().splitlines()[-1] if errors.strip() else 'killed'}")
    found = [json.loads(output) for output, _ in answers]
    steps = {batch: statistics.fmean(one.pop(str(batch // sharing)) for one in found) for batch in batches}
    mean = {name: statistics.fmean(one[name] for one in found) for name in found[0]}
    mean["evaluation"] /= sharing
    tokens, rows = search.report_tokens, []
    for batch, step in steps.items():
        timed, count = bool(search.training.budget_seconds), tokens / (batch * search.training.max_len)
        rows.append((tokens, count, (tokens / 1000 if timed else count * step) + mean["evaluation"]))
    return StepTimings(fit_throughput(rows, per_segment=mean.pop("segment")), steps, **mean)


def check_budget_seconds(search: BuiltinSearch, resources: Resources) -> None:
    """Raises InputError where the baseline with the largest batch makes fewer steps in --budget_seconds than reports."""
    batch, step = max(time_steps(search, resources, AUTO_SECONDS).steps.items())
    seconds = search.options.budget_seconds or math.inf
    if step * TIMED_REPORTS > seconds:
        raise InputError(
            f"--budget_seconds is {seconds:g} s, and a step with a batch of {batch} takes {step:.3g} s here: fewer steps "
            f"than its {TIMED_REPORTS} reports; give {step * TIMED_REPORTS:.2g} s or more, or smaller batches "
            "(--choices batch_size=...)"
        )


def forecast(search: BuiltinSearch, resources: Resources, events: Sequence[Event] = ()) -> str:
    """Tells in a few lines how the search, or its rest after `events`, will end. Times steps here, then simulates."""
    before = time.time() - psutil.Process().create_time()
    if is_finished(search, events):
        more = "time_budget" if search.options.time_budget else "num_samples"
        return f"  nothing is left to do; a larger --{more} goes on"
    timings = time_steps(search, resources)
    start, passed = min(before, MOST_IMPORT_SECONDS) + RAY_SECONDS + timings.ready, search_seconds(events)
    rest = simulate_rest(search, events, timings.throughput, resources.workers, start + passed, start)
    seconds = rest.seconds - passed + ENDING_SECONDS + (0.0 if sys.stdout.isatty() else REPORT_SECONDS)
    budget, runs = search.budget_tokens, Path(search.options.storage_path or RUNS_DIR)
    free = shutil.disk_usage(next(folder for folder in (runs, *runs.parents) if folder.exists())).free
    disk, memory = rest.checkpoints * timings.checkpoint + 2e6, timings.memory * resources.workers + DRIVER_BYTES
    steps = ", ".join(f"{1000 * step:,.3g} ms with a batch of {batch}" for batch, step in timings.steps.items())
    rungs = ", ".join(f"{share_text(tokens, budget)}: {count}" for tokens, count in rest.came.items())
    gpu = f"; {timings.device_memory / 1e9:,.1f} GB of a GPU for each" if timings.device_memory else ""
    rows = {
        "step": f"{steps}; {1000 * timings.evaluation:,.3g} ms an evaluation (here, {resources.workers} at once)",
        "trials": f"{rest.trials}, and {rest.replicates} replicates on other seeds",
        "rungs": f"trials that come to {rungs}",
        "audit": f"{rest.audits} of those left behind go on to the end after that, in about {duration(rest.audit_seconds)}",
        "tokens": f"{amount(rest.tokens)}, {rest.tokens / budget:,.1f} full trainings",
        "length": f"{rest.tokens / budget:,.1f} full trainings of {search.budget_text}",
        "time": f"about {duration(seconds)}",
        "disk": f"about {disk / 1e6:,.0f} MB; {free / 1e9:,.1f} GB are free",
        "memory": f"about {memory / 1e9:,.1f} GB, {timings.memory / 1e9:,.2f} for each at once{gpu}; "
        f"{psutil.virtual_memory().available / 1e9:,.1f} GB are free",
    }
    del rows["tokens" if search.training.budget_seconds else "length"]
    if not rest.audits:
        del rows["audit"]
    return "\n".join(f"  {name:9} {text}" for name, text in rows.items())


def _gpus(worker: int, each: float) -> str:
    """CUDA_VISIBLE_DEVICES of one worker: its share of the GPUs that the command itself may use."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = shown.split(",") if shown else [str(index) for index in range(len(gpu_names()))]
    first = int(worker * each + 1e-9)
    return ",".join(every[first : first + max(1, int(each))])


def measure(
    search: BuiltinSearch, batches: list[int], device: str, threads: int, seconds: float, start: float
) -> dict[str, Any]:
    """Times baseline trainings with batches of each of `batches` windows, for about `seconds` each, in a process started
    at `start` (seconds since 1970). Returns the fields of StepTimings, the seconds of a `segment`, and of a step by batch
    size.
    """
    import torch  # here: only processes that train need it

    from myllm.training.train import train
    from myllm.training.train_utils import load_state, save_state
    from tune.config.open_run import open_run

    torch.set_num_threads(threads)
    found: dict[str, Any] = {}
    evaluations = []
    for batch in batches:
        values = search.sample(0) | {"batch_size": batch}
        timed = min(batch, 2 * (search.train_config(values).micro_batch_size or batch))  # two micro-batches tell all
        untimed: dict[str, Any] = {"budget_seconds": None, "epochs": 1} if search.training.budget_seconds else {}
        opened = functools.partial(open_run, search, values, device, batch_size=timed, eval_freq=10**9, **untimed)
        run = opened()
        next(train(run, WARM_STEPS[device]))
        found.setdefault("ready", time.time() - start)
        count, took = 1, 0.0
        while took < seconds:
            before = run.train_seconds
            report = next(train(run, run.step + count))
            took = run.train_seconds - before
            step = run.config.tokens_per_step / report.tok_per_sec
            count *= 2
        evaluations.append(max(0.0, took - count // 2 * step))
        found[str(batch)] = step * batch / timed
        with tempfile.TemporaryDirectory() as folder:
            begin, path = time.monotonic(), Path(folder) / STATE_FILE
            save_state(run.state_dict(), path)
            del run
            run = opened()  # again, as a worker does that takes up a trial
            run.load_state_dict(load_state(path))
            next(train(run, run.step + 1))
            found["segment"] = max(0.0, time.monotonic() - begin - step - evaluations[-1])
            found["checkpoint"] = path.stat().st_size
        del run  # memory is measured for one training at a time
    on_gpu = device == "cuda"
    return found | {
        "evaluation": statistics.fmean(evaluations),
        "memory": peak_memory(),
        "device_memory": torch.cuda.max_memory_reserved() if on_gpu else 0,
        "device_total": torch.cuda.get_device_properties(0).total_memory if on_gpu else 0,
    }


@dataclass(frozen=True)
class ConcurrencyTrial:
    """The speed of a number of trials at once, as it was timed."""

    resources: Resources
    rate: float  # tokens a second of all together, the mean over the search's batch sizes
    fits: bool  # all of them into memory

    def __str__(self) -> str:
        cores, share = self.resources.cpus_per_trial, self.resources.gpus_per_trial
        each = f"{share:g} of a GPU" if share else f"{cores} core{'s' if cores > 1 else ''} each"
        speed = f"{self.rate:,.0f} tokens/s" if self.fits else "too little memory"
        return f"{self.resources.workers} at once with {each}: {speed}"


def time_concurrency(search: BuiltinSearch, resources: Resources) -> ConcurrencyTrial:
    """Times a few steps of `resources.workers` trainings at once. Raises RunError where one fails."""
    timings, workers, window = time_steps(search, resources, AUTO_SECONDS), resources.workers, search.training.max_len
    per_token = statistics.fmean(timings.throughput.seconds(1, batch * window) for batch in search.batch_sizes)
    fits = timings.memory * workers + DRIVER_BYTES <= psutil.virtual_memory().available
    fits_gpu = timings.device_memory * workers <= GPU_SHARE * timings.device_total  # both are 0 without a GPU
    return ConcurrencyTrial(resources, workers / per_token, fits and fits_gpu)


def choose(tried: Iterable[ConcurrencyTrial]) -> tuple[Resources, str]:
    """The best of `tried`, ordered by trials at once, and the reason in one line. More at once must be MIN_SPEEDUP times
    as fast; the first that is slower than the best, or does not fit, ends the search.
    """
    remaining = iter(tried)
    best = next(remaining)
    seen = [best]
    for one in remaining:
        seen.append(one)
        if not one.fits or one.rate < best.rate:
            break
        if one.rate > MIN_SPEEDUP * best.rate:
            best = one
    return best.resources, "; ".join(map(str, seen))


def candidates(cpus: int, gpus: int, most: int | None) -> list[Resources]:
    """The divisions to time, by trials at once, `most` at most: shares of one GPU, or of the cores where `gpus` is 0."""
    if gpus:
        counts = [count for count in (1, 2, 4, MOST_ON_A_GPU) if count == 1 or count * gpus <= min(cpus, most or cpus)]
        return [Resources(max(1, cpus // (count * gpus)), 1 if count == 1 else 1 / count, count) for count in counts]
    counts = [2**power for power in range(cpus.bit_length()) if 2**power < cpus] + [cpus]
    return [Resources(cpus // count, 0, count) for count in counts if count <= (most or cpus)]


def resolve_auto(
    search: BuiltinSearch,
    cpus: int,
    gpus: int,
    timed: Callable[[BuiltinSearch, Resources], ConcurrencyTrial] = time_concurrency,
) -> tuple[BuiltinSearch, str]:
    """The search with numbers in the place of `auto`, and a message with the timings. The message is empty without `auto`.

    Raises InputError on a cluster, whose machines can't be timed from here.
    """
    options = search.options
    asked = [name for name in PICKED if getattr(options, name) == AUTO]
    if not asked:
        return search, ""
    if options.address is not None:
        where = f"times steps on this machine, not on the cluster {options.address}"
        raise InputError(f"--{asked[0]} auto {where}; give a number")
    if options.gpus_per_trial == AUTO and not gpus:
        search, message = _with(search, {"gpus_per_trial": 0}, "no GPU here, so trials train on the cores")
        search, more = resolve_auto(search, cpus, 0, timed)
        return search, f"{message}\n{more}".strip()
    if gpus and options.gpus_per_trial not in (0, AUTO):
        return _with(search, {"cpus_per_trial": None}, "trials have GPUs, so an even share of the cores")
    divisions = candidates(cpus, gpus if options.gpus_per_trial == AUTO else 0, options.max_concurrent)
    resources, why = choose(timed(search, each) for each in divisions)
    return _with(search, {name: getattr(resources, name) for name in asked}, why)


def _with(search: BuiltinSearch, values: dict[str, Any], why: str) -> tuple[BuiltinSearch, str]:
    """The search with these settings, whose reason search.json keeps; and a message with both."""
    message = ", ".join(f"--{name} auto: {'unset' if value is None else f'{value:g}'}" for name, value in values.items())
    options, reasons = dataclasses.replace(search.options, **values), search.auto_resolved | dict.fromkeys(values, why)
    return dataclasses.replace(search, options=options, auto_resolved=reasons), f"{message} ({why})"


if __name__ == "__main__":
    asked_for = read_search(Path(sys.argv[1]))
    assert isinstance(asked_for, BuiltinSearch)
    print(json.dumps(measure(asked_for, **json.loads(sys.argv[2]))))
