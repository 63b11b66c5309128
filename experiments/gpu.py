"""What training reaches on this machine's GPU, in one table. Under 9 minutes on an H100; --tiny runs it anywhere.

    python experiments/gpu.py
    python experiments/gpu.py --tiny --parts equality steps

Parts: equality (of the curve on the GPU with that on the CPU), steps (tokens a second, MFU, memory, and what waiting for
data costs), packing (processes that share the GPU), fused (runs trained as one). MFU counts 6 operations a parameter and
token, and 12 n_layer n_embd max_len for attention (arXiv 2204.02311, appendix B), of the dense bfloat16 peak.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from fused import FusedRuns

from myllm.config import GPTConfig, TrainConfig
from myllm.datasets.token_file import TokenFile
from myllm.datasets.windows import Windows
from myllm.presets import PRESETS
from myllm.training.run import Run
from myllm.training.train import train

PARTS = ("equality", "steps", "packing", "fused")
PEAK = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, by the data sheets
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=256)
SMALL = GPTConfig(n_layer=6, n_head=6, n_embd=240, block_size=256, vocab_size=256)  # 4.2M parameters


def random_windows(folder: Path, vocab_size: int, max_len: int, tokens: int) -> Windows:
    """Windows over ids whose next is one of two."""
    path = folder / f"{vocab_size}-{tokens}.bin"
    if not path.exists():
        steps = np.random.default_rng(0).integers(1, 3, tokens)
        (np.cumsum(steps) % vocab_size).astype("<u2").tofile(path)
    return Windows(TokenFile(path), max_len, max_len)


def make_run(folder: Path, shape: GPTConfig, batch_size: int, device: str, steps: int, **changes) -> Run:
    """A run of `steps` optimizer steps with a report every third of them."""
    config = TrainConfig(
        **dict(
            learning_rate=1e-3,
            batch_size=batch_size,
            max_len=shape.block_size,
            stride=shape.block_size,
            budget_tokens=steps * batch_size * shape.block_size,
            eval_freq=max(1, steps // 3),
            eval_windows=8,
        )
        | changes
    )
    windows = random_windows(folder, shape.vocab_size, shape.block_size, 4 * batch_size * shape.block_size + 1)
    return Run(shape, config, windows, windows, device)


def speed(run: Run) -> float:
    """Tokens a second of training, by the median of the run's last two reports."""
    return statistics.median(report.tok_per_sec for report in list(train(run))[1:])


def mfu(run: Run, tokens_per_second: float) -> str:
    if run.device.type != "cuda":
        return "-"
    peak = next((peak for name, peak in PEAK.items() if name in torch.cuda.get_device_name()), None)
    shape = run.model.config
    operations = (
        6 * sum(parameter.numel() for parameter in run.parameters) + 12 * shape.n_layer * shape.n_embd * shape.block_size
    )
    return f"{tokens_per_second * operations / peak:.1%}" if peak else "-"


def equality(folder: Path, device: str, tiny: bool) -> Iterator[tuple]:
    """The largest difference of a seeded curve from the CPU's."""
    curves = {}
    for where, changes in {
        "cpu": {},
        "float32": {"dtype": "float32", "float32_matmul": "float32"},
        "tf32": {"dtype": "float32"},
        "bfloat16": {"dtype": "bfloat16"},
        "compiled float32": {"dtype": "float32", "float32_matmul": "float32", "compile": "on"},
    }.items():
        run = make_run(folder, TINY, 8, "cpu" if where == "cpu" else device, 60, **changes)
        curves[where] = [report.val_loss for report in train(run)]
    for where, curve in curves.items():
        yield where, f"{max(abs(a - b) for a, b in zip(curve, curves['cpu'], strict=True)):.1e} nats"


