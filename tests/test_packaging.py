"""The built wheel: its packages, data files, dependencies and commands; installed, it searches from any folder."""

import ast
import configparser
import email
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from conftest import ROOT
from packaging.requirements import Requirement

COMMANDS = {"myllm-search", "myllm-report", "myllm-train", "myllm-data"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = {requirement.name: requirement for requirement in map(Requirement, PROJECT["dependencies"])}


def pins():
    """The lines of requirements.txt without comments and without the project itself."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-e")]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The path of a wheel that was built from a copy of the source tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("myllm", "tune"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tree = {
        path.relative_to(ROOT).as_posix()
        for package in ("myllm", "tune")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == tree
    assert all((ROOT / name).with_name("__init__.py").is_file() for name in tree if name.endswith(".py"))


def test_the_wheel_names_its_dependencies_and_commands(wheel):
    archive = zipfile.ZipFile(wheel)
    info = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(archive.read(info))
    required = {Requirement(text) for text in metadata.get_all("Requires-Dist")}
    assert {item for item in required if item.marker is None} == set(DECLARED.values())
    assert metadata["Version"] == PROJECT["version"]
    entries = configparser.ConfigParser()
    entries.read_string(archive.read(info.replace("METADATA", "entry_points.txt")).decode())
    assert set(entries["console_scripts"]) == COMMANDS


def test_each_dependency_is_pinned_within_its_range():
    assert {pin.name for pin in pins()} == set(DECLARED)
    for pin in pins():
        assert re.fullmatch(r"==[\d.]+", str(pin.specifier)) and pin.extras == DECLARED[pin.name].extras
        assert DECLARED[pin.name].specifier.contains(str(pin.specifier)[2:]), pin


def test_each_import_is_declared():
    """Packages that come with a declared one, and those of the extras, are named here."""
    found = set()
    for path in (file for package in ("myllm", "tune") for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition(".")[0])
    distributions = importlib.metadata.packages_distributions()
    third_party = {name for name in found if name not in sys.stdlib_module_names} - {"myllm", "tune"}
    names = {distribution for name in third_party for distribution in distributions.get(name, [name])}
    with_others = {"scipy", "threadpoolctl", "pyarrow"}  # of scikit-learn, of ray[tune]
    extras = {Requirement(text).name for texts in PROJECT["optional-dependencies"].values() for text in texts}
    optional = {"mlflow", "protobuf", "tqdm"}
    assert names - set(DECLARED) - with_others - extras - optional == set()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_installed_wheel_searches_from_another_folder(wheel, tmp_path):
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("".join(f"{pin.name}{pin.specifier}\n" for pin in pins()))
    python = tmp_path / "venv" / "bin" / "python"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"XDG_DATA_HOME": str(tmp_path / "data"), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*command):
        done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    run(python, "-m", "pip", "install", "--quiet", "-c", constraints, wheel)
    for name in COMMANDS:
        assert "usage: " in run(python.with_name(name), "--help")
    texts = ["--train_file", ROOT / "experiments" / "LOG.md", "--val_file", ROOT / "CHANGELOG.md"]
    small = ["--budget_tokens", "20000", "--num_samples", "3", "--set", "n_layer=1", "--max_concurrent", "1"]
    said = run(python.with_name("myllm-search"), *texts, *small, "--space", "v1", "--name", "tiny")
    folder = tmp_path / "data" / "myllm" / "runs" / "tiny"
    assert f"note: runs are in {folder.parent}" in said and (folder / "best_config.json").is_file()
    (folder / "report.html").unlink()
    assert "best " in run(python.with_name("myllm-report"), folder) and (folder / "report.html").is_file()
    assert not any(elsewhere.iterdir())
