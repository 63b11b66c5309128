"""How far --dry_run is from the truth: forecast and wall time of five searches of different kinds, on an idle machine.

python experiments/forecast.py

Printed: seconds forecast, seconds that the command took, and their ratio, for each.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

from myllm.system.errors import Parser, run_command
from myllm.text.durations import parse_duration

ROOT = Path(__file__).resolve().parent.parent
SEARCHES = {
    "default": [],
    "asha, v1": ["--scheduler", "asha", "--space", "v1", "--num_samples", "24"],
    "fifo, one slot": ["--scheduler", "fifo", "--num_samples", "4", "--replicate_best", "0", "--max_concurrent", "1"],
    "two minutes": ["--time_budget", "2m"],
    "hyperband, short trainings": ["--scheduler", "hyperband", "--budget_tokens", "262144", "--num_samples", "20"],
}


def main() -> None:
    parser = Parser(prog="forecast.py", description="Compares --dry_run with the wall time of five searches.")
    parser.parse_args()
    print("| search | forecast, s | truth, s | ratio |\n|-|-|-|-|")
    for title, flags in SEARCHES.items():
        name = f"forecast-{time.time_ns()}"
        command = [sys.executable, "tune/search.py", *flags, "--name", name]
        told = subprocess.run([*command, "--dry_run"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
        forecast = parse_duration(re.search(r"\n  time +about ([^(\n]+)", told)[1])
        begin = time.monotonic()
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        truth = time.monotonic() - begin
        print(f"| {title} | {forecast:.0f} | {truth:.0f} | {forecast / truth:.2f} |", flush=True)


if __name__ == "__main__":
    run_command(main)