def steps(folder: Path, device: str, tiny: bool) -> Iterator[tuple]:
    """A row a shape, batch size and way to run it."""
    sizes = [("tiny", TINY, 4, 9, None), ("tiny", TINY, 4, 9, 4)]
    if not tiny:
        mini, gpt2 = PRESETS["mini"].model(256), PRESETS["gpt2"].model(50257)
        sizes = [("mini", mini, size, 150, None) for size in (16, 64)]
        sizes += [("gpt2", gpt2, size, 36, size) for size in (16, 32)]  # the preset sets a micro-batch: fixed shapes
    for name, shape, batch_size, count, micro_batch_size in sizes:
        for way in ("launched", "recorded", "recorded, one batch", "compiled"):
            if batch_size > 16 and way.endswith("one batch"):
                continue  # what waiting for data costs, small batches show
            changes = {"compile": "on" if way == "compiled" else "off", "micro_batch_size": micro_batch_size}
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            run = make_run(folder, shape, batch_size, device, count, **changes)
            if way == "launched" and run.recorder:
                run.recorder.records = run.update_recorder.records = False
            if way == "recorded, one batch":
                batch = run.stream.next()
                run.stream.next = lambda batch=batch: batch
            start = time.perf_counter()
            rate = speed(run)
            seconds = time.perf_counter() - start - count * run.config.tokens_per_step / rate
            memory = f"{torch.cuda.max_memory_reserved() / 2**30:.1f} GiB" if device == "cuda" else "-"
            yield (name, batch_size, way, f"{rate:,.0f} tok/s", mfu(run, rate), memory, f"{seconds:.0f} s besides")
            del run


def packing(folder: Path, device: str, tiny: bool) -> Iterator[tuple]:
    """Tokens a second of 1, 2, 4 and 8 processes on one GPU together."""
    for way in ("recorded", "compiled"):
        for processes in (1, 2) if tiny else (1, 2, 4, 8):
            command = [sys.executable, __file__, "--worker", way, "--processes", str(processes)]
            children = [
                subprocess.Popen([*command, *["--tiny"] * tiny], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                for _ in range(processes)
            ]
            for child in children:
                child.stdout.readline()  # it is warm
            for child in children:
                child.stdin.write("go\n")
                child.stdin.flush()
            rates = [json.loads(child.stdout.readline()) for child in children]
            for child in children:
                child.wait()
            yield (way, f"{processes} processes", f"{sum(rates):,.0f} tok/s together")


def work(way: str, processes: int, tiny: bool, device: str) -> None:
    """One process of `packing`: warms up, waits for a word, trains for some seconds, prints its speed."""
    with tempfile.TemporaryDirectory() as folder:
        shape, seconds = (TINY, 0.5) if tiny else (SMALL, 6.0)
        if device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1 / processes)
        torch.set_num_threads(1)
        run = make_run(Path(folder), shape, 16, device, 10**6, eval_freq=50, compile="on" if way == "compiled" else "off")
        reports = train(run)
        next(reports)
        print("warm", flush=True)
        sys.stdin.readline()
        before, start = run.tokens_seen, time.perf_counter()
        while time.perf_counter() - start < seconds:
            next(reports)
        print((run.tokens_seen - before) / (time.perf_counter() - start), flush=True)


def fused(folder: Path, device: str, tiny: bool) -> Iterator[tuple]:
    """Tokens a second of K runs trained as one, together, against one run alone, recorded like they are, and compiled."""
    shape, count = (TINY, 9) if tiny else (SMALL, 150)
    for batch_size in (4,) if tiny else (16,):
        alone = speed(make_run(folder, shape, batch_size, device, count, compile="off"))
        compiled = speed(make_run(folder, shape, batch_size, device, count, compile="on"))
        yield (f"batch {batch_size}", "alone", f"{alone:,.0f} tok/s", f"compiled {compiled / alone:.2f} times")
        for k in (2,) if tiny else (4, 8, 16):
            runs = [make_run(folder, shape, batch_size, device, count, compile="off", seed=seed) for seed in range(k)]
            reports = [report for run, report in FusedRuns(runs).train() if run is runs[0]]
            rate = k * statistics.median(report.tok_per_sec for report in reports[1:])
            yield (f"batch {batch_size}", f"fused {k}", f"{rate:,.0f} tok/s", f"{rate / alone:.2f} times")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on whatever there is")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.worker:
        return work(args.worker, args.processes, args.tiny, device)
    if device == "cpu" and not args.tiny:
        parser.error("this machine has no GPU; --tiny tries the command without one")
    print(f"{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}, torch {torch.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts:
            start = time.perf_counter()
            print(f"\n{part}")
            for row in globals()[part](Path(folder), device, args.tiny):
                cells = [*row, f"{time.perf_counter() - start:.0f} s"]
                print("  " + "  ".join(f"{cell!s:<18}" for cell in cells).rstrip(), flush=True)


if __name__ == "__main__":
    main()
