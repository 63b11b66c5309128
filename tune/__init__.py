"""Chooses hyper-parameters. Imports myllm; the only place that imports ray.

`from tune import run_search, resume_search, load_run` is all that a script or notebook needs.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tune.reporting.run import Run, load_run
    from tune.search import resume_search, run_search

__all__ = ["Run", "load_run", "resume_search", "run_search"]


def __getattr__(name: str) -> Any:
    """Imports a name of `__all__` when it is first asked for (PEP 562): `import tune` stays quick."""
    if name in ("Run", "load_run"):
        from tune.reporting.run import Run, load_run

        return {"Run": Run, "load_run": load_run}[name]
    if name in ("run_search", "resume_search"):
        from tune.search import resume_search, run_search

        return {"run_search": run_search, "resume_search": resume_search}[name]
    raise AttributeError(f"module 'tune' has no attribute {name!r}")
