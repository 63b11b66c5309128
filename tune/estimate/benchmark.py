"""Times a few real steps of a search on this machine, with as many processes at once as it will have.

python -m tune.estimate.benchmark FOLDER_WITH_SEARCH_JSON BATCH_SIZE,BATCH_SIZE DEVICE THREADS SECONDS
"""

import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from myllm.system.errors import RunError
from myllm.system.machine import gpu_names, peak_memory
from tune.config.resources import Resources
from tune.config.spec import RUNS_DIR, SearchSpec
from tune.core.clock import ENDING_SECONDS, search_seconds
from tune.core.events import Event
from tune.estimate.forecast import Throughput, fit_throughput, is_finished, simulate_rest
from tune.store.checkpoints import STATE_FILE
from tune.text.durations import duration
from tune.text.format import amount, share_text

TIMED_SECONDS = 1.0  # for each batch size
WARM_STEPS = {"cpu": 1, "cuda": 3}  # untimed: memory is allocated, code compiled, CUDA graphs captured
RAY_SECONDS = 1.0  # of a search's start, beside the start of a process that trains
REPORT_SECONDS = 3.0  # from the summary until all files are written; on a terminal the command does not wait for them
MOST_IMPORT_SECONDS = 20.0  # a command that is older has done more than start
DRIVER_BYTES = 1.2e9  # memory of the command and of Ray's own processes
GIVE_UP_SECONDS = 600.0  # for all timings together
BEGAN = "MYLLM_BENCHMARK_BEGAN"  # environment variable: when a process was started, in seconds since 1970


@dataclass(frozen=True)
class StepTimings:
    """The measurements of all processes: their mean."""

    throughput: Throughput
    steps: dict[int, float]
    """batch size -> seconds of an optimizer step"""
    evaluation: float
    """seconds"""
    memory: int
    """peak bytes of one process"""
    device_memory: int
    """peak bytes on its GPU; 0 without one"""
    device_total: int
    """bytes of its whole GPU"""
    checkpoint: int
    """bytes"""
    ready: float
    """seconds from the start of a process until it could train"""


def time_steps(search: SearchSpec, resources: Resources, seconds: float = TIMED_SECONDS) -> StepTimings:
    """Times the smallest and the largest batch, with all workers at once because they share the memory bus.

    Raises RunError with the reason where a training fails.
    """
    batches = search.batch_sizes
    chosen = ",".join(str(batch) for batch in sorted({min(batches), max(batches)}))
    device = "cuda" if resources.gpus_per_trial else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        search.write(Path(folder))
        command = [sys.executable, "-m", "tune.estimate.benchmark", folder, chosen, device]
        command += [str(resources.cpus_per_trial), str(seconds)]
        processes = []
        for worker in range(resources.workers):
            environment = os.environ | {BEGAN: str(time.time())}
            if resources.gpus_per_trial:
                environment["CUDA_VISIBLE_DEVICES"] = _gpus(worker, resources.gpus_per_trial)
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    encoding="utf-8",
                    errors="replace",
                )
            )
        try:
            answers = [process.communicate(timeout=GIVE_UP_SECONDS) for process in processes]
        except subprocess.TimeoutExpired:
            raise RunError(
                f"not one step of batch {max(batches)} in {GIVE_UP_SECONDS:g} s: the model is too large for {device}"
            ) from None
        finally:
            for process in processes:
                process.kill()
    for process, (_, errors) in zip(processes, answers, strict=True):
        if process.returncode:
            raise RunError(f"a training can't begin: {errors.strip().splitlines()[-1] if errors.strip() else 'killed'}")
    found = [json.loads(output) for output, _ in answers]

    def mean(name: str) -> float:
        return statistics.fmean(one[name] for one in found)

    steps = {int(batch): statistics.fmean(one["steps"][batch] for one in found) for batch in found[0]["steps"]}
    each = search.report_tokens
    rows = []
    for batch, step in steps.items():
        count = each / (batch * search.training.max_len)
        rows.append((each, count, count * step + mean("evaluation")))
    return StepTimings(
        throughput=fit_throughput(rows, per_segment=mean("segment")),
        steps=steps,
        evaluation=mean("evaluation"),
        memory=int(mean("memory")),
        device_memory=int(mean("device_memory")),
        device_total=found[0]["device_total"],
        checkpoint=found[0]["checkpoint"],
        ready=mean("ready"),
    )


