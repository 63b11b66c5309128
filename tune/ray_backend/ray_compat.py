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

import ray

TESTED = ("2.58", "2.59", "2.60")  # minor versions of Ray with which a search was run under these patches
PLAIN = "MYLLM_PLAIN_RAY"  # variable that is 1 where Ray is to start as documented
ABORTED = "_AbortTrialExecution"  # name of Ray's error for a worker whose last trial did not leave it in time


@dataclass(frozen=True)
class Patch:
    """A function of Ray that is replaced while Ray runs. A comment says why, and the seconds of a start that it saves."""

    target: str  # dotted name
    replacement: Callable[[Any], Any]  # makes the new function from Ray's own
    parameters: tuple[str, ...] = ()  # names that the target must accept, all that have no default among them
    only_alone: bool = False  # True if the patch is for a Ray of this machine alone, without a dashboard

    def obstacle(self) -> str | None:
        """Why the patch can't be applied to the Ray that is installed, or None."""
        try:
            found = inspect.signature(pkgutil.resolve_name(self.target)).parameters
        except (ImportError, AttributeError, TypeError, ValueError):
            return f"{self.target} is missing"
        required = {name for name, parameter in found.items() if parameter.default is parameter.empty}
        return None if required <= set(self.parameters) <= set(found) else f"{self.target} has other parameters"


def _nothing(original: Callable[..., Any]) -> Callable[..., None]:
    return lambda *arguments, **options: None


def _without_url(original: Callable[..., Any]) -> Callable[..., None]:
    return lambda node, **options: setattr(node, "_webui_url", "")


def _without_working_folder(original: Callable[..., None]) -> Callable[..., None]:
    return lambda self, *arguments, **options: original(self, *arguments, **options | {"_client_job": True})


def _without_variables(original: Callable[..., Any]) -> Callable[..., Any]:
    return lambda cache, trainable: cache._cache.setdefault(trainable, ray.remote(trainable))


PATCHES = (
    # Ray prints pages for each of its processes that dies, whatever log_to_driver says; the journal has the reason.
    Patch("ray._private.worker.print_to_stdstream", _nothing, ("data", "ignore_prefix")),
    # Ray sends the command line as UTF-8, and can't start where a word of it is none.
    Patch("ray._private.utils.get_entrypoint_name", lambda original: lambda: "tune/search.py"),
    # Ray imports every tracker that is installed, to count which of them is used: 1.2 s with two.
    Patch("ray.air._internal.usage.tag_callbacks", lambda original: lambda callbacks: False, ("callbacks",)),
    # Ray has workers import from the working folder first, where a file may be called like a module of ours.
    Patch("ray.job_config.JobConfig.__init__", _without_working_folder, ("self", "_client_job")),
    # A search needs no autoscaler, no reader of workers' logs, no server of a dashboard: together 1.5 s.
    Patch("ray._private.node.Node.start_monitor", _nothing, ("self",), only_alone=True),
    Patch("ray._private.node.Node.start_log_monitor", _nothing, ("self",), only_alone=True),
    Patch(
        "ray._private.node.Node.start_api_server",
        _without_url,
        ("self", "include_dashboard", "raise_on_failure"),
        only_alone=True,
    ),
    # A worker whose variables differ from its node's waits 1.3 s for an agent of Ray's. All variables are the same here.
    Patch(
        "ray.tune.execution.class_cache._ActorClassCache.get",
        _without_variables,
        ("self", "trainable_cls"),
        only_alone=True,
    ),
)


@contextlib.contextmanager
def patched(arguments: dict[str, Any]) -> Iterator[str | None]:
    """Within it the patches that fit these arguments of ray.init are applied, or none; yields why none is, or None."""
    reason = next(filter(None, (patch.obstacle() for patch in PATCHES)), None)
    if os.environ.get(PLAIN, "0") not in ("", "0"):
        reason = f"{PLAIN} is set"
    elif ".".join(ray.__version__.split(".")[:2]) not in TESTED:
        reason = f"Ray {ray.__version__} is none of the versions that were tried, {', '.join(TESTED)}"
    alone = arguments["address"] == "local" and not arguments["include_dashboard"]
    with contextlib.ExitStack() as stack:
        for patch in PATCHES if reason is None else ():
            if alone or not patch.only_alone:
                owner, _, name = patch.target.rpartition(".")
                original = getattr(pkgutil.resolve_name(owner), name)
                stack.callback(setattr, pkgutil.resolve_name(owner), name, original)
                setattr(pkgutil.resolve_name(owner), name, patch.replacement(original))
        yield reason
