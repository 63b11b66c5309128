"""Times a few real steps of a search on this machine, with as many processes at once as it will have.

python -m tune.estimate.benchmark FOLDER_WITH_SEARCH_JSON BATCH_SIZE,BATCH_SIZE DEVICE THREADS SECONDS
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from myllm.system.errors import RunError
from myllm.system.machine import gpu_names, peak_memory
from tune.config.resolve import Resources
from tune.config.spec import RUNS_DIR, SearchSpec
from tune.core.clock import search_seconds
from tune.core.trials import Event
from tune.estimate.forecast import Throughput, fit_pace, outlooks
from tune.text.durations import duration
from tune.text.format import amount, share_text

SECONDS = 1.0  # that each batch size is timed for
WARM_STEPS = {"cpu": 1, "cuda": 3}  # that are not: memory is taken, code compiled, on a GPU the steps are recorded
RAY_SECONDS, END_SECONDS = 1.0, 1.0  # beside a training process' own start, and from the last report to the summary
REPORT_SECONDS = 4.0  # until every file is written, which nobody waits for on a terminal
MOST_IMPORT_SECONDS = 20.0  # a process that is older does not only start
DRIVER_BYTES = 1.2e9  # of the command and Ray's own processes
PATIENCE = 600.0  # seconds after which a rehearsal is given up


@dataclass(frozen=True)
class StepTimings:
    """What the processes measured; the mean over them."""

    pace: Throughput
    steps: dict[int, float]
    """batch size -> seconds of an optimizer step"""
    evaluation: float
    """seconds"""
    memory: int
    """bytes of one process at its most"""
    device_memory: int
    """bytes of its GPU at its most; 0 without one"""
    device_total: int
    """bytes that its GPU has"""
    checkpoint: int
    """bytes"""
    ready: float
    """seconds from its start until a process could train"""


def time_steps(search: SearchSpec, resources: Resources, seconds: float = SECONDS) -> StepTimings:
    """Trains the smallest and the largest batch for a moment, on every slot at once: they share the machine's memory bus.

    Raises RunError where a training fails, with its reason.
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
            environment = os.environ | {"REHEARSAL_BEGAN": str(time.time())}
            if resources.gpus_per_trial:
                environment["CUDA_VISIBLE_DEVICES"] = _gpus(worker, resources.gpus_per_trial)
            processes.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
        try:
            answers = [process.communicate(timeout=PATIENCE) for process in processes]
        except subprocess.TimeoutExpired:
            raise RunError(
                f"not one step of batch {max(batches)} in {PATIENCE:g} s: the model is too large for {device}"
            ) from None
        finally:
            for process in processes:
                process.kill()
    for process, (_, errors) in zip(processes, answers, strict=True):
        if process.returncode:
            raise RunError(f"a training can't begin: {errors.strip().splitlines()[-1] if errors.strip() else 'killed'}")
    found = [json.loads(output) for output, _ in answers]

    def mean(name: str) -> float:
        return sum(one[name] for one in found) / len(found)

    steps = {int(batch): sum(one["steps"][batch] for one in found) / len(found) for batch in found[0]["steps"]}
    each = search.report_tokens
    rows = []
    for batch, step in steps.items():
        count = each / (batch * search.training.max_len)
        rows.append((each, count, count * step + mean("evaluation")))
    return StepTimings(
        pace=fit_pace(rows, per_segment=mean("segment")),
        steps=steps,
        evaluation=mean("evaluation"),
        memory=int(mean("memory")),
        device_memory=int(mean("device_memory")),
        device_total=found[0]["device_total"],
        checkpoint=found[0]["checkpoint"],
        ready=mean("ready"),
    )