def forecast(search: SearchSpec, resources: Resources, events: Iterable[Event] = ()) -> str:
    """Tells in a few lines how the search, or its rest after `events`, will end. Times steps here, then simulates."""
    before, events = time.time() - psutil.Process().create_time(), list(events)
    if is_finished(search, events):
        return (
            f"  nothing is left to do; a larger --{'time_budget' if search.options.time_budget else 'num_samples'} goes on"
        )
    timings = time_steps(search, resources)
    start = min(before, MOST_IMPORT_SECONDS) + RAY_SECONDS + timings.ready
    used = start + search_seconds(events)
    rest = simulate_rest(search, events, timings.throughput, resources.workers, used, start)
    seconds = rest.seconds - used + start + ENDING_SECONDS + (0.0 if sys.stdout.isatty() else REPORT_SECONDS)
    budget = search.budget_tokens
    disk, memory = rest.checkpoints * timings.checkpoint + 2e6, timings.memory * resources.workers + DRIVER_BYTES
    steps = ", ".join(f"{1000 * step:,.3g} ms with a batch of {batch}" for batch, step in timings.steps.items())
    rungs = ", ".join(f"{share_text(tokens, budget)}: {count}" for tokens, count in rest.came.items())
    gpu = f"; {timings.device_memory / 1e9:,.1f} GB of a GPU for each" if timings.device_memory else ""
    lines = [
        f"  step      {steps}; {1000 * timings.evaluation:,.3g} ms an evaluation (here, {resources.workers} at once)",
        f"  trials    {rest.trials}, and {rest.replicates} replicates on other seeds",
        f"  rungs     trials that come to {rungs}",
    ]
    if rest.audits:
        after = f"go on to the end after that, in about {duration(rest.audit_seconds)}"
        lines.append(f"  audit     {rest.audits} of those left behind {after}")
    lines += [
        f"  tokens    {amount(rest.tokens)}, {rest.tokens / budget:,.1f} full trainings",
        f"  time      about {duration(seconds)}",
        f"  disk      about {disk / 1e6:,.0f} MB; {free_bytes(search) / 1e9:,.1f} GB are free",
        f"  memory    about {memory / 1e9:,.1f} GB, {timings.memory / 1e9:,.2f} for each at once{gpu}; "
        f"{psutil.virtual_memory().available / 1e9:,.1f} GB are free",
    ]
    return "\n".join(lines)


def free_bytes(search: SearchSpec) -> int:
    """Free bytes on the disk of the runs' folder, or of its nearest parent that exists."""
    path = Path(search.options.storage_path or RUNS_DIR)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _gpus(worker: int, each: float) -> str:
    """CUDA_VISIBLE_DEVICES of one worker: its share of the GPUs that the command itself may use."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = shown.split(",") if shown else [str(index) for index in range(len(gpu_names()))]
    first = int(worker * each + 1e-9)
    return ",".join(every[first : first + max(1, int(each))])


def measure(search: SearchSpec, batches: list[int], device: str, threads: int, seconds: float) -> dict[str, Any]:
    """The measurements of one worker, as JSON holds them."""
    import torch  # here: only processes that train need it

    torch.set_num_threads(threads)
    steps, evaluations = {}, []
    for batch in batches:
        measured = measure_batch(search, batch, device, seconds)
        steps[batch] = measured["step"]
        evaluations.append(measured["evaluation"])
        if batch == batches[0]:
            ready = measured["ready"]
    return {
        "ready": ready - float(os.environ[BEGAN]),
        "steps": steps,
        "evaluation": sum(evaluations) / len(evaluations),
        "segment": measured["segment"],
        "checkpoint": int(measured["checkpoint"]),
        "memory": peak_memory(),
        "device_memory": torch.cuda.max_memory_reserved() if device == "cuda" else 0,
        "device_total": torch.cuda.get_device_properties(0).total_memory if device == "cuda" else 0,
    }


def measure_batch(search: SearchSpec, batch: int, device: str, seconds: float) -> dict[str, float]:
    """Times a baseline training with batches of `batch` windows for about `seconds`.

    Returns seconds (`step`, `evaluation`, `segment`), bytes (`checkpoint`), and when it was `ready`, in seconds since 1970.
    """
    from myllm.training.train import train
    from myllm.training.train_utils import load_state, save_state
    from tune.config.open_run import open_run

    hyper_parameters = search.sample(0) | {"batch_size": batch}
    timed = min(batch, 2 * (search.train_config(hyper_parameters).micro_batch_size or batch))  # two micro-batches tell all

    opened = functools.partial(open_run, search, hyper_parameters, device, batch_size=timed, eval_freq=10**9)
    run = opened()
    next(train(run, WARM_STEPS[device]))
    ready, count, took = time.time(), 1, 0.0
    while took < seconds:
        before = run.train_seconds
        report = next(train(run, run.step + count))
        took = run.train_seconds - before
        step = run.config.tokens_per_step / report.tok_per_sec
        count *= 2
    evaluation = max(0.0, took - count // 2 * step)
    with tempfile.TemporaryDirectory() as folder:
        begin, path = time.monotonic(), Path(folder) / STATE_FILE
        save_state(run.state_dict(), path)
        del run
        run = opened()  # again, as a worker does that takes up a trial
        run.load_state_dict(load_state(path))
        next(train(run, run.step + 1))
        segment, checkpoint = max(0.0, time.monotonic() - begin - step - evaluation), path.stat().st_size
    return {
        "step": step * batch / timed,
        "evaluation": evaluation,
        "segment": segment,
        "checkpoint": checkpoint,
        "ready": ready,
    }


def main() -> None:
    folder, batches, device, threads, seconds = sys.argv[1:]
    sizes = [int(batch) for batch in batches.split(",")]
    print(json.dumps(measure(SearchSpec.read(Path(folder)), sizes, device, int(threads), float(seconds))))


if __name__ == "__main__":
    main()
