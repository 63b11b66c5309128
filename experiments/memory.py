"""Peak memory of training from a large token file and from a small one.

    python experiments/memory.py --gigabytes 4 --steps 400

Writes the files into a temporary folder, trains preset nano on each in a process of its own, and prints the peak resident
memory of both, in MiB. Windows are drawn from the whole file.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np


def train_on(path: Path, steps: int) -> None:
    """Trains `steps` steps and prints this process's peak resident memory in MiB."""
    from myllm.datasets.load_tokens import prepare
    from myllm.datasets.tokenizer import get_tokenizer
    from myllm.datasets.windows import Windows
    from myllm.presets import get_preset
    from myllm.system.machine import peak_memory
    from myllm.training.train import Run, train

    preset, encoding = get_preset("nano"), get_tokenizer("byte")
    config = preset.training(budget_tokens=steps * preset.batch_size * preset.block_size, eval_freq=steps, stride=1)
    tokens = prepare(str(path), "train", "byte", encoding)
    windows = Windows(tokens, config.max_len, config.stride)
    list(train(Run(preset.model(encoding.n_vocab), config, windows, windows)))
    print(peak_memory() / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4, help="size of the large file")
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.file:
        return train_on(args.file, args.steps)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("small", 4e6), ("large", args.gigabytes * 1e9)):
            path = Path(folder) / f"{name}.bin"
            with open(path, "wb") as file:
                while file.tell() < size:
                    file.write(rng.integers(0, 256, 2_000_000, dtype=np.uint16).tobytes())
            path.with_suffix(".json").write_text('{"dtype": "<u2", "tokenizer": "byte"}')
            command = [sys.executable, __file__, "--file", str(path), "--steps", str(args.steps)]
            peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"{name}: {path.stat().st_size / 1e6:,.0f} MB file, peak {peak:,.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
