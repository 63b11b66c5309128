"""A file of the user's that is called like a package stands in its way: it is named before anything is imported."""

import importlib.machinery
import importlib.metadata
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OURS = ("myllm", "tune")
PACKAGES = ("matplotlib", "numpy", "optuna", "pandas", "psutil", "pyarrow", "ray", "tiktoken", "torch", "tqdm")


def shadow(folders: list[str]) -> Path | None:
    """What Python would import from `folders` instead of this project or a package that it needs; None where nothing."""
    for name in (*OURS, *PACKAGES):
        spec = importlib.machinery.PathFinder.find_spec(name, folders)
        if spec is None or spec.origin is None:  # not there, or a mere folder, which comes last
            continue
        found = Path(spec.origin).resolve()
        found = found.parent if found.name == "__init__.py" else found
        try:
            right = ROOT / name if name in OURS else Path(importlib.metadata.distribution(name).locate_file(name)).resolve()
        except importlib.metadata.PackageNotFoundError:
            continue
        if found != right and (name in OURS or found.suffix == ".py" or right.is_dir()):
            return found
    return None


def check_imports() -> None:
    """Ends the process with one line and exit code 2 where a file has the name of something that must be imported.

    Ray's processes look into the working folder and into PYTHONPATH, so those count, whatever this process has.
    """
    added = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    try:
        here = os.getcwd()
    except OSError:
        return  # a folder that is gone has no files
    if culprit := shadow([here, *added]):
        message = f"error: {culprit} is called like a package that this program imports; rename it, or run elsewhere"
        print(message.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        sys.exit(2)
