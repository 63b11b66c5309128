"""Imports run one way: between packages, between the wings of tune/ and of myllm/, and without a circle of modules."""

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT, run_command_line

from myllm.system.imports import PACKAGES

MODULES = sorted(path for folder in ("myllm", "tune") for path in (ROOT / folder).rglob("*.py"))
TUNE = {
    "core": (),
    "ladder": ("core",),
    "store": ("core",),
    "config": ("core", "ladder", "store"),
    "analysis": ("core", "ladder", "store", "config"),
    "estimate": ("core", "ladder", "store", "config", "analysis"),
    "monitor": ("core", "ladder", "store", "config", "analysis", "estimate"),
    "ray_backend": ("core", "store", "config", "analysis", "estimate", "monitor"),
    "reporting": ("core", "ladder", "store", "config", "analysis"),
    "report": ("core", "store", "config", "analysis", "reporting"),
    "search": ("core", "store", "config", "analysis", "estimate", "monitor", "ray_backend", "reporting", "report"),
    "__init__": ("reporting", "search"),
}
MYLLM = {
    "__init__": (),
    "system": (),
    "text": ("system",),
    "config": ("system",),
    "scaling_laws": (),
    "presets": ("system", "config", "scaling_laws"),
    "datasets": ("system", "config"),
    "models": ("system", "config", "presets"),
    "training": ("system", "text", "config", "scaling_laws", "presets", "datasets", "models"),
    "data": ("system", "datasets"),
}
"""wing -> the wings that it may import"""
WITHOUT_TORCH = ("tune/core/", "tune/store/", "tune/analysis/", "tune/reporting/", "tune/report.py")
"""what a report or a replay needs"""


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_only_downwards(path):
    name, roots = path.relative_to(ROOT).as_posix(), {module.split(".")[0] for module in imports(path)}
    if name.startswith("myllm/"):
        assert not roots & {"ray", "tune", "pandas"}
    if not name.startswith("tune/ray_backend/"):
        assert "ray" not in roots
    if name.startswith(WITHOUT_TORCH):
        assert "torch" not in roots
    if name.startswith("tune/core/schedulers/"):
        assert not roots & {"os", "time", "random", "pathlib"}  # a rule sees trials and clock alone


@pytest.mark.parametrize(("package", "wings"), [("tune", TUNE), ("myllm", MYLLM)])
def test_a_wing_imports_only_those_below_it(package, wings):
    for path in (ROOT / package).rglob("*.py"):
        wing = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        for module in imports(path):
            first, *rest = module.split(".")
            assert first != package or rest[:1] in ([wing], []) or rest[0] in wings[wing], f"{path} imports {module}"


def test_no_modules_import_each_other_in_a_circle():
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES}
    graph = {names[path]: {module for module in imports(path) if module in names.values()} for path in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_every_package_that_is_imported_is_looked_for_in_the_way():
    ours = {"myllm", "tune"}
    roots = {module.split(".")[0] for path in MODULES for module in imports(path)} - sys.stdlib_module_names - ours
    assert roots - {"IPython"} <= set(PACKAGES), "name it in myllm/system/imports.py"


def test_no_module_beside_the_commands_shadows_another():
    for folder in ("tune", "myllm", "myllm/training"):
        for path in (ROOT / folder).glob("*.py"):
            assert path.stem not in sys.stdlib_module_names


def test_the_report_imports_neither_ray_nor_torch():
    code = "import sys, tune.report; assert not {'ray', 'torch'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("arguments", [["--help"], ["--list_spaces"], ["--seed", "-1"], ["--tokenizer", "klingon"]])
def test_help_and_errors_wait_for_nothing_heavy(arguments):
    code = (
        "import sys, contextlib\n"
        "sys.argv = ['search.py', *sys.argv[1:]]\n"
        "from tune.search import main\n"
        "with contextlib.suppress(SystemExit, ValueError):\n"
        "    main()\n"
        "heavy = {'torch', 'pandas', 'matplotlib', 'pyarrow', 'optuna', 'ray.tune'} & set(sys.modules)\n"
        "assert not heavy and ('ray' not in sys.modules or 'klingon' in sys.argv), heavy\n"
    )
    done = run_command_line("-c", code, *arguments)
    assert done.returncode == 0, done.stderr
