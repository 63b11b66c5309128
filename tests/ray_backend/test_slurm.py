"""The batch file for Slurm: what it says, and that a search in it survives a signal, a lost node, and two nodes."""

import os
import shutil
import signal
import subprocess
import time

import pandas as pd
import pytest
from conftest import ROOT, run_command_line

SLURM = ("munged", "slurmctld", "slurmd", "sbatch")
CONFIG = """
ClusterName=test
SlurmctldHost=localhost
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldPort=26817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmdTimeout=10
KillWait=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[26818-26819] CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
"""two nodes of one core each on one machine"""


def write(byte_files, tmp_path, *flags):
    """Writes a batch file; returns (the finished command, the file, the run's folder)."""
    train, val = byte_files
    data = ["--train_file", train, "--val_file", val, "--num_samples", "6", "--budget_tokens", "65536"]
    place = ["--storage_path", tmp_path / "runs", "--name", "night", "--slurm", tmp_path / "night.sbatch"]
    done = run_command_line("tune/search.py", *data, *place, *flags)
    return done, tmp_path / "night.sbatch", tmp_path / "runs" / "night"


def test_the_batch_file_runs_the_same_search(byte_files, tmp_path):
    done, file, run = write(byte_files, tmp_path, "--time_budget", "2h")
    assert done.returncode == 0 and done.stdout.strip().endswith(f"sbatch {file}"), done.stderr
    text = file.read_text()
    assert subprocess.run(["bash", "-n", file], check=False).returncode == 0
    assert "#SBATCH --time=135\n" in text and "--slurm" not in text
    assert f"--budget_tokens 65536 --storage_path {run.parent} --name night --time_budget 2h)" in text
    assert not run.exists()
    again, _, _ = write(byte_files, tmp_path)
    assert again.returncode == 2 and again.stderr.startswith(f"error: --slurm {file} exists")


def test_a_resumed_search_is_written_as_one(tmp_path):
    shutil.copytree(ROOT / "tests" / "recorded" / "nano-v2", tmp_path / "run")
    file = tmp_path / "more.sbatch"
    done = run_command_line("tune/search.py", "--resume", tmp_path / "run", "--num_samples", "40", f"--slurm={file}")
    if done.returncode == 0:
        assert f"--resume {tmp_path / 'run'} --num_samples 40" in file.read_text()
    else:
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr  # its data may not be on this machine


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm of two nodes; returns the function that starts a node."""
    if os.getuid() or not all(map(shutil.which, SLURM)):
        pytest.skip("needs Slurm's programs, and root")
    folder = tmp_path / "slurm"
    (folder / "state").mkdir(parents=True)
    (folder / "slurm.conf").write_text(CONFIG.format(folder=folder))
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munge = {"key-file": "key", "socket": "sock", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    names = [f"--{flag}={folder}/munge.{ending}" for flag, ending in munge.items()]
    daemons = [subprocess.Popen(["munged", "--foreground", "--force", *names])]
    wait_for(lambda: (folder / "munge.sock").exists())
    daemons.append(subprocess.Popen(["slurmctld", "-D"]))

    def node(name):
        daemons.append(subprocess.Popen(["slurmd", "-D", "-N", name]))
        return daemons[-1]

    nodes = [node("n1"), node("n2")]
    wait_for(lambda: "idle n[1-2]" in " ".join(said("sinfo", "--noheader").split()))
    yield node, nodes
    subprocess.run(["scancel", "--user=root"], check=False)
    time.sleep(2)
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.wait()


def said(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def wait_for(true, seconds=300):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def submit(file, *flags):
    """Submits a batch file; returns the job's number."""
    return said("sbatch", "--parsable", *flags, file).strip()


def at_once(job):
    """Slurm lets a job that starts anew wait for two minutes."""
    wait_for(lambda: "PD" in said("squeue", "--noheader", "--job", job))
    wait_for(lambda: not subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False).returncode)


def table(run):
    trials = pd.read_csv(run / "trials.csv")
    return trials[["trial_id", "status", "val_loss", "tokens_seen"]]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_search_survives_its_time_limit_and_a_lost_node(slurm, byte_files, tmp_path):
    node, _ = slurm
    one = ["--max_concurrent", "1", "--cpus_per_trial", "1"]
    done, file, run = write(byte_files, tmp_path, *one)
    assert done.returncode == 0, done.stderr
    job, log = submit(file, "--nodelist", "n1"), run.with_name("night.slurm.log")
    journal = run / "journal.jsonl"
    wait_for(lambda: journal.exists() and journal.read_text().count('"report"') >= 3)
    said("scancel", "--signal=USR1", "--batch", job)  # as Slurm does before the limit
    wait_for(lambda: "interrupted; go on with" in log.read_text())
    at_once(job)
    reports = journal.read_text().count('"report"')
    wait_for(lambda: journal.read_text().count('"report"') >= reports + 3)
    for pattern in ("slurmd -D -N n1", "slurmstepd", f"slurm_script|{run}"):  # Slurm is not to see the job end
        for process in said("pgrep", "-f", pattern).split():
            os.kill(int(process), signal.SIGKILL)
    at_once(job)
    node("n1")
    wait_for(lambda: not said("squeue", "--noheader").strip(), 600)
    alone = run_command_line("tune/search.py", *_same(byte_files, tmp_path), *one)
    assert alone.returncode == 0, alone.stderr
    pd.testing.assert_frame_equal(table(run), table(tmp_path / "alone" / "night"))


def _same(byte_files, tmp_path):
    train, val = byte_files
    data = ["--train_file", train, "--val_file", val, "--num_samples", "6", "--budget_tokens", "65536"]
    return [*data, "--storage_path", tmp_path / "alone", "--name", "night"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_nodes_are_one_cluster(slurm, byte_files, tmp_path):
    done, file, run = write(byte_files, tmp_path)
    assert done.returncode == 0, done.stderr
    submit(file, "--nodes", "2")
    log = run.with_name("night.slurm.log")
    wait_for(lambda: not said("squeue", "--noheader").strip(), 600)
    text = log.read_text()
    assert "2 at once" in text and "report: file" in text, text
    assert (table(run)["status"] == "completed").any()
