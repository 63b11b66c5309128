"""Ray's start and end, the patches of its private names, and what a tiny search in this process makes of them."""

import dataclasses
import ipaddress
import os
import pkgutil
import re
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT
from harness import SHORT, TIMES, FaultSearch

from myllm.system.errors import RunError
from tune.config.options import SearchOptions
from tune.config.resolve import Resources
from tune.config.spec import read_search
from tune.ray_backend import ray_compat, tuner
from tune.ray_backend.start import RayRuntime, check_loopback
from tune.ray_backend.trainable import CHECKPOINT
from tune.ray_backend.tuner import JournalledScheduler, run_search

LOCAL = {"address": "local", "include_dashboard": False}
PATCHES = ray_compat.PATCHES
NAMES = [patch.target.removeprefix("ray.") for patch in PATCHES]
TIMELESS = {"time", "startup_seconds", *TIMES}


def processes():
    """This process and those that it has started."""
    return {psutil.Process(), *psutil.Process().children(recursive=True)}


@pytest.fixture(autouse=True)
def environment():
    """Undoes what a start of Ray sets in this process, but for its token: Ray reads that once a process."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before) - {"RAY_AUTH_TOKEN"}:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def tiny(byte_files, tmp_path, monkeypatch):
    """tiny(name): runs a search of three trials on one worker here; returns its folder, reports and listening addresses."""

    def run(name):
        search, reports, addresses, before = FaultSearch(tmp_path / name, byte_files, **SHORT), [], set(), processes()

        class Watched(JournalledScheduler):
            def on_trial_result(self, tune_controller, trial, result):
                if not reports:
                    for process in processes() - before | {psutil.Process()}:
                        listening = [c for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
                        addresses.update(connection.laddr.ip.removeprefix("::ffff:") for connection in listening)
                reports.append((trial.trial_id, trial.config.get(CHECKPOINT), result["tokens_seen"]))
                return super().on_trial_result(tune_controller, trial, result)

        monkeypatch.setattr(tuner, "JournalledScheduler", Watched)
        assert run_search(search.folder, read_search(search.folder), Resources(1, 0, 1))
        return search, reports, addresses

    return run


def decisions(search):
    """All events that do not hang on the pace of the machine, without their times."""
    events = [event for event in search.events() if not event["event"].startswith("checkpoint")]
    return [{name: value for name, value in event.items() if name not in TIMELESS} for event in events]


def test_the_patches_change_no_decision_and_all_listen_on_loopback_and_nothing_is_trained_twice(tiny, monkeypatch, capfd):
    patched, reports, addresses = tiny("patched")
    assert addresses and all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses
    stored = {e["path"]: e["tokens_seen"] for e in patched.events() if e["event"] == "checkpoint"}
    mark, firsts = read_search(patched.folder).report_tokens, {}
    for run, checkpoint, tokens in reports:
        firsts.setdefault(run, (checkpoint, tokens))
    assert all(tokens == stored.get(checkpoint, 0) + mark for checkpoint, tokens in firsts.values()), firsts
    assert sum(checkpoint is not None for checkpoint, _ in firsts.values()) >= 2  # had waited at a rung
    trained = [(run.partition(".")[0], tokens) for run, _, tokens in reports]
    assert len(trained) == len(set(trained))

    monkeypatch.setenv(ray_compat.PLAIN, "1")
    plain, _, addresses = tiny("plain")
    assert addresses and all(ipaddress.ip_address(address).is_loopback for address in addresses), addresses
    assert decisions(plain) == decisions(patched)
    line = "Ray is started as documented: MYLLM_PLAIN_RAY is set"
    assert (plain.folder / "ray.log").read_text().count(line) == 1
    assert line not in "".join(capfd.readouterr())
    log = patched.folder / "ray.log"
    assert not log.exists() or "as documented" not in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("index", range(len(PATCHES)), ids=NAMES)
def test_a_search_works_where_a_target_has_another_name(index, tiny, monkeypatch):
    renamed = dataclasses.replace(PATCHES[index], target=PATCHES[index].target + "_renamed")
    monkeypatch.setattr(ray_compat, "PATCHES", (*PATCHES[:index], renamed, *PATCHES[index + 1 :]))
    search, _, _ = tiny("renamed")
    assert f"{renamed.target} is missing" in (search.folder / "ray.log").read_text()


def values():
    return [pkgutil.resolve_name(patch.target) for patch in PATCHES]


def test_the_patches_fit_the_ray_that_is_installed_and_are_undone():
    before = values()
    with ray_compat.patched(LOCAL) as reason:
        assert reason is None
        assert not [patch.target for patch, old, new in zip(PATCHES, before, values(), strict=True) if old is new]
    assert values() == before


@pytest.mark.parametrize("index", range(len(PATCHES)), ids=NAMES)
@pytest.mark.parametrize("change", ["missing", "other parameters"])
def test_where_one_patch_does_not_fit_none_is_applied(index, change, monkeypatch):
    owner, _, name = PATCHES[index].target.rpartition(".")
    before = values()
    if change == "missing":
        monkeypatch.delattr(pkgutil.resolve_name(owner), name)
    else:
        monkeypatch.setattr(pkgutil.resolve_name(owner), name, lambda something_else: None)
    with ray_compat.patched(LOCAL) as reason:
        assert reason.startswith(f"{PATCHES[index].target} ")
        monkeypatch.undo()
        assert values() == before


@pytest.mark.parametrize("version", ["2.57.0", "2.61.0", "3.0.0.dev0"])
def test_a_version_of_ray_that_was_not_tried_starts_as_documented(version, monkeypatch):
    monkeypatch.setattr("ray.__version__", version)
    before = values()
    with ray_compat.patched(LOCAL) as reason:
        assert version in reason and values() == before


def test_rays_private_names_are_in_one_module():
    private = re.compile(
        r"\bray(\.\w+)*\._|\b_(internal|private)\b|_TrainingResult|_restore_checkpoint|global_worker|_Abort"
    )
    for path in (ROOT / "tune").rglob("*.py"):
        if path.name != "ray_compat.py":
            assert not private.search(path.read_text()), path


def test_a_ray_that_others_can_reach_is_refused():
    for address in ("127.0.0.1", "::1"):
        check_loopback(address)
    with pytest.raises(RunError, match=r"Ray listens on 10\.0\.0\.3, where other machines can reach it"):
        check_loopback("10.0.0.3")


def test_ray_starts_without_what_no_search_needs_and_leaves_no_process():
    before, token = processes(), os.environ.get("RAY_AUTH_TOKEN")
    runtime = RayRuntime()
    assert os.environ.get("RAY_AUTH_TOKEN") == token  # it may join a cluster, which wants the user's own
    try:
        runtime.start(SearchOptions(), Resources(1, 0, 1))
        runtime.wait_until_started()
        commands = [" ".join(process.cmdline()) for process in processes() - before]
        assert not [command for command in commands if "monitor.py" in command or "dashboard/dashboard.py" in command]
    finally:
        runtime.stop()
    _, alive = psutil.wait_procs(processes() - before, timeout=10)
    assert alive == []


def test_a_new_segment_is_started_before_those_that_wait_and_once():
    """Ray would end the process that starts for one that waits, and give it that of the trial that has just ended."""
    scheduler = JournalledScheduler(SimpleNamespace(start_next="segment"))
    waiting = SimpleNamespace(get_trials=lambda: [SimpleNamespace(status="PENDING")])
    assert [scheduler.choose_trial_to_run(waiting) for _ in range(2)] == ["segment", None]
