"""A file of the user's that is called like a module stands in its way: it is named before anything is imported."""

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
OURS = ("myllm", "tune")
PACKAGES = {
    **{name: name for name in ("matplotlib", "mlflow", "numpy", "optuna", "pandas", "plotly", "psutil", "pyarrow", "ray")},
    **{name: name for name in ("rich", "scipy", "tensorboardX", "threadpoolctl", "tiktoken")},
    **{name: name for name in ("tokenizers", "torch", "tqdm", "wandb")},
    **{"sklearn": "scikit-learn"},
}
"""what is imported here -> the distribution that has it"""
UNUSED = {"antigravity", "idlelib", "test", "this", "tkinter", "turtle", "turtledemo"}
"""modules of Python's that nothing imports; some of these names are usual"""


def standard_shadow(folders: list[str]) -> str | None:
    """A file in `folders`, which come before Python's own, that is called like one of its modules; None where none is."""
    import importlib.machinery

    behind = [path for path in sys.path if os.path.realpath(path) not in map(os.path.realpath, folders)]
    for folder in folders:
        for name in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
            stem, ending = os.path.splitext(name)
            imported = ending == ".py" and stem in sys.stdlib_module_names - UNUSED
            if imported and importlib.machinery.PathFinder.find_spec(stem, behind):  # some are of other systems
                return os.path.join(folder, name)
    return None


def shadow(folders: list[str]) -> str | None:
    """What Python would import from `folders` instead of this project or a package that it needs; None where nothing."""
    import importlib.machinery
    import importlib.metadata

    for name in (*OURS, *PACKAGES):
        spec = importlib.machinery.PathFinder.find_spec(name, folders)
        if spec is None or spec.origin is None:  # not there, or a mere folder, which comes last
            continue
        found = os.path.realpath(spec.origin)
        found = os.path.dirname(found) if os.path.basename(found) == "__init__.py" else found
        try:
            right = ROOT if name in OURS else str(importlib.metadata.distribution(PACKAGES[name]).locate_file(""))
        except importlib.metadata.PackageNotFoundError:
            continue
        right = os.path.realpath(os.path.join(right, name))
        if found not in (right, f"{right}.py") and (name in OURS or found.endswith(".py") or os.path.isdir(right)):
            return found
    return None


def check_imports() -> None:
    """Ends the process with one line and exit code 2 where a file has the name of something that must be imported, or
    nothing can be: the working folder is gone.

    Such a file would have to be in PYTHONPATH, where Ray's processes look too, or in the working folder of a `python -m`.
    """
    try:
        os.getcwd()
    except FileNotFoundError:  # torch's own libraries can't be loaded there
        print("error: the working folder is gone; change into one that is there", file=sys.stderr)
        sys.exit(2)
    standard = os.path.dirname(os.path.realpath(os.__file__))
    first = [path for path in map(os.path.realpath, sys.path) if not path.endswith(".zip")]
    first = first[: first.index(standard)] if standard in first else []
    if culprit := standard_shadow(first) or shadow(first):
        message = f"error: {culprit} is called like a module that this program imports; rename it, or run elsewhere"
        print(message.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        sys.exit(2)
