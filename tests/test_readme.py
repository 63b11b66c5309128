"""README's commands, run as they stand there."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

SECTION = "## Your data, your ranges, your model"


def page_commands():
    """The commands of the page, in their order: some need what those before them wrote."""
    text = (ROOT / "README.md").read_text()
    page = text[text.index(SECTION) :]
    page = page[: page.index("\n## ", 1)]
    return re.findall(r"^    python (.+)$", page, re.MULTILINE)


def test_the_page_has_its_commands():
    commands = page_commands()
    assert len(commands) == 8 and {command.split()[0] for command in commands} == {
        *("tune/search.py", "myllm/data.py", "myllm/training/trainer.py"),
    }


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_command_of_the_page_runs_as_written(tmp_path):
    checkout = tmp_path / "checkout"
    for name in ("README.md", "CHANGELOG.md", "pyproject.toml", "myllm", "tune", "experiments"):
        ignored = shutil.ignore_patterns("runs", "data", "__pycache__")
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, checkout / name, ignore=ignored)
        else:
            checkout.mkdir(exist_ok=True)
            shutil.copy(source, checkout / name)
    for command in page_commands():
        words = f"{sys.executable!r} {command}"
        done = subprocess.run(["bash", "-c", words], cwd=checkout, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, command + done.stdout + done.stderr
    runs = checkout / "experiments" / "runs"
    assert {path.name for path in runs.glob("[!.]*")} == {"texts", "ids", "mine", "widths", "own"}
    assert all((run / "best_config.json").is_file() for run in runs.glob("[!.]*"))
    assert (checkout / "my_data" / "val_ids.json").is_file() and (checkout / "own.pth").is_file()
