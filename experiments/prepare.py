"""Speed and memory of preparing text: format, size, MB/s, peak memory, next to tiktoken alone.

    python experiments/prepare.py --megabytes 50 --rounds 3
    python experiments/prepare.py --megabytes 2000 --rounds 1 --formats txt jsonl parquet
    python experiments/prepare.py --megabytes 100 --rounds 1 --formats line.txt line.jsonl run.txt

Writes paragraphs of the built-in corpus, in random order, in each format into a temporary folder, prepares each with
`prepare` in a process of its own, and prints a Markdown table: bytes of text (not of the file) per second, and the peak
resident memory of that process. In `line` all is one document on one line, in `run` one character. What the speed is
compared with is `encode_ordinary_batch` on two threads, on the same documents and in the same run, before and after; it
keeps its ids as lists, and so gets at most --baseline_megabytes.
"""

import argparse
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

FORMATS = ("txt", "txt.gz", "jsonl", "jsonl.zst", "csv", "parquet", "arrow")
HARD = ("line.txt", "line.jsonl", "run.txt")
ROWS = 1000  # of a table written at once, as Hugging Face's datasets do
DOCUMENT_CHARS = 4000  # mean length
BASELINE_THREADS = 2


def documents(megabytes: float, seed: int = 0) -> Iterator[str]:
    """Texts of about DOCUMENT_CHARS characters: paragraphs of the built-in corpus in random order."""
    from myllm.datasets.builtin_corpus import corpus_text

    paragraphs = [part for part in re.split(r"\n\n+", corpus_text("train")) if part.strip()]
    rng, size = random.Random(seed), 0
    while size < megabytes * 1e6:
        text, wanted = "", rng.expovariate(1 / DOCUMENT_CHARS)
        while len(text) < wanted:
            text += rng.choice(paragraphs) + "\n\n"
        size += len(text.encode())
        yield text or "a\n"


def texts(kind: str, megabytes: float) -> Iterator[str]:
    """The documents of one format."""
    if kind.startswith("line"):
        yield " ".join("".join(documents(megabytes)).splitlines())
    elif kind.startswith("run"):
        yield "a" * int(megabytes * 1e6)
    else:
        yield from documents(megabytes)


def write(path: Path, kind: str, megabytes: float) -> int:
    """Writes the documents in one format; returns the bytes of their text."""
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    size, found = 0, texts(kind, megabytes)
    if kind in ("parquet", "arrow"):
        schema = pyarrow.schema([("text", pyarrow.string())])
        with (pyarrow.parquet.ParquetWriter if kind == "parquet" else pyarrow.ipc.new_stream)(str(path), schema) as writer:
            while block := list(itertools.islice(found, ROWS)):
                size += sum(len(text.encode()) for text in block)
                writer.write_table(pyarrow.table({"text": block}, schema))
        return size
    codec = {"gz": "gzip", "zst": "zstd"}.get(kind.split(".")[-1])
    with pyarrow.output_stream(str(path), compression=codec) as file:
        file.write(b"text\n" if kind == "csv" else b"")
        for text in found:
            size += len(text.encode())
            row = json.dumps({"text": text}) + "\n" if "jsonl" in kind else text
            file.write(('"' + text.replace('"', '""') + '"\n' if kind == "csv" else row).encode())
    return size


def prepare_one(path: str, tokenizer_name: str) -> None:
    """Prepares `path` in this process; prints seconds, tokens, and its peak resident memory in MiB."""
    from myllm.datasets.load_tokens import prepare
    from myllm.datasets.tokenizer import get_tokenizer
    from myllm.system.machine import peak_memory

    tokenizer = get_tokenizer(tokenizer_name)
    tokenizer.encode_ordinary("warm")
    start = time.perf_counter()
    tokens = prepare(path, "train", tokenizer_name, tokenizer, Path(path).parent / "cache")
    seconds = time.perf_counter() - start
    print(seconds, len(tokens), peak_memory() / 2**20)


def baseline(megabytes: float, tokenizer_name: str) -> float:
    """MB of text per second that tiktoken's encode_ordinary_batch reaches on two threads."""
    from myllm.datasets.tokenizer import get_tokenizer

    tokenizer = get_tokenizer(tokenizer_name)
    texts = list(documents(megabytes))
    size = sum(len(text.encode()) for text in texts)
    start = time.perf_counter()
    tokenizer.encode_ordinary_batch(texts, num_threads=BASELINE_THREADS)
    return size / 1e6 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=float, default=100, help="text of each format")
    parser.add_argument("--baseline_megabytes", type=float, default=50, help="of these, for tiktoken alone: it keeps lists")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS + HARD)
    parser.add_argument("--tokenizer", default="gpt2")
    parser.add_argument("--rounds", type=int, default=3, help="of all formats, interleaved; medians are printed")
    parser.add_argument("--file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.file:
        return prepare_one(args.file, args.tokenizer)
    small = min(args.megabytes, args.baseline_megabytes)
    speeds: dict[str, list[float]] = {"encode_ordinary_batch, 2 threads": []}
    peaks: dict[str, list[float]] = {}
    sizes: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder) / f"text.{kind}" for kind in args.formats}
        text_bytes = {kind: write(path, kind, args.megabytes) for kind, path in paths.items()}
        for _ in range(args.rounds):
            speeds["encode_ordinary_batch, 2 threads"].append(baseline(small, args.tokenizer))
            for kind, path in paths.items():
                command = [sys.executable, __file__, "--file", str(path), "--tokenizer", args.tokenizer]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                seconds, _, peak = map(float, output.split())
                speeds.setdefault(kind, []).append(text_bytes[kind] / 1e6 / seconds)
                peaks.setdefault(kind, []).append(peak)
                sizes[kind] = path.stat().st_size / 1e6
                for cached in (Path(folder) / "cache").iterdir():
                    cached.unlink()
            speeds["encode_ordinary_batch, 2 threads"].append(baseline(small, args.tokenizer))
    reference = statistics.median(speeds["encode_ordinary_batch, 2 threads"])
    print("| format | file, MB | text, MB | MB/s | of tiktoken's | peak memory, MiB |\n|-|-|-|-|-|-|")
    for kind, values in speeds.items():
        speed = statistics.median(values)
        file, text = (f"{sizes[kind]:,.0f}", f"{text_bytes[kind] / 1e6:,.0f}") if kind in sizes else ("", f"{small:,.0f}")
        peak = f"{max(peaks[kind]):,.0f}" if kind in peaks else ""
        print(f"| {kind} | {file} | {text} | {speed:.2f} | {speed / reference:.2f} | {peak} |", flush=True)


if __name__ == "__main__":
    main()
