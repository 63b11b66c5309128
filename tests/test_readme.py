"""The commands of README and docs run as they are written.

Blocks marked `bash` run whole, page by page, in a copy of the checkout. Blocks marked `sh` need a GPU, a cluster or data
that is not there: only their flags are checked, as those of all other commands.
"""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

README, *DOCS = PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^python (?:tune|myllm)/\S+\.py\b.*$", re.MULTILINE)
SCRIPTS = ("tune/search.py", "tune/report.py", "myllm/data.py", "myllm/training/trainer.py")
OTHER_PROGRAMS = {"--nproc_per_node", "--nodes", "--gpus", "--generate", "--head", "--logdir"}
"""flags of torchrun, Slurm, Ray and TensorBoard, some of them also ours"""


def commands(page, *kinds):
    """The command lines of this project in the blocks of these kinds, in their order."""
    return [line for kind, text in BLOCK.findall(page.read_text()) if kind in kinds for line in COMMAND.findall(text)]


@pytest.fixture(scope="module")
def flags():
    """script -> the flags that its --help names."""
    found = {}
    for script in SCRIPTS:
        done = subprocess.run([sys.executable, script, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        found[script] = set(re.findall(r"--\w+", done.stdout))
    return found


def test_readme_is_short_and_begins_with_its_commands():
    assert len(README.read_text().splitlines()) <= 150
    assert commands(README, "bash")[0] == "python tune/search.py --space v2"
    assert all({kind for kind, _ in BLOCK.findall(page.read_text())} <= {"bash", "sh", "text", "python"} for page in PAGES)
    assert sum(len(commands(page, "bash")) for page in PAGES) >= 25


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_has_flags_that_its_script_knows(page, flags):
    for line in commands(page, "bash", "sh"):
        script = next(word for word in line.split() if word.endswith(".py"))
        assert (ROOT / script).is_file(), line
        assert set(re.findall(r"(?<=\s)--\w+", line.partition(script)[2].partition(" #")[0])) <= flags[script], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_that_a_page_names_exists(page, flags):
    known = set().union(*flags.values()) | OTHER_PROGRAMS
    for script in set(re.findall(r"experiments/\w+\.py", page.read_text())):
        known |= set(re.findall(r"--\w+", (ROOT / script).read_text()))
    ours = re.sub(r"--(command|resume_args) '[^']*'", "", page.read_text())  # quoted are another program's flags
    assert set(re.findall(r"(?<![\w-])--[a-z]\w+", ours)) <= known


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    text = page.read_text()
    links = {name.partition("#")[0] for name in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)}
    assert all((page.parent / name).exists() for name in links if name), links
    named = re.findall(r"\b(?:experiments|tests|tune|myllm)/[\w/]+\.(?:py|md|toml|ipynb|json)\b", text)
    assert [name for name in named if not (ROOT / name).exists() and "/runs/" not in name and "NAME" not in name] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page, "bash")], ids=lambda page: page.name)
def test_every_command_of_a_page_runs_as_written(page, tmp_path):
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("runs", "data", "__pycache__")
    checkout.mkdir()
    for name in ("README.md", "CHANGELOG.md", "pyproject.toml"):
        shutil.copy(ROOT / name, checkout / name)
    for name in ("myllm", "tune", "experiments"):
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    shutil.copytree(ROOT / "tests" / "programs", checkout / "tests" / "programs")
    written = set()
    for command in commands(page, "bash"):
        line = command.replace("python ", f"{sys.executable!r} ", 1)
        done = subprocess.run(["bash", "-c", line], cwd=checkout, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, command + done.stdout + done.stderr
        if "--dry_run" not in command:
            written |= {checkout / "experiments" / "runs" / name for name in re.findall(r"--name (\w+)", command)}
        written |= {checkout / name for name in re.findall(r"--save_model (\S+)", command)}
    assert all((path / "best_config.json").is_file() if path.suffix == "" else path.is_file() for path in written)
