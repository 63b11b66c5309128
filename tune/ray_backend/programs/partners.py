"""The other processes of a training that several GPUs, or several CPU processes, share.

Ray's worker is process 0. It starts the others, which train in step with it and report nothing. They serve its next
trials as well, so that they import torch once.

python -m tune.ray_backend.programs.partners RANK PROCESSES  trains each pickled Job until its standard input ends
"""

import contextlib
import gc
import importlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myllm.system.machine import LOOPBACK
from tune.config.spec import BuiltinSearch
from tune.ray_backend.start import python_path

if TYPE_CHECKING:  # the driver imports this module, and needs no torch
    from myllm.training.parallel import ProcessGroup

STOP, GO = 0.0, 1.0
"""what process 0 tells the others at each report"""


@dataclass(frozen=True)
class Job:
    """What the processes of a training train."""

    search: BuiltinSearch
    settings: dict[str, Any]
    """the trial's hyper-parameters"""
    store: str
    """the file in which the processes meet"""
    state_file: Path | None
    """the training state to go on from, or None"""
    threads: int
    """torch threads of each process"""
    gpu: bool
    """True: process k trains on the k-th GPU that Ray gave to the trial"""

    def device(self, rank: int) -> str:
        """Returns the device of process `rank`."""
        return f"cuda:{rank}" if self.gpu else "cpu"


others: list[subprocess.Popen[bytes]] = []
"""the other processes of this worker, which wait for their next Job while no training shares them"""


@contextlib.contextmanager
def partners(job: Job, processes: int) -> Iterator["ProcessGroup"]:
    """Lets the other processes of a training train for as long as the block lasts; process 0 trains within it.

    The block ends without an error where all have come to the end or taken the same `stop`. After an error the others
    are ended. Where one of them ends early, this process ends as well: Ray then starts the trial again from its last
    checkpoint, as after every lost worker.
    """
    from myllm.training.parallel import SINGLE, is_lost_process, join

    if processes == 1:
        yield SINGLE
        return
    from torch.distributed import FileStore  # type: ignore[attr-defined]  # torch names it in no __all__

    start(processes)
    over, alike = threading.Event(), False
    threading.Thread(target=_watch, args=(over,), daemon=True).start()
    try:
        for process in others:
            assert process.stdin
            pickle.dump(job, process.stdin)
            process.stdin.flush()
        with join(FileStore(job.store, processes), 0, processes, job.device(0)) as group:
            yield group
        alike = True
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        os._exit(1)
    finally:
        over.set()
        if not alike:
            _end()


def start(processes: int) -> None:
    """Starts the other processes, unless they wait already. They import torch while this process does."""
    if len(others) == processes - 1 and all(process.poll() is None for process in others):
        return
    _end()
    os.environ.update(LOOPBACK)
    environment = os.environ | {"PYTHONPATH": python_path()}  # on a cluster's machine as well
    command = [sys.executable, "-m", "tune.ray_backend.programs.partners"]
    for rank in range(1, processes):
        others.append(subprocess.Popen([*command, str(rank), str(processes)], stdin=subprocess.PIPE, env=environment))


def _end() -> None:
    """Ends the other processes."""
    for process in others:
        process.kill()
    while others:
        others.pop().wait()


def _watch(over: threading.Event) -> None:
    """Ends this process where another has ended before the training is over: process 0 may wait for it for ever."""
    while not over.wait(0.2):
        if any(process.poll() is not None for process in others):
            time.sleep(1)  # process 0 may be about to say what is wrong
            if not over.is_set():
                os._exit(1)


def main() -> None:
    """Trains in step with process 0, one Job after the other, until process 0 ends this process or is gone itself."""
    importlib.import_module("tune.config.open_run")  # and torch, while process 0 does so as well
    jobs: queue.Queue[Job] = queue.Queue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    rank, processes = map(int, sys.argv[1:])
    while True:
        _train(jobs.get(), rank, processes)


def _train(job: Job, rank: int, processes: int) -> None:
    """Trains as process `rank` until the training ends, or process 0 says at a report that it stops."""
    import torch
    from torch.distributed import FileStore  # type: ignore[attr-defined]  # as above

    from myllm.training.parallel import join
    from myllm.training.train import train
    from myllm.training.train_utils import load_state
    from tune.config.open_run import open_run

    torch.set_num_threads(job.threads)
    with join(FileStore(job.store, processes), rank, processes, job.device(rank)) as group:
        run = open_run(job.search, job.settings, job.device(rank), group)
        if job.state_file:
            run.load_state_dict(load_state(job.state_file))
        for _ in train(run):
            if not group.that_of_first(STOP):
                break
    del run
    gc.collect()
    if job.gpu:
        torch.cuda.empty_cache()


def _read(jobs: "queue.Queue[Job]") -> None:
    """Puts each Job of the pipe into `jobs`. Ends this process once process 0 has closed the pipe, whatever ended it."""
    try:
        while True:
            jobs.put(pickle.load(sys.stdin.buffer))
    finally:
        os._exit(0)


if __name__ == "__main__":
    main()
