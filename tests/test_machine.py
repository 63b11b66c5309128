"""What machine and what code a search runs on."""

import dataclasses

import pytest
from test_results import search_of

from myllm.machine import cpu_quota, git_commit, origin
from tune.prepare import CODE, PACKAGES, changed_code

V1 = "12:cpuset:/\n4:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/user.slice\n"


def version_1(folder, quota, period="100000"):
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": f"{period}\n"}


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/\n", {"cpu.max": "garbage"}, None),
        ("0::/\n", {"cpu.max": "100000 0\n"}, None),
        ("0::/\n", {"cpu.max": ""}, None),
        ("0::/\n", {}, None),
        (None, {"cpu.max": "150000 100000\n"}, 1.5),
        ("garbage", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/system.slice/a.service\n", {"system.slice/a.service/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "max 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000\n", "a/b/cpu.max": "300000 100000\n"}, 2.0),
        ("0::/docker/0123\n", {"cpu.max": "300000 100000\n"}, 3.0),  # the container sees its own group as the root
        ("0::/../../a\n", {"cpu.max": "300000 100000\n"}, 3.0),
        (V1, version_1("cpu", 400000), 4.0),
        (V1, version_1("cpu", -1), None),
        (V1, version_1("cpu/slurm/job_7", 250000, 50000), 5.0),
        (V1, version_1("cpu/slurm", 100000) | version_1("cpu/slurm/job_7", 250000), 1.0),
        (V1, version_1("cpu/slurm/job_7/step", 100000), None),
        (V1, {"cpu/cpu.cfs_quota_us": "400000\n"}, None),
    ],
)
def test_the_quota_of_a_container_or_job_is_read(tmp_path, own, files, cores):
    root = tmp_path / "cgroup"
    root.mkdir()
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert cpu_quota(root, tmp_path / "own") == cores


def test_code_that_has_changed_is_named():
    began = origin(PACKAGES)
    search = dataclasses.replace(search_of(), origin=began)
    assert set(CODE) <= began.keys() and began["git_commit"] == git_commit()
    assert changed_code(search) == ""
    other = began | {"packages": began["packages"] | {"torch": "1.0"}, "git_commit": "abc"}
    found = changed_code(dataclasses.replace(search, origin=other))
    assert "torch 1.0 -> " in found and "git_commit abc -> " in found and "numpy" not in found
