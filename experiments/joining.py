"""What idle slots are worth that join the last training: a search with them beside one without.

    python experiments/joining.py                      # about 6 minutes on two quiet cores
    python experiments/joining.py --budget_tokens 4M   # longer trainings

Both searches train --trials configurations of space v2 to the end, on one core each. The last training has an idle core
beside it. Printed are, for each search:

  seconds      from the command to its end
  last         s from the last trial's beginning to its end
  pace         times as fast as in one slot, of the last trial's reports with more processes, evaluations included
  stop         s for which the trial stood still when it took the idle slot
  difference   largest relative difference of an end loss from the search in which nobody joins
"""

import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from myllm.system.errors import Parser, RunError, run_command
from myllm.text.format import parse_amount
from tune.core.events import Reported, TrialStarted
from tune.store.journal import read_journal

ROOT = Path(__file__).resolve().parent.parent


def search(folder: Path, processes: str, args: Any) -> dict[str, Any]:
    """Runs a search; returns its figures and the end loss of each trial. Raises RunError where it fails."""
    flags = ["--scheduler", "fifo", "--searcher", "random", "--replicate_best", "0", "--cpus_per_trial", "1"]
    flags += ["--num_samples", args.trials, "--budget_tokens", args.budget_tokens, "--preset", args.preset]
    flags += ["--processes_per_trial", processes, "--storage_path", folder, "--name", processes]
    begin = time.time()
    done = subprocess.run(
        [sys.executable, "tune/search.py", *map(str, flags)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    seconds = time.time() - begin
    if done.returncode:
        raise RunError(f"the search failed: {done.stderr[-500:]}")
    print(next((line for line in done.stdout.splitlines() if "_per_trial auto" in line), ""), flush=True)
    events = read_journal(folder / processes)
    reports = [event for event in events if isinstance(event, Reported)]
    last = max(event.trial_id for event in reports)
    own = [event for event in reports if event.trial_id == last]
    began = next(event.time for event in events if isinstance(event, TrialStarted) and event.trial_id == last)
    parts: dict[int, list[float]] = {}
    stop = 0.0
    for before, after in pairwise(own):
        trained = after.train_seconds - before.train_seconds
        parts.setdefault(after.processes, []).append(trained)
        if after.processes != before.processes:
            stop += after.time - before.time - trained
    alone, shared = (statistics.median(parts.get(count, [float("nan")])) for count in (1, max(parts)))
    return {
        "seconds": seconds,
        "last": own[-1].time - began,
        "pace": alone / shared,
        "stop": stop,
        "losses": {event.trial_id: event.val_loss for event in reports},
    }


def main() -> None:
    parser = Parser(prog="joining.py", description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=3, help="an odd number on two cores")
    parser.add_argument("--budget_tokens", type=parse_amount, default="1.5M", help="tokens of one training")
    parser.add_argument("--preset", default="nano", help="model shape")
    parser.add_argument("--rounds", type=int, default=1, help="pairs of searches")
    args = parser.parse_args()
    print("| joins | seconds | last | pace | stop | difference |\n|-|-|-|-|-|-|")
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(prefix="joining-", ignore_cleanup_errors=True) as folder:
            found = {processes: search(Path(folder), processes, args) for processes in ("1", "auto")}
        losses = found["1"]["losses"]
        for processes, one in found.items():
            apart = max(abs(one["losses"][trial] / loss - 1) for trial, loss in losses.items())
            figures = " | ".join(f"{one[name]:.2f}" for name in ("seconds", "last", "pace", "stop"))
            print(f"| {'yes' if processes == 'auto' else 'no'} | {figures} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    run_command(main)
