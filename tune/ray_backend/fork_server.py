"""Workers in a moment: one process imports what all of them need, and each worker is forked from it.

A worker of Ray's takes four seconds of a core to import Ray, torch and the training. Here that is done once a search, while
Ray itself starts, and the memory that it takes is shared. Ray runs this file instead of its worker's own; what can't be
forked, as on a Mac, or once the nursery is gone, becomes a worker in the usual way.
"""

import array
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

ADDRESS, WORKER = "MYLLM_NURSERY", "MYLLM_RAY_WORKER"
"""variables that tell workers where the nursery listens, and which file of Ray's makes a process a worker"""
FIRST_JOB = "01000000"
"""what Ray calls the first driver of a cluster"""
FIXED = ("RAY_JOB_ID", "RAY_RAYLET_PID")
"""variables that Ray reads once, when it is imported"""
BEFORE_RAY = ("pandas", "pyarrow.fs", "myllm.training.train_utils", "myllm.training.train")
MODULES = ("ray.tune", "tune.ray_backend.trainable", "tune.config.open_run")
LONGEST = 2**20  # bytes that are received at once


class Nursery:
    """The process that workers are forked from; it ends with `close`, and with the process that made it."""

    def __init__(self, root: Path):
        self.folder = tempfile.mkdtemp(prefix="nursery-")  # of this user alone
        os.environ[ADDRESS] = f"{self.folder}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            try:
                listener.bind(os.environ[ADDRESS])
            except OSError:  # too long a name
                self.forget()
                raise
            listener.listen(1024)
            path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(listener.fileno())],
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},  # no thread of it would survive a fork
                stdin=subprocess.PIPE,  # closed when this process ends, however it does
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C is not meant for it
            )

    def raylet_is(self, pid: int) -> None:
        """Tells it the process that starts Ray's workers, and this process' environment, with which they will run."""
        environment = dict(os.environ) | dict(zip(FIXED, (FIRST_JOB, str(pid)), strict=True))
        with contextlib.suppress(OSError):  # it is gone: workers start in the usual way
            self.process.stdin.write(json.dumps(environment).encode() + b"\n")
            self.process.stdin.flush()

    def close(self) -> None:
        """Ends it; what was forked lives on. A second time does nothing."""
        self.forget()
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(OSError):  # of what it did not read any more
            self.process.stdin.close()

    def forget(self) -> None:
        """Takes its address away."""
        os.environ.pop(ADDRESS, None)
        shutil.rmtree(self.folder, ignore_errors=True)


def serve(listener: socket.socket) -> None:
    """Forks whom `listener` asks for, until stdin ends. Ray is imported once its variables are known."""
    sys.path.pop(0)  # the folder of this file
    gc.disable()  # to look for garbage among what is imported takes a tenth of the time
    for module in BEFORE_RAY:
        importlib.import_module(module)
    environment = sys.stdin.buffer.readline()
    if not environment:
        return
    os.environ.update(json.loads(environment))
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()  # what is never looked at again stays shared
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    while True:
        ready = select.select([listener, 0], [], [])[0]
        if 0 in ready:
            return
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError, ValueError, IndexError):  # who asked is gone
            text, data, _, _ = connection.recvmsg(LONGEST, socket.CMSG_SPACE(3 * array.array("i").itemsize))
            streams = array.array("i", data[0][2]).tolist()
            while not text.endswith(b"\n"):
                text += connection.recv(LONGEST) or b"\n"
            request = json.loads(text)
            fits = all(request["environment"].get(name) == os.environ[name] for name in FIXED)
            if fits and os.fork() == 0:
                listener.close()
                become(request, streams)
            for stream in streams:
                os.close(stream)
            if fits:
                connection.sendall(b"forked")


def become(request: dict, streams: list[int]) -> None:
    """Turns a forked process into the worker that was asked for; does not return."""
    code = 1
    try:
        os.setpgid(0, 0)  # Ray signals the group of a worker
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv = [request["environment"][WORKER], *request["arguments"]]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def ask() -> None:
    """Has the nursery fork what this process was to be; returns where it can't."""
    with contextlib.suppress(OSError, KeyError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[ADDRESS])
        request = {"arguments": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd()}
        text, streams = json.dumps(request).encode() + b"\n", array.array("i", [0, 1, 2])
        sent = connection.sendmsg([text], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        connection.sendall(text[sent:])
        if connection.recv(LONGEST):
            os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].isdigit():
        try:
            serve(socket.socket(fileno=int(sys.argv[1])))
        finally:  # who made it is gone
            shutil.rmtree(os.path.dirname(os.environ[ADDRESS]), ignore_errors=True)
    else:
        ask()
        os.execv(sys.executable, [sys.executable, os.environ[WORKER], *sys.argv[1:]])
