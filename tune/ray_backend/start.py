"""Ray itself: started while the driver still imports and reads, without what no search needs, and ended at once.

Of the 15 s that a search took until its first report, Ray's start took 6: it waits for six helpers, each a Python process.
"""

import contextlib
import importlib
import logging
import math
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from myllm.system.errors import RunError
from myllm.system.files import ROOT
from tune.ray_backend.cluster import use_own_token
from tune.ray_backend.watchdog import ray_folder, why_not_started

if TYPE_CHECKING:  # a search's first act is to make an Engine
    from tune.config.options import SearchOptions
    from tune.config.resources import Resources

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing leaves the machine unless the user sets Ray's own switch
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the journal holds what they would write
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Interrupts is ours
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "60",  # to leave a process; 2 are too few where cores are busy
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",  # Ray's snapshots are never read back
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "PL_DISABLE_FORK": "1",  # as Tune has it in its workers
    "RAY_prestart_worker_first_driver": "0",  # ray.init would wait for it, deaf to signals
    "RAY_raylet_client_connect_timeout_milliseconds": "20",  # of 1000: every third node misses its own store's socket by a
    "RAY_raylet_client_num_connect_attempts": "500",  # hair, and looks again after so long; 10 s in all, as before
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "86400",
}
AGENTS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
RUNTIME_ENVS = ("RAY_RUNTIME_ENV_HOOK", "RAY_JOB_CONFIG_JSON_ENV_VAR")
"""variables by which others have Ray prepare what its workers run in"""
AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
OBJECT_STORE_BYTES = 128 * 2**20  # results and settings are small; every process maps all of it


class Engine:
    """Ray. `start` it, in a thread; `wait` before it is used; `stop` it whatever happened."""

    def __init__(self):
        self.begun = time.time()
        """when the search began, seconds since 1970"""
        self._thread: threading.Thread | None = None
        self._error: RunError | None = None
        self._started, self._over = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def before_the_search(self) -> Iterator[None]:
        """What goes on within it is not the search's time."""
        start = time.time()
        yield
        self.begun += time.time() - start

    def start(self, config: "SearchOptions", resources: "Resources") -> None:
        """Begins to start Ray, or to join a cluster. A second time does nothing."""
        if self._thread:
            return
        for name, value in ENVIRONMENT.items():  # of all of Ray's processes; what the user has set stays
            os.environ.setdefault(name, value)
        os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(resources.workers)
        options: dict[str, Any] = dict(address=config.address or "local", log_to_driver=False, configure_logging=False)
        if config.address is None:
            use_own_token()
            os.environ["RAY_TMPDIR"] = str(ray_folder().parent)  # Ray takes TMPDIR as it is, empty or gone
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read by Ray's other processes; for this one: _start
            options |= dict(
                num_cpus=resources.workers * resources.cpus_per_trial,
                num_gpus=math.ceil(resources.workers * resources.gpus_per_trial),
                include_dashboard=config.dashboard,
                object_store_memory=OBJECT_STORE_BYTES,
            )
            path = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
            os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, path)))  # the same code in every process
            if shlex.quote(sys.executable) != sys.executable:  # Ray hands it to a shell as it is
                options["runtime_env"] = {"py_executable": shlex.quote(sys.executable)}
        self._thread = threading.Thread(target=self._live, args=(options,), name="ray", daemon=True)
        self._thread.start()

    @property
    def was_started(self) -> bool:
        """Whether Ray was wanted."""
        return self._thread is not None

    def _live(self, options: dict[str, Any]) -> None:
        """Starts Ray and stays: Linux ends its processes together with the thread that started them."""
        start = time.time()
        with contextlib.ExitStack() as stack:
            try:
                agents = _agents_are_asked(options)
                self._start(options, agents)
                if not agents:
                    stack.enter_context(_no_runtime_env())
            except Exception as error:  # of many kinds, Exception itself among them; raised where it is waited for
                self._error = RunError(f"Ray can't start: {why_not_started(error, start)}")
            self._started.set()
            self._over.wait()

    def _start(self, options: dict[str, Any], agents: bool) -> None:
        import ray
        from ray.air._internal import usage as air_usage
        from ray.job_config import JobConfig

        # Ray prints what its processes die of, pages for each, told to print nothing or not; the journal has the reason.
        ray._private.worker.print_to_stdstream = lambda *data, **how: None
        ray._private.utils.get_entrypoint_name = lambda: "tune/search.py"  # of words that are no UTF-8 Ray can't make one
        rays = logging.getLogger("ray")
        with contextlib.ExitStack() as stack:
            if options["address"] == "local":
                # Ray listens on every network, also where it is given 127.0.0.1, unless it is told that clusters are not
                # wanted; this process has read the variable already.
                ray._private.ray_constants.ENABLE_RAY_CLUSTER = False
                # Below `uv run` it would pack the folder where the user stands, and have uv start every worker.
                ray._private.ray_constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False
                if not options["include_dashboard"]:
                    stack.enter_context(_few_processes())
                if not agents:
                    stack.enter_context(_no_agents())
            rays.setLevel(logging.CRITICAL)  # of its start nothing need be known
            # Ray would have its workers import from the folder where the user stands; they need this checkout alone.
            ray.init(job_config=JobConfig(_client_job=True, _py_driver_sys_path=[str(ROOT)]), **options)
            air_usage.tag_callbacks = lambda callbacks: False  # it would import every tracker that is installed
            rays.setLevel(logging.WARNING)  # these go to the run's ray.log

    def wait(self) -> None:
        """Returns when Ray has started; raises what kept it from starting."""
        self._started.wait()
        if self._error:
            raise self._error

    def stop(self) -> None:
        """Ends Ray, also while it starts. A second time does nothing."""
        if self._thread:
            import ray

            self._started.wait()
            ray.shutdown()
            self._over.set()


