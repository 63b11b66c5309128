"""Runs a search on Ray. No other package imports Ray.

Ray reads two variables when it is first imported. This module sets them, and each module here is imported after it.
"""

import os

LOOPBACK, UV_RUN = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_ENABLE_UV_RUN_RUNTIME_ENV"
_uv_run = os.environ.get(UV_RUN)
os.environ[LOOPBACK] = "0"  # Ray listens on the loopback alone; by default it listens on every network
os.environ[UV_RUN] = _uv_run or "0"  # below `uv run` Ray would pack the working folder for its workers


def allow_cluster() -> None:
    """Sets both variables for a cluster of several machines. It comes before the first import of Ray."""
    os.environ[LOOPBACK] = "1"
    if _uv_run is None:
        os.environ.pop(UV_RUN, None)
