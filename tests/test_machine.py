"""What machine and what code a search runs on."""

import dataclasses

import pytest
from test_results import search_of

from myllm.machine import cpu_quota, git_commit, origin
from tune.prepare import CODE, PACKAGES, changed_code


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "garbage"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container_is_read(tmp_path, files, cores):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == cores


def test_code_that_has_changed_is_named():
    began = origin(PACKAGES)
    search = dataclasses.replace(search_of(), origin=began)
    assert set(CODE) <= began.keys() and began["git_commit"] == git_commit()
    assert changed_code(search) == ""
    other = began | {"packages": began["packages"] | {"torch": "1.0"}, "git_commit": "abc"}
    found = changed_code(dataclasses.replace(search, origin=other))
    assert "torch 1.0 -> " in found and "git_commit abc -> " in found and "numpy" not in found
