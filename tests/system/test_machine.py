"""What machine and what code a search runs on."""

import dataclasses
import os

import pytest
from helpers import search_of

from myllm.system.machine import available_cpus, git_commit, origin
from tune.config.resolve import CODE, PACKAGES, changed_code


@pytest.mark.parametrize("cores", [1, 2])
def test_cores_follow_the_affinity_mask(monkeypatch, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert 1 <= available_cpus() <= cores


def test_code_that_has_changed_is_named():
    began = origin(PACKAGES)
    search = dataclasses.replace(search_of(), origin=began)
    assert set(CODE) <= began.keys() and began["git_commit"] == git_commit()
    assert changed_code(search) == ""
    other = began | {"packages": began["packages"] | {"torch": "1.0"}, "git_commit": "abc"}
    found = changed_code(dataclasses.replace(search, origin=other))
    assert "torch 1.0 -> " in found and "git_commit abc -> " in found and "numpy" not in found
