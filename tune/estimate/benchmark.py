"""Times a few real steps of a search here, with as many processes at once as it will have, and forecasts its end.

python -m tune.estimate.benchmark FOLDER_WITH_SEARCH_JSON ARGUMENTS_OF_MEASURE_AS_JSON
"""

import dataclasses
import functools
import itertools
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen, TimeoutExpired
from typing import TYPE_CHECKING, Any

import psutil

from myllm.config import TIMED_REPORTS
from myllm.system.errors import InputError, RunError
from myllm.system.machine import LOOPBACK, gpu_names, peak_memory
from myllm.text.durations import duration
from myllm.text.format import amount, share_text
from tune.config.resolve import Resources
from tune.config.spec import RUNS_DIR, BuiltinSearch, read_search
from tune.core.clock import ENDING_SECONDS, search_seconds
from tune.core.events import Event
from tune.estimate.forecast import Throughput, fit_throughput, is_finished, simulate_rest
from tune.store.checkpoints import STATE_FILE

if TYPE_CHECKING:  # the driver imports this module, and needs no torch
    from myllm.training.parallel import ProcessGroup

TIMED_SECONDS = 1.0  # for each batch size
WARM_STEPS = {"cpu": 1, "cuda": 3}  # untimed: memory is allocated, code compiled, CUDA graphs captured
RAY_SECONDS = 1.0  # of a search's start, beside the start of a process that trains
REPORT_SECONDS = 3.0  # from the summary until all files are written; on a terminal the command does not wait for them
MOST_IMPORT_SECONDS = 20.0  # a command that is older has done more than start
DRIVER_BYTES = 1.2e9  # memory of the command and of Ray's own processes
GIVE_UP_SECONDS = 600.0  # for all timings together
AUTO_SECONDS = 0.5  # for each batch size, where `auto` chooses


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

    Where several processes share a training, they add up gradients; only batches that they can divide are timed.
    Raises RunError with the reason where a training fails.
    """
    sharing, gpus = resources.processes, resources.gpus_per_trial
    divided = [batch for batch in search.batch_sizes if batch % sharing == 0]
    batches, device, processes = sorted({min(divided), max(divided)}), "cuda" if gpus else "cpu", []
    with tempfile.TemporaryDirectory() as folder:
        search.write(Path(folder))
        command = [sys.executable, "-m", "tune.estimate.benchmark", folder]
        asked = {"batches": batches, "threads": resources.threads, "seconds": seconds, "size": sharing}
        for worker, rank in itertools.product(range(resources.workers), range(sharing)):
            shown = {"CUDA_VISIBLE_DEVICES": _gpus(worker, gpus)} if gpus else {}
            own = {"device": f"cuda:{rank}" if gpus and sharing > 1 else device, "rank": rank, "group": worker}
            arguments, environment = json.dumps(asked | own | {"start": time.time()}), os.environ | LOOPBACK | shown
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
            raise _why(errors)
    found = [json.loads(output) for output, _ in answers]
    steps = {batch: statistics.fmean(one.pop(str(batch)) for one in found) for batch in batches}
    mean = {name: statistics.fmean(one[name] for one in found) for name in found[0]}
    tokens, rows = search.report_tokens, []
    for batch, step in steps.items():
        timed, count = bool(search.training.budget_seconds), tokens / (batch * search.training.max_len)
        rows.append((tokens, count, (tokens / 1000 if timed else count * step) + mean["evaluation"]))
    return StepTimings(fit_throughput(rows, per_segment=mean.pop("segment")), steps, **mean)


def widest(search: BuiltinSearch, resources: Resources) -> int:
    """Returns the most slots that a trial of some batch size of the search can have; 1 where it can have no more."""
    for slots in range(resources.workers, 1, -1):
        if any(batch % (slots * resources.processes) == 0 for batch in search.batch_sizes):
            return slots
    return 1


def with_sharing(search: BuiltinSearch, resources: Resources, alone: Throughput) -> Throughput:
    """Returns the Throughput of a trial `alone` in one slot, with the time to share a step among several: timed here."""
    if (slots := widest(search, resources)) == 1 or not search.options.joins_idle_slots:
        return alone
    batch, step = max(time_steps(search, resources.times(slots), AUTO_SECONDS).steps.items())
    tokens = batch * search.training.max_len
    return dataclasses.replace(alone, per_shared_step=max(0.0, step - alone.seconds(tokens, tokens, slots)))


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
    throughput = with_sharing(search, resources, timings.throughput)
    start, passed = min(before, MOST_IMPORT_SECONDS) + RAY_SECONDS + timings.ready, search_seconds(events)
    rest = simulate_rest(search, events, throughput, resources.workers, start + passed, start)
    seconds = rest.seconds - passed + ENDING_SECONDS + (0.0 if sys.stdout.isatty() else REPORT_SECONDS)
    budget, runs = search.budget_tokens, Path(search.options.storage_path or RUNS_DIR)
    free = shutil.disk_usage(next(folder for folder in (runs, *runs.parents) if folder.exists())).free
    disk, at_once = rest.checkpoints * timings.checkpoint + 2e6, resources.workers * resources.processes
    memory = timings.memory * at_once + DRIVER_BYTES
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


def _why(errors: str) -> InputError | RunError:
    """The error of a process that could not time its steps, by what it wrote to standard error."""
    last = errors.strip().splitlines()[-1] if errors.strip() else "killed"
    _, is_input, fault = last.partition(f"{InputError.__module__}.{InputError.__name__}: ")
    return InputError(fault) if is_input else RunError(f"a training can't begin: {last}")


def _gpus(worker: int, each: float) -> str:
    """CUDA_VISIBLE_DEVICES of one worker: its share of the GPUs that the command itself may use."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = shown.split(",") if shown else [str(index) for index in range(len(gpu_names()))]
    first = int(worker * each + 1e-9)
    return ",".join(every[first : first + max(1, int(each))])


