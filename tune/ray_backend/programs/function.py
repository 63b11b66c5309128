"""A function of the user's own as a training program; and a command that trains with its best settings.

python -m tune.ray_backend.programs.function RUN/best_config.json FOLDER
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from myllm.system.errors import run_command
from tune.config.function import Reports, Train, load_function
from tune.config.spec import ProgramSearch


def function_program(search: ProgramSearch) -> Train:
    """The user's function, which runs in the folder from which the search was started."""

    def train(settings: dict[str, Any], budget: int, folder: Path, resume: bool) -> Reports:
        program = search.program
        function = load_function(search.name, program.files, program.sha256)
        with contextlib.suppress(OSError):  # of another machine
            os.chdir(program.folder)
        return function(search.values(settings), budget, folder, resume)

    return train


def main() -> None:
    """Trains with the settings of a best_config.json, from the beginning; prints each report as a JSON line."""
    path, folder = Path(sys.argv[1]), Path(os.path.abspath(sys.argv[2]))
    best = json.loads(path.read_text("utf-8"))
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(best["working_folder"])
    function = load_function(best["trainable"], best["files"], best["sha256"])
    reports = function(best["settings"], best["settings"]["budget"], folder, False)
    for report in reports:
        print(json.dumps(report), flush=True)
    with contextlib.suppress(StopIteration):
        reports.send("save")


if __name__ == "__main__":
    run_command(main)
