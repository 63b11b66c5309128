"""Starts Ray in a thread while the driver still imports and reads, and ends it."""

import contextlib
import ipaddress
import logging
import math
import os
import secrets
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myllm.system.errors import InputError, RunError
from myllm.system.files import ROOT
from tune.ray_backend.cluster import AUTH_MODE

if TYPE_CHECKING:  # a search's first act is to make a RayRuntime
    from tune.config.options import SearchOptions
    from tune.config.resolve import Resources

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine unless the user sets Ray's own switch
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal holds what they would write
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # signals.py handles Ctrl-C
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # to leave a process; 2 are too few where cores are busy
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Ray's snapshots are never read back
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_prestart_worker_first_driver": "0",  # ray.init would wait for a worker, deaf to signals
    "RAY_raylet_client_connect_timeout_milliseconds": "20",  # of 1000: the store's socket often appears just after a look
    "RAY_raylet_client_num_connect_attempts": "500",  # 500 of 20 ms are Ray's own 10 s in all
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the run's folder has them, and a full disk no room for them in ray.log
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
OBJECT_STORE_BYTES = 128 * 2**20  # results and settings are small; every process maps all of it


class RayRuntime:
    """Ray on this machine, or a cluster that was joined. `stop` ends it whatever happened before."""

    def __init__(self) -> None:
        self.begun = time.time()  # when the search began, seconds since 1970
        self.address_info: dict[str, Any] = {}
        """what Ray says of the node that this process belongs to, once it has started"""
        self._plain: str | None = None  # why Ray was started without the patches of ray_compat
        self._thread: threading.Thread | None = None
        self._error: RunError | None = None
        self._started, self._over = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def before_the_search(self) -> Iterator[None]:
        """The time that passes within it is not the search's."""
        start = time.time()
        yield
        self.begun += time.time() - start

    def start(self, options: "SearchOptions", resources: "Resources") -> None:
        """Begins to start Ray, or to join a cluster. A second call does nothing."""
        if self._thread:
            return
        for name, value in ENVIRONMENT.items():  # of all of Ray's processes; the user's own values stay
            os.environ.setdefault(name, value)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(resources.workers)
        arguments: dict[str, Any] = dict(address=options.address or "local", log_to_driver=False, configure_logging=False)
        if options.address is None:
            if (
                AUTH_MODE not in os.environ
            ):  # without a token Ray leaves one in the user's home, which clusters then ask for
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            os.environ["RAY_TMPDIR"] = str(ray_folder().parent)  # Ray takes TMPDIR as it is, empty or gone
            arguments |= dict(
                num_cpus=resources.workers * resources.cpus_per_trial,
                num_gpus=math.ceil(resources.workers * resources.gpus_per_trial),
                include_dashboard=options.dashboard,
                object_store_memory=OBJECT_STORE_BYTES,
            )
            os.environ["PYTHONPATH"] = python_path()  # the same code in every process
            if shlex.quote(sys.executable) != sys.executable:  # Ray hands the path to a shell as it is
                arguments["runtime_env"] = {"py_executable": shlex.quote(sys.executable)}
        self._thread = threading.Thread(target=self._live, args=(arguments,), name="ray", daemon=True)
        self._thread.start()

    def _live(self, arguments: dict[str, Any]) -> None:
        """Starts Ray and stays: Linux ends Ray's processes together with the thread that started them."""
        start, logger = time.time(), logging.getLogger("ray")
        with contextlib.ExitStack() as stack:
            try:
                import ray

                from tune.ray_backend.ray_compat import patched

                self._plain = stack.enter_context(patched(arguments))
                logger.setLevel(logging.CRITICAL)  # nobody need know of Ray's start
                context: Any = ray.init(**arguments)
                logger.setLevel(logging.WARNING)  # warnings go to the run's ray.log
                self.address_info = dict(context.address_info)
                if arguments["address"] == "local":
                    check_loopback(self.address_info["node_ip_address"])
            except RunError as error:
                self._error = error
            except Exception as error:  # of many kinds, Exception itself among them; raised in wait_until_started
                from tune.ray_backend.watchdog import why_not_started

                self._error = RunError(f"Ray can't start: {why_not_started(error, start, ray_folder())}")
            self._started.set()
            self._over.wait()

    def wait_until_started(self) -> None:
        """Returns when Ray can be used. Raises RunError that says why Ray did not start."""
        self._started.wait()
        if self._error:
            raise self._error
        if self._plain:
            logging.getLogger("ray").warning("Ray is started as documented: %s", self._plain)

    def stop(self) -> None:
        """Ends Ray, also while it starts. A second call does nothing."""
        if self._thread:
            import ray

            self._started.wait()
            ray.shutdown()
            self._over.set()


def python_path() -> str:
    """This process' PYTHONPATH with the folder of this code first."""
    path = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return os.pathsep.join(dict.fromkeys(filter(None, path)))


def check_loopback(address: str) -> None:
    """Raises RunError where other machines can reach a Ray that listens on `address`."""
    if not ipaddress.ip_address(address).is_loopback:
        raise RunError(f"Ray listens on {address}, where other machines can reach it; import Ray after tune.ray_backend")


def ray_folder() -> Path:
    """Where Ray on this machine alone keeps its logs and sockets. Raises InputError where there is no such place."""
    usual = "/tmp" if sys.platform == "darwin" else None  # the Mac's own folder has too long a name for sockets
    try:
        return Path(os.path.realpath(os.environ.get("RAY_TMPDIR") or usual or tempfile.gettempdir())) / "ray"
    except FileNotFoundError:
        raise InputError("no folder for temporary files can be written, which Ray needs; set TMPDIR") from None
