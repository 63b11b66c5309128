"""Chooses hyper-parameters. Imports myllm; the only place that imports ray.

`from tune import load_run` gives the tables of a run folder for pandas; see tune.analysis.results.load_run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune.analysis.results import load_run

__all__ = ["load_run"]


def __getattr__(name: str) -> Any:
    """Imports `load_run` when it is first asked for (PEP 562): `import tune` stays quick."""
    if name != "load_run":
        raise AttributeError(f"module 'tune' has no attribute {name!r}")
    from tune.analysis.results import load_run

    return load_run
