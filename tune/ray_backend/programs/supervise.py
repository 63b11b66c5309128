"""Runs a command in a session of its own, and ends all of it when this process' standard input closes.

python supervise.py SECONDS WORD... . The worker that starts this process holds the other end of standard input. So the
command ends with its worker, however that ends: SIGTERM first, SIGKILL after SECONDS. Processes that the command leaves
behind are killed.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

SUPERVISOR = Path(__file__)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # Linux, prctl(2)


def prctl(option: int, value: int) -> None:
    """Asks the kernel for `option` of this process; nothing happens on another system than Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def kill_all() -> None:
    """Kills what is left of the command: on Linux also processes whose parents have ended."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def main() -> int:
    """Returns the command's exit code; a signal that ended the command ends this process, too."""
    seconds, command = float(sys.argv[1]), sys.argv[2:]
    prctl(PR_SET_CHILD_SUBREAPER, 1)

    def die_with_parent() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    program = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent)

    def stop() -> None:
        while os.read(0, 1):  # not sys.stdin, whose lock a thread would hold when the process ends
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(seconds)
        kill_all()

    threading.Thread(target=stop, daemon=True).start()
    code = program.wait()
    kill_all()
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main())