def forecast(search: SearchSpec, resources: Resources, events: Iterable[Event] = ()) -> str:
    """What the search, or the rest of it after `events`, will take: timed here, then played on."""
    before, events = time.time() - psutil.Process().create_time(), list(events)
    found = time_steps(search, resources)
    start = min(before, MOST_IMPORT_SECONDS) + RAY_SECONDS + found.ready
    used = start + search_seconds(events)
    worlds = outlooks(search, events, found.pace, resources.workers, used, start)
    middle = worlds[len(worlds) // 2]
    around = start + END_SECONDS + (0.0 if sys.stdout.isatty() else REPORT_SECONDS)
    times = [duration(world.seconds - used + around) for world in (middle, worlds[0], worlds[-1])]
    budget, tokens = search.budget_tokens, middle.tokens
    disk, memory = middle.checkpoints * found.checkpoint + 2e6, found.memory * resources.workers + DRIVER_BYTES
    steps = ", ".join(f"{1000 * step:,.3g} ms with a batch of {batch}" for batch, step in found.steps.items())
    rungs = ", ".join(f"{share_text(mark, budget)}: {count}" for mark, count in middle.came.items())
    after = f"{middle.audits} of those left behind go on to the end after that, in about {duration(middle.audit_seconds)}"
    gpu = f"; {found.device_memory / 1e9:,.1f} GB of a GPU for each" if found.device_memory else ""
    return "\n".join(
        [
            f"  step      {steps}; {1000 * found.evaluation:,.3g} ms an evaluation (here, {resources.workers} at once)",
            f"  trials    {middle.trials}, and {middle.replicates} replicates on other seeds",
            f"  rungs     trials that come to {rungs}",
            *[f"  audit     {after}"] * bool(middle.audits),
            f"  tokens    {amount(tokens)}, {tokens / budget:,.1f} full trainings",
            f"  time      about {times[0]}" + (f" ({times[1]} to {times[2]})" if times[1] != times[2] else ""),
            f"  disk      about {disk / 1e6:,.0f} MB; {free_bytes(search) / 1e9:,.1f} GB are free",
            f"  memory    about {memory / 1e9:,.1f} GB, {found.memory / 1e9:,.2f} for each at once{gpu}; "
            f"{psutil.virtual_memory().available / 1e9:,.1f} GB are free",
        ]
    )


def free_bytes(search: SearchSpec) -> int:
    """Free on the disk that the runs lie on, as far as it is there."""
    path = Path(search.options.storage_path or RUNS_DIR)
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _gpus(worker: int, each: float) -> str:
    """The GPUs of one slot, as CUDA_VISIBLE_DEVICES names them, among those that the command itself may use."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = shown.split(",") if shown else [str(index) for index in range(len(gpu_names()))]
    first = int(worker * each + 1e-9)
    return ",".join(every[first : first + max(1, int(each))])


def measure(search: SearchSpec, batches: list[int], device: str, threads: int, seconds: float) -> dict:
    """What one slot measures, as JSON holds it."""
    import torch  # in the processes that train alone

    from myllm.training.train import train
    from myllm.training.train_utils import load_state, save_state
    from tune.config.open_run import open_run

    torch.set_num_threads(threads)
    reference = search.sample(0)
    steps, evaluations, found = {}, [], {}
    for batch in batches:
        config = search.train_config(reference | {"batch_size": batch})
        micro = config.micro_batch_size or batch
        timed = min(batch, 2 * micro)  # of many micro-batches two tell how long the others take
        opened = search, reference | {"batch_size": batch}, device
        changes = {"batch_size": timed, "eval_freq": 10**9}
        run = open_run(*opened, **changes)
        next(train(run, WARM_STEPS[device]))
        found.setdefault("ready", time.time() - float(os.environ["REHEARSAL_BEGAN"]))
        count, took = 1, 0.0
        while took < seconds:
            before = run.train_seconds
            report = next(train(run, run.step + count))
            took = run.train_seconds - before
            step = run.config.tokens_per_step / report.tok_per_sec
            count *= 2
        evaluation = max(0.0, took - count // 2 * step)
        evaluations.append(evaluation)
        steps[batch] = step * batch / timed
        with tempfile.TemporaryDirectory() as folder:
            begin, path = time.monotonic(), Path(folder) / "state.pt"
            save_state(run.state_dict(), path)
            del run
            run = open_run(*opened, **changes)  # and once more, as whoever takes up a trial does
            run.load_state_dict(load_state(path))
            next(train(run, run.step + 1))
            took = time.monotonic() - begin - step - evaluation
            found |= {"segment": max(0.0, took), "checkpoint": path.stat().st_size}
        del run
    device_memory = torch.cuda.max_memory_reserved() if device == "cuda" else 0
    device_total = torch.cuda.get_device_properties(0).total_memory if device == "cuda" else 0
    return found | {
        "steps": steps,
        "evaluation": sum(evaluations) / len(evaluations),
        "memory": peak_memory(),
        "device_memory": device_memory,
        "device_total": device_total,
    }


def main() -> None:
    folder, batches, device, threads, seconds = sys.argv[1:]
    found = measure(
        SearchSpec.read(Path(folder)), [int(b) for b in batches.split(",")], device, int(threads), float(seconds)
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
