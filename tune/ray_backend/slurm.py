"""Writes the batch file that runs a search on a Slurm cluster, and continues it after a time limit or a lost node."""

import os
import shlex
import sys
from pathlib import Path

from myllm.system.errors import InputError
from myllm.system.files import ROOT, check_writable

ENDING_SECONDS = 300
"""time before the job's limit at which the search is told to end: a report and its checkpoint fit in"""
MARGIN_SECONDS = 900
"""time of a job beside --time_budget: Ray's start, the summary, and ENDING_SECONDS"""
SEARCH = (sys.executable, str(ROOT / "tune" / "search.py"))
BATCH_FILE = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output={output}
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
{time}#SBATCH --requeue
#SBATCH --signal=B:USR1@{ending}
# Nodes, GPUs and partition belong beside sbatch or here, for example: sbatch --nodes 4 --gpus-per-node 8 {file}
# The job starts anew after a lost node, and before its time limit is reached, until the search has ended.

cd {folder} || exit 1
if [ -f {run}/search.json ]; then
    search=({again})
else
    search=({first})
fi

all_there='import sys, time, ray
end = time.time() + 600
while not ray.is_initialized() or sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[2]):
    if time.time() > end:
        sys.exit("error: after ten minutes not all nodes have joined the Ray cluster")
    time.sleep(1)
    try:
        ray.init(sys.argv[1], log_to_driver=False, logging_level=50, ignore_reinit_error=True)
    except ConnectionError:
        pass'
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then  # one Ray cluster over all nodes, which only this job can join
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0
    RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')
    port=$((20000 + SLURM_JOB_ID % 10000))
    address=$(hostname):$port
    {ray} start --head --port "$port" --num-cpus "$SLURM_CPUS_ON_NODE" --include-dashboard=false --block &
    others=$((SLURM_JOB_NUM_NODES - 1))
    srun --overlap --nodes="$others" --ntasks="$others" --exclude="$SLURMD_NODENAME" \\
        bash -c '{ray} start --address "$0" --num-cpus "$SLURM_CPUS_ON_NODE" --block' "$address" &
    {python} -c "$all_there" "$address" "$SLURM_JOB_NUM_NODES" || exit 1
    search+=(--address "$address")
fi

requeue=
"${{search[@]}}" &
trap 'requeue=1; kill -TERM $!' USR1
code=
while [ -z "$code" ]; do
    wait $!
    code=$?
    kill -0 $! 2>/dev/null && code=  # a signal ended the wait, not the search
done
kill $(jobs -p) 2>/dev/null  # Ray's head and workers
if [ -n "$requeue" ] && [[ "$code" =~ ^(130|143)$ ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def write_batch_file(file: str, run_dir: Path, time_budget: float | None) -> str:
    """Writes the batch file of the search that this command line describes; returns a line that says how to submit it.

    The time limit is `time_budget` (seconds) and MARGIN_SECONDS; without a budget it is the partition's. Raises InputError
    where the file exists or can't be written.
    """
    path = Path(file)
    if path.exists():
        raise InputError(f"--slurm {file} exists; choose another name, or submit it: sbatch {file}")
    check_writable(file, "--slurm")
    words = _without("--slurm", sys.argv[1:])
    if "--resume" not in words and not any(word.split("=")[0] == "--name" for word in words):
        words += ["--name", run_dir.name]
    minutes = None if time_budget is None else -(-round(time_budget + MARGIN_SECONDS) // 60)
    run_dir.parent.mkdir(parents=True, exist_ok=True)  # Slurm writes the job's output there
    path.write_text(
        BATCH_FILE.format(
            name=run_dir.name,
            output=run_dir.with_name(f"{run_dir.name}.slurm.log"),
            time="" if minutes is None else f"#SBATCH --time={minutes}\n",
            ending=ENDING_SECONDS,
            file=path.name,
            folder=shlex.quote(os.getcwd()),
            run=shlex.quote(str(run_dir)),
            again=shlex.join([*SEARCH, "--resume", str(run_dir)]),
            first=shlex.join([*SEARCH, *words]),
            ray=f"{shlex.quote(sys.executable)} -m ray.scripts.scripts",
            python=shlex.quote(sys.executable),
        )
    )
    return f"wrote {file}; submit it with: sbatch {shlex.quote(file)}"


def _without(flag: str, words: list[str]) -> list[str]:
    """Returns `words` without `flag` and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word.split("=")[0] != flag:
            kept.append(word)
        skip = word == flag and not skip
    return kept