def _agents_are_asked(options: dict[str, Any]) -> bool:
    """Whether a search asks Ray's agents anything, or nothing can stand in their place."""
    if options["address"] != "local" or options["include_dashboard"] or "runtime_env" in options:
        return True
    return any(name in os.environ for name in RUNTIME_ENVS) or not shutil.which("cat")


@contextlib.contextmanager
def _replaced(owner: Any, **attributes: Any) -> Iterator[None]:
    """Within it `owner`, a class or module of Ray's, has these attributes instead of its own."""
    before = {name: getattr(owner, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def _few_processes() -> contextlib.AbstractContextManager:
    """Within it Ray starts without its autoscaler, its log monitor and the server behind its dashboard: no search on one
    machine needs them, and each costs a second of start-up.
    """
    from ray._private.node import Node

    def nothing(self: Node, **options: Any) -> None:
        pass

    Node._webui_url = ""  # set by start_api_server
    return _replaced(Node, start_monitor=nothing, start_log_monitor=nothing, start_api_server=nothing)


def _no_agents() -> contextlib.AbstractContextManager:
    """Within it Ray's node starts without its agents: one serves the dashboard, the other runtime environments.

    The node waits more than a second for the ports that they leave in its session's folder, and ends when they do. So
    ports that say that nothing is served lie there, and in the agents' place stands what lives as long as the node.
    """
    from ray._private import services
    from ray._raylet import persist_port

    start = services.start_ray_process

    def start_ray_process(command: list[str], process_type: str, *arguments: Any, **options: Any) -> Any:
        if process_type == "raylet":
            said = dict(word.split("=", 1) for word in command if "=" in word)
            for name in AGENT_PORTS:
                persist_port(said["--session_dir"], said["--node_id"], name, -1)
            idle = shutil.which("cat")  # it waits for what the node never says to it
            command = [next((agent + idle for agent in AGENTS if word.startswith(agent)), word) for word in command]
        return start(command, process_type, *arguments, **options)

    return _replaced(services, start_ray_process=start_ray_process)


def _no_runtime_env() -> contextlib.AbstractContextManager:
    """Within it Tune's workers have the environment of all of Ray's processes, and ask no agent for another one."""
    from ray.tune.execution import class_cache

    return _replaced(class_cache, DEFAULT_ENV_VARS={}, ENV_VARS_TO_PROPAGATE=())


def import_ahead(*modules: str) -> None:
    """Imports in a thread what will be wanted later; what can't be imported says so then."""

    def load() -> None:
        with contextlib.suppress(ImportError):
            for module in modules:
                importlib.import_module(module)

    threading.Thread(target=load, name="imports").start()
