"""Tools of the fault tests: a tiny search in a folder, its processes, and what must be equal in the end."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from tune.config import spec
from tune.config.options import SearchOptions
from tune.config.resolve import resolve_search

DRIVER = Path(__file__).parent / "driver.py"
TIMES = ["train_seconds", "tok_per_sec"]
SHORT = dict(num_samples=3, replicate_best=2, scheduler="asha", rungs="0.25:3")
"""a search in which all trials wait at a rung before the best and the reference go on, and then again on a fresh seed"""
MARKER = "MYLLM_FAULT_TEST"  # an environment variable that all processes of one search inherit


class FaultSearch:
    """A search of a tiny model in `folder`, run by driver.py in a process of its own."""

    def __init__(self, folder, data, slots=1, fault=None, **options):
        self.folder, self.slots, self.fault = Path(folder), slots, fault
        self.folder.mkdir()
        train, val = ((str(path),) for path in data)
        config = SearchOptions(train_file=train, val_file=val, budget_tokens=262144, name=self.folder.name, **options)
        search = resolve_search(config, self.folder.parent / "cache")
        budget, training = search.budget_tokens // 4, search.training
        dataclasses.replace(
            search,
            model=dataclasses.replace(search.model, n_layer=1, n_head=2, n_embd=16),
            training=dataclasses.replace(training, max_len=32, stride=32, budget_tokens=budget),
            report_tokens=search.report_tokens // 4,
        ).write(self.folder)

    def change(self, **config):
        search = spec.read_search(self.folder)
        dataclasses.replace(search, options=dataclasses.replace(search.options, **config)).write(self.folder)

    def start(self):
        command = [sys.executable, str(DRIVER), str(self.folder), str(self.slots), *([self.fault] if self.fault else [])]
        return subprocess.Popen(
            command,
            env=os.environ | {MARKER: str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def finish(self, code=0, timeout=600):
        """Runs to the end; returns stderr."""
        process = self.start()
        errors = process.communicate(timeout=timeout)[1]
        assert process.returncode == code, errors
        return errors

    def events(self):
        path = self.folder / "journal.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def wait_for(self, process, event, count=1):
        """Waits until the journal has `count` events of that kind; False where the process ended before."""
        while process.poll() is None:
            if sum(e["event"] == event for e in self.events()) >= count:
                return True
            time.sleep(0.01)
        return False

    def wait_for_events(self, process, count):
        """Waits until the journal has `count` lines; False where the process ended before."""
        path = self.folder / "journal.jsonl"
        while process.poll() is None:
            if path.exists() and path.read_bytes().count(b"\n") >= count:
                return True
            time.sleep(0.01)
        return False

    def processes(self):
        """{pid: command line} of all living processes that descend from this search's drivers."""
        return processes_with(str(self.folder))

    def workers(self):
        """The processes that train."""
        return [pid for pid, command in sorted(self.processes().items()) if command.startswith("ray::ImplicitFunc")]

    def no_process_left(self, seconds=15.0):
        """Whether all processes are gone within `seconds`."""
        return gone(self.processes, seconds)

    def kill(self, process):
        """SIGKILL to the driver. What it started to train dies with it."""
        process.kill()
        process.communicate()
        assert gone(self.workers, 15.0)

    def kill_worker(self, rng):
        """SIGKILL to a process that trains; False where there is none at the moment."""
        workers = self.workers()
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
        return bool(workers)

    def tables(self):
        """trials.csv and history.csv without the columns that are times; of a checkpoint only whether there is one."""
        trials, history = (
            pd.read_csv(self.folder / name, dtype={"trial_id": str}).drop(columns=TIMES)
            for name in ("trials.csv", "history.csv")
        )
        trials["checkpoint"] = trials["checkpoint"].notna()
        return trials, history


def processes_with(marker):
    """{pid: command line} of all living processes whose environment has MARKER=`marker`."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                inherited = f"{MARKER}={marker}\0".encode() in (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                if inherited and state != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
    return found


def gone(find, seconds):
    """Whether find() finds nothing any more within `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not find():
            return True
        time.sleep(0.1)
    return False


def assert_same(first, second):
    for expected, found in zip(first.tables(), second.tables(), strict=True):
        pd.testing.assert_frame_equal(expected, found, check_exact=True)


def kill_drivers(search, kills, seed, most_events):
    """Starts the search and SIGKILLs its driver, again and again; returns how many times that hit a living one."""
    rng, hits = random.Random(seed), 0
    for _ in range(kills):
        process = search.start()
        if rng.random() < 0.2:  # while it starts
            time.sleep(rng.uniform(0, 6))
        else:
            search.wait_for_events(process, len(search.events()) + rng.randint(1, most_events))
            time.sleep(rng.uniform(0, 0.2))
        hits += process.poll() is None
        search.kill(process)
    return hits


def kill_workers(search, process, kills, seed, least, most):
    """SIGKILLs training processes of a running search, `least` to `most` seconds apart; returns how many it hit."""
    rng, hits = random.Random(seed), 0
    while hits < kills and process.poll() is None:
        time.sleep(rng.uniform(least, most))
        hits += search.kill_worker(rng)
    return hits