def measure_in_group(
    search: BuiltinSearch, folder: str, size: int, rank: int, group: int, **arguments: Any
) -> dict[str, Any]:
    """Returns what `measure` returns in process `rank` of the `size` processes of a group, which meet in `folder`."""
    from torch.distributed import FileStore  # type: ignore[attr-defined]  # torch names it in no __all__

    from myllm.training.parallel import SINGLE, join

    if size == 1:
        return measure(search, SINGLE, **arguments)
    with join(FileStore(f"{folder}/group-{group}", size), rank, size, arguments["device"]) as processes:
        return measure(search, processes, **arguments)


def measure(
    search: BuiltinSearch,
    group: "ProcessGroup",
    batches: list[int],
    device: str,
    threads: int,
    seconds: float,
    start: float,
) -> dict[str, Any]:
    """Times baseline trainings with batches of each of `batches` windows, for about `seconds` each, in a process of `group`
    that was started at `start` (seconds since 1970). Returns the fields of StepTimings, the seconds of a `segment`, and of
    a step by batch size.
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
        micro = search.train_config(values).micro_batch_size or batch
        timed = min(batch, 2 * micro * group.size)  # two micro-batches of each process tell all
        untimed: dict[str, Any] = {"budget_seconds": None, "epochs": 1} if search.training.budget_seconds else {}
        opened = functools.partial(open_run, search, values, device, group, batch_size=timed, eval_freq=10**9, **untimed)
        run = opened()
        next(train(run, WARM_STEPS[run.device.type]))
        found.setdefault("ready", time.time() - start)
        count, took = 1, 0.0
        while took < seconds:
            before = run.train_seconds
            report = next(train(run, run.step + count))
            took = group.that_of_first(run.train_seconds - before)
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
    on_gpu = device != "cpu"
    return found | {
        "evaluation": statistics.fmean(evaluations),
        "memory": peak_memory(),
        "device_memory": torch.cuda.max_memory_reserved() if on_gpu else 0,
        "device_total": torch.cuda.get_device_properties(device).total_memory if on_gpu else 0,
    }


if __name__ == "__main__":
    asked_for = read_search(Path(sys.argv[1]))
    assert isinstance(asked_for, BuiltinSearch)
    print(json.dumps(measure_in_group(asked_for, sys.argv[1], **json.loads(sys.argv[2]))))
