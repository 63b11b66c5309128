"""Names a file of the user's that Python would import instead of a module of the same name, before that happens."""

import os
import sys
from importlib.machinery import PathFinder

OURS = {"myllm", "tune"}
SINGLE_FILES = {"threadpoolctl"}
"""packages that are themselves one file: a file of that name may be the right one"""
COMPUTING = {"joblib", "numpy", "optuna", "pandas", "psutil", "pyarrow", "ray", "scipy", "sklearn", "torch"}
READING = {"tiktoken", "tokenizers", "tqdm"}
SHOWING = {"matplotlib", "mlflow", "plotly", "rich", "starlette", "tensorboardX", "uvicorn", "wandb"}
PACKAGES = COMPUTING | READING | SHOWING | SINGLE_FILES
"""packages that are imported here"""
UNUSED = {"antigravity", "idlelib", "test", "this", "tkinter", "turtle", "turtledemo"}
"""modules of Python's that nothing imports; people give files some of these names"""
STANDARD = os.path.dirname(os.path.realpath(os.__file__))
"""folder of Python's own modules"""


def shadow(folders: list[str]) -> str | None:
    """Returns a .py file in `folders` with the name of a module that is imported here, or None where there is none."""
    own = [STANDARD, os.path.join(STANDARD, "lib-dynload")]
    for folder in folders:
        if os.path.realpath(folder) in own or not os.path.isdir(folder):
            continue
        for name in sorted(os.listdir(folder)):
            stem, ending = os.path.splitext(name)
            standard = stem in sys.stdlib_module_names - UNUSED and PathFinder.find_spec(stem, own)
            if ending == ".py" and (standard or stem in OURS | PACKAGES - SINGLE_FILES):
                return os.path.join(folder, name)
    return None


def check_imports() -> None:
    """Ends the process with one line and exit code 2 where imports can't work.

    Reasons are a file that shadows a module, in PYTHONPATH or in the folder of a `python -m`, and a working folder that is
    gone: torch's libraries can't be loaded there.
    """
    try:
        os.getcwd()
    except FileNotFoundError:
        print("error: the working folder is gone; change into one that is there", file=sys.stderr)
        sys.exit(2)
    first = [path for path in map(os.path.realpath, sys.path) if not path.endswith(".zip")]
    first = first[: first.index(STANDARD)] if STANDARD in first else []
    if culprit := shadow(first):
        message = f"error: {culprit} is called like a module that this program imports; rename it, or run elsewhere"
        print(message.encode("ascii", "backslashreplace").decode(), file=sys.stderr)
        sys.exit(2)
