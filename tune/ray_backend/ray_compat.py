"""Everything that touches Ray's private names. A search needs none of it, and works without.

The patches let Ray start sooner and print less. All of them are applied, or none: none where Ray's version was not tried,
or where a target is missing or has other parameters.
"""

import contextlib
import inspect
import os
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

TESTED = ("2.58", "2.59", "2.60")
"""minor versions of Ray with which a search was run under these patches"""
PLAIN = "MYLLM_PLAIN_RAY"
"""variable that is 1 where Ray is to start as documented"""
ABORTED = "_AbortTrialExecution"
"""name of Ray's error for a worker whose last trial did not leave it in time"""

LOCAL, NO_DASHBOARD = "a Ray of this machine alone", "no dashboard"
"""conditions under which some patches are applied"""


@dataclass(frozen=True)
class Patch:
    """A function or constant of Ray that is replaced while Ray runs."""

    target: str
    """dotted name"""
    replacement: Callable[[Any], Any]
    """makes the new value from Ray's own"""
    why: str
    saves: float = 0.0
    """seconds of a search's start (experiments/LOG.md)"""
    parameters: tuple[str, ...] | None = ()
    """names that the target must accept, all that have no default among them; None for a constant"""
    needs: frozenset[str] = frozenset()
    """conditions under which the patch is applied"""

    def obstacle(self) -> str | None:
        """Why the patch can't be applied to the Ray that is installed, or None."""
        try:
            found = pkgutil.resolve_name(self.target)
            parameters = {} if self.parameters is None else inspect.signature(found).parameters
        except (ImportError, AttributeError, TypeError, ValueError):
            return f"{self.target} is missing"
        wanted = set(self.parameters or ())
        required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty}
        return None if required <= wanted <= set(parameters) else f"{self.target} has other parameters"

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the target is replaced."""
        owner, _, name = self.target.rpartition(".")
        where = pkgutil.resolve_name(owner)
        before = getattr(where, name)
        setattr(where, name, self.replacement(before))
        try:
            yield
        finally:
            setattr(where, name, before)


def _nothing(original: Callable[..., Any]) -> Callable[..., None]:
    return lambda *arguments, **options: None


def _without_url(original: Callable[..., Any]) -> Callable[..., None]:
    def start_api_server(node: Any, **options: Any) -> None:
        node._webui_url = ""

    return start_api_server


def _without_working_folder(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options | {"_client_job": True})

    return init


PATCHES = (
    Patch(
        "ray._private.worker.print_to_stdstream",
        _nothing,
        "Ray prints pages for each of its processes that dies, whatever log_to_driver says; the journal has the reason",
        parameters=("data", "ignore_prefix"),
    ),
    Patch(
        "ray._private.utils.get_entrypoint_name",
        lambda original: lambda: "tune/search.py",
        "Ray sends the command line as UTF-8, and can't start where a word of it is none",
    ),
    Patch(
        "ray.air._internal.usage.tag_callbacks",
        lambda original: lambda callbacks: False,
        "Ray imports every tracker that is installed, to count which of them is used",
        parameters=("callbacks",),
    ),
    Patch(
        "ray.job_config.JobConfig.__init__",
        _without_working_folder,
        "Ray has workers import from the working folder first, where a file may be called like a module of ours",
        parameters=("self", "_client_job"),
    ),
    Patch(
        "ray._private.node.Node.start_monitor",
        _nothing,
        "the autoscaler has no machines to add",
        saves=1.5,
        parameters=("self",),
        needs=frozenset({LOCAL, NO_DASHBOARD}),
    ),
    Patch(
        "ray._private.node.Node.start_log_monitor",
        _nothing,
        "nobody reads the logs of workers while they train",
        saves=1.5,
        parameters=("self",),
        needs=frozenset({LOCAL, NO_DASHBOARD}),
    ),
    Patch(
        "ray._private.node.Node.start_api_server",
        _without_url,
        "Ray starts the dashboard's server also where no dashboard is wanted",
        saves=1.5,
        parameters=("self", "include_dashboard", "raise_on_failure"),
        needs=frozenset({LOCAL, NO_DASHBOARD}),
    ),
    Patch(
        "ray.tune.execution.class_cache.DEFAULT_ENV_VARS",
        lambda original: {},
        "a worker whose variables differ from its node's waits for an agent of Ray's; here they are all the same",
        saves=1.3,
        parameters=None,
        needs=frozenset({LOCAL}),
    ),
    Patch(
        "ray.tune.execution.class_cache.ENV_VARS_TO_PROPAGATE",
        lambda original: (),
        "as DEFAULT_ENV_VARS",
        parameters=None,
        needs=frozenset({LOCAL}),
    ),
)


def obstacle() -> str | None:
    """Why no patch is applied to the Ray that is installed, or None."""
    import ray

    if os.environ.get(PLAIN, "0") not in ("", "0"):
        return f"{PLAIN} is set"
    if ".".join(ray.__version__.split(".")[:2]) not in TESTED:
        return f"Ray {ray.__version__} is none of the versions that were tried, {', '.join(TESTED)}"
    return next(filter(None, (patch.obstacle() for patch in PATCHES)), None)


@contextlib.contextmanager
def patched(arguments: dict[str, Any]) -> Iterator[str | None]:
    """Within it the patches that fit these arguments of ray.init are applied, or none; yields why none is, or None."""
    reason = obstacle()
    local = arguments["address"] == "local"
    conditions = {LOCAL} if local else set()
    conditions |= {NO_DASHBOARD} if local and not arguments["include_dashboard"] else set()
    with contextlib.ExitStack() as stack:
        for patch in PATCHES if reason is None else ():
            if patch.needs <= conditions:
                stack.enter_context(patch.applied())
        yield reason
