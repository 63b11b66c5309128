"""Formats commands so that they run in a shell from the working folder."""

import os
import shlex
import sys
from pathlib import Path

from myllm.system.files import ROOT

INSTALLED = {
    "tune/search.py": "myllm-search",
    "tune/report.py": "myllm-report",
    "myllm/training/trainer.py": "myllm-train",
    "myllm/data.py": "myllm-data",
}
"""script of a checkout -> the console command of an installed package"""


def command(script: str, *arguments: str | Path) -> str:
    """The command line of a script of this project, run by the user's Python. Paths are relative to the working folder."""
    shown = [shown_path(word) if isinstance(word, Path) else word for word in arguments]
    if not (ROOT / "pyproject.toml").is_file() and script in INSTALLED:
        return shlex.join([INSTALLED[script], *shown])
    return shlex.join([sys.orig_argv[0] or sys.executable, shown_path(ROOT / script), *shown])


def shown_path(path: Path) -> str:
    """`path` relative to the working folder, or absolute where that is shorter or the working folder is gone."""
    try:
        relative = os.path.relpath(path)
    except OSError:
        return str(path)
    shown = min(relative, str(path), key=len) if relative.startswith("..") else relative
    return f"./{shown}" if shown.startswith("-") else shown
