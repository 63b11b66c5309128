"""The other processes of a training that several GPUs, or several CPU processes, share.

Ray's worker is process 0. It starts the others, which train in step with it and report nothing.

python -m tune.ray_backend.programs.partners STORE RANK PROCESSES  trains a pickled Job until its standard input ends
"""

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.config.spec import BuiltinSearch
from tune.ray_backend.start import python_path

if TYPE_CHECKING:  # the driver imports this module, and needs no torch
    from myllm.training.parallel import ProcessGroup

LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
"""environment in which the processes, all on one machine, listen to no other machine"""


@dataclass(frozen=True)
class Job:
    """What the processes of a training train."""

    search: BuiltinSearch
    settings: dict[str, Any]
    """the trial's hyper-parameters"""
    state_file: Path | None
    """the training state to go on from, or None"""
    threads: int
    """torch threads of each process"""
    gpu: bool
    """True: process k trains on the k-th GPU that Ray gave to the trial"""

    def device(self, rank: int) -> str:
        """Returns the device of process `rank`."""
        return f"cuda:{rank}" if self.gpu else "cpu"


@contextlib.contextmanager
def partners(job: Job, processes: int) -> Iterator["ProcessGroup"]:
    """Starts the other processes of a training for as long as the block lasts; process 0 trains within it.

    Where one of them ends early, this process ends as well: Ray then starts the trial again from its last checkpoint, as
    after every lost worker.
    """
    from myllm.training.parallel import SINGLE, is_lost_process, join

    if processes == 1:
        yield SINGLE
        return
    from torch.distributed import FileStore  # type: ignore[attr-defined]  # torch names it in no __all__

    os.environ.update(LOOPBACK)
    environment = os.environ | {"PYTHONPATH": python_path()}  # on a cluster's machine as well
    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    place = str(Path(folder.name) / "store")
    command = [sys.executable, "-m", "tune.ray_backend.programs.partners", place]
    others = [
        subprocess.Popen([*command, str(rank), str(processes)], stdin=subprocess.PIPE, env=environment)
        for rank in range(1, processes)
    ]
    over = threading.Event()
    threading.Thread(target=_watch, args=(others, over), daemon=True).start()
    try:
        for process in others:
            assert process.stdin
            pickle.dump(job, process.stdin)
            process.stdin.flush()
        with join(FileStore(place, processes), 0, processes, job.device(0)) as group:
            yield group
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        os._exit(1)
    finally:
        over.set()
        for process in others:
            process.kill()
        for process in others:
            process.wait()
        folder.cleanup()


def _watch(others: list[subprocess.Popen[bytes]], over: threading.Event) -> None:
    """Ends this process where one of `others` has ended before the training is over: process 0 may wait for it for ever."""
    while not over.wait(0.2):
        if any(process.poll() is not None for process in others):
            time.sleep(1)  # process 0 may be about to say what is wrong
            if not over.is_set():
                os._exit(1)


def main() -> None:
    """Trains in step with process 0, until process 0 ends this process or is gone itself."""
    import torch
    from torch.distributed import FileStore  # type: ignore[attr-defined]  # as above

    from myllm.training.parallel import join
    from myllm.training.train import train
    from myllm.training.train_utils import load_state
    from tune.config.open_run import open_run

    place, rank, processes = sys.argv[1], *map(int, sys.argv[2:])
    job: Job = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_input, daemon=True).start()
    torch.set_num_threads(job.threads)
    with join(FileStore(place, processes), rank, processes, job.device(rank)) as group:
        run = open_run(job.search, job.settings, job.device(rank), group)
        if job.state_file:
            run.load_state_dict(load_state(job.state_file))
        for _ in train(run):
            pass
        threading.Event().wait()  # process 0 still saves


def _end_with_input() -> None:
    """Ends this process once process 0 has closed the pipe, whatever ended it."""
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main()
