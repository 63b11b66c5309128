"""What machine and what code a search runs on."""

import dataclasses
import os

import pytest
from helpers import search_of

from myllm.system import machine
from myllm.system.machine import available_cpus, cpu_quota, git_commit, origin
from tune.config.resolve import CODE, PACKAGES, changed_code

V1 = "12:cpuset:/\n4:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/user.slice\n"
BOTH = [("cgroup", "/", "cpu", "cpu"), ("cgroup2", "/", "unified", "")]


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
    assert quota_of(tmp_path, own, None, files) == cores


def quota_of(folder, own, mounts, files):
    """The quota where /proc/self/cgroup says `own`, mountinfo lists `mounts`, and `files` are below /sys/fs/cgroup."""
    process, usual = folder / "process", folder / "cgroup"
    process.mkdir()
    for name, text in files.items():
        path = usual / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    if own is not None:
        (process / "cgroup").write_bytes(os.fsencode(own))
    if mounts is not None:
        fields = (
            (kind, begin, f"{usual}/{place}".replace(" ", r"\040"), options) for kind, begin, place, options in mounts
        )
        lines = [
            f"31 23 0:28 {begin} {place} rw,relatime shared:9 - {kind} x rw,{options}"
            for kind, begin, place, options in fields
        ]
        (process / "mountinfo").write_text("\n".join(["22 1 8:1 / / rw - ext4 /dev/sda1 rw", "garbage", *lines, ""]))
    return cpu_quota(process, usual)


@pytest.mark.parametrize(
    ("own", "mounts", "files", "cores"),
    [
        (V1, [("cgroup", "/", "cpu,cpuacct", "cpu,cpuacct")], version_1("cpu,cpuacct/slurm/job_7", 200000), 2.0),
        ("1:memory,cpu:/x\n", [("cgroup", "/", "all", "memory,cpu")], version_1("all/x", 200000), 2.0),
        # Both versions: the one that has the controller counts, by its own path.
        ("2:cpu:/a\n0::/b\n", BOTH, version_1("cpu/a", 300000) | version_1("cpu/b", 100000), 3.0),
        ("2:name=systemd:/b\n0::/b\n", BOTH, {"unified/b/cpu.max": "200000 100000\n"}, 2.0),
        # A mount that begins at a container's own group, which may have groups within, and neighbours of like names
        ("4:cpu:/docker/ab/in\n", [("cgroup", "/docker/ab", "cpu", "cpu")], version_1("cpu/in", 150000), 1.5),
        ("4:cpu:/docker/abc\n", [("cgroup", "/docker/ab", "cpu", "cpu")], version_1("cpu/c", 150000), None),
        ("0::/../x\n", [("cgroup2", "/", "", "")], {"cpu.max": "300000 100000\n", "x/cpu.max": "100000 100000\n"}, 3.0),
        ("0::/a b\n", [("cgroup2", "/", "my groups", "")], {"my groups/a b/cpu.max": "100000 100000\n"}, 1.0),
        (b"0::/caf\xe9\x85\n", [("cgroup2", "/", "", "")], {b"caf\xe9\x85/cpu.max": "100000 100000\n"}, 1.0),
        ("0::/\n", [("cgroup2", "/", "", "")], {"cpu.max": "100000 -1\n"}, None),
    ],
)
def test_the_quota_is_read_where_cgroups_are_mounted(tmp_path, own, mounts, files, cores):
    assert quota_of(tmp_path, own, mounts, files) == cores


@pytest.mark.parametrize(("quota", "cores"), [(None, 3), (0.5, 1), (1.9, 1), (2.0, 2), (64.0, 3)])
def test_cores_follow_the_affinity_mask_and_the_quota(monkeypatch, quota, cores):
    monkeypatch.setattr(machine, "cpu_quota", lambda *places: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 2, 5}, raising=False)
    assert available_cpus() == cores


def test_code_that_has_changed_is_named():
    began = origin(PACKAGES)
    search = dataclasses.replace(search_of(), origin=began)
    assert set(CODE) <= began.keys() and began["git_commit"] == git_commit()
    assert changed_code(search) == ""
    other = began | {"packages": began["packages"] | {"torch": "1.0"}, "git_commit": "abc"}
    found = changed_code(dataclasses.replace(search, origin=other))
    assert "torch 1.0 -> " in found and "git_commit abc -> " in found and "numpy" not in found
