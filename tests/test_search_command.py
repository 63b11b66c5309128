"""search.py and report.py as people run them: real Ray, tiny budgets."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from conftest import ROOT, run_command_line, summary

from myllm.presets import PRESETS
from myllm.system.errors import InputError
from tune.config.command_line import read_experiment
from tune.config.options import SearchOptions
from tune.config.overrides import list_spaces
from tune.config.resolve import Resources, resolve_search
from tune.core.search_space import SPACES
from tune.ray_backend.tuner import run_search
from tune.search import resume, search, start

RUNS = ROOT / "experiments" / "runs"
TIMES = ["train_seconds", "tok_per_sec", "checkpoint"]


@pytest.fixture
def run_name(request):
    """A run name of this test alone; its folder is removed afterwards."""
    name = f"test-{request.node.name}-{time.time_ns()}"
    yield name
    shutil.rmtree(RUNS / name, ignore_errors=True)


@pytest.fixture
def small(byte_files, run_name):
    """Flags of a search that takes seconds: the least budget, on tiny files."""
    train, val = byte_files
    flags = [
        "--train_file",
        train,
        "--val_file",
        val,
        "--budget_tokens",
        "262144",
        "--num_samples",
        "2",
        "--replicate_best",
        "0",
    ]
    flags += ["--scheduler", "asha"]
    return ["tune/search.py", *map(str, flags), "--max_concurrent", "1", "--name", run_name]


def tables(run_dir):
    read = [pd.read_csv(run_dir / name, dtype={"trial_id": str}) for name in ("trials.csv", "history.csv")]
    return [table.drop(columns=TIMES, errors="ignore") for table in read]


@pytest.mark.timeout(500)
def test_interrupted_and_resumed_equals_never_stopped(small, run_name):
    whole, broken = RUNS / run_name, RUNS / f"{run_name}-broken"
    try:
        done = run_command_line(*small)
        assert done.returncode == 0, done.stdout + done.stderr
        for word in ("best        trial", "baseline    trial t00000", "--resume", "trainer.py --config", "2 of 2"):
            assert word in done.stdout, done.stdout
        assert {p.name for p in whole.iterdir()} - {"ray.log"} == {
            *("search.json", "journal.jsonl", "trials.csv", "history.csv", "best_config.json", "report.html", "ray"),
            *("summary.txt", "summary.json", "figures", "tensorboard"),
        }

        process = subprocess.Popen(
            [sys.executable, *small[:-1], broken.name],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        journal = broken / "journal.jsonl"
        while not (journal.exists() and journal.read_text().count('"report"') >= 5):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output = process.communicate(timeout=60)[0]
        assert process.returncode == 130, output
        assert f"--resume experiments/runs/{broken.name}" in output

        done = run_command_line("tune/search.py", "--resume", broken)
        assert done.returncode == 0, done.stdout + done.stderr
        for expected, found in zip(tables(whole), tables(broken), strict=True):
            pd.testing.assert_frame_equal(expected, found, check_exact=True)

        assert f"report: {(broken / 'report.html').as_uri()}" in done.stdout and "nothing was left" not in done.stdout
        again = run_command_line("tune/search.py", "--resume", broken)
        assert "note: nothing was left to do; a larger --num_samples goes on" in again.stdout, again.stdout
        dry = run_command_line("tune/search.py", "--resume", broken, "--dry_run")
        assert dry.returncode == 0 and "  nothing is left to do; a larger --num_samples goes on" in dry.stdout, dry.stdout

        report = run_command_line("tune/report.py", broken)
        assert "2 of 2" in report.stdout and report.returncode == 0
        marks = pd.read_csv(broken / "history.csv").groupby("trial_id")["tokens_seen"]
        assert all(list(seen) == [8192 * (i + 1) for i in range(len(seen))] for _, seen in marks)

        config = json.loads((whole / "best_config.json").read_text())
        config["train"]["budget_tokens"] = 16384
        (broken / "best_config.json").write_text(json.dumps(config))
        trained = run_command_line("myllm/training/trainer.py", "--config", broken / "best_config.json")
        assert trained.returncode == 0 and "sample: " in trained.stdout, trained.stderr
        state = next((whole / "ray").rglob("state.pt"))
        assert "model_config" in __import__("torch").load(state, weights_only=True)

        for flag, other in (("preset", "micro"), ("budget_tokens", 524288), ("rung_metric", "val_loss_ema")):
            with pytest.raises(InputError, match=f"--{flag} can't change on --resume, it is "):
                resume({"resume": str(broken), flag: other})
        stored = json.loads((broken / "search.json").read_text())
        stored["data"]["fingerprint"]["val"] = {"of": "another file"}
        (broken / "search.json").write_text(json.dumps(stored))
        with pytest.raises(InputError, match=r"val\.bin has changed since the search began"):
            resume({"resume": str(broken)})
        again = run_command_line(*small)
        assert again.returncode == 2 and "exists; go on with: " in again.stderr
    finally:
        shutil.rmtree(broken, ignore_errors=True)


def test_on_resume_what_is_meant_counts_not_how_it_is_written(byte_files, tmp_path, monkeypatch):
    monkeypatch.setattr("tune.ray_backend.begin.cache_dir", lambda: tmp_path / "cache")
    train, val = map(str, byte_files)
    options = dict(range=("learning_rate=1e-4:3e-3", "dropout=0:0.3"), choices=("batch_size=8,16",), set=("beta1=0.8",))
    search = resolve_search(
        SearchOptions(train_file=(train,), val_file=(val,), budget_tokens=262144, name="x", **options), tmp_path / "cache"
    )
    search.write(tmp_path)
    again = {"range": ["learning_rate = 0.0001:.003:LOG"], "choices": ["batch_size=16,8"], "set": ["beta1=0.80"]}
    assert resume({"resume": str(tmp_path), **again})[1] == search
    for flag, text in (
        ("range", "learning_rate=1e-4:2e-3"),
        ("range", "learning_rate=1e-4:3e-3:linear"),
        ("range", "clip_norm=0.5:2"),
        ("choices", "dropout=0,0.3"),
        ("set", "beta1=0.9"),
        ("set", "dropout=0"),
    ):
        with pytest.raises(InputError, match=f"--{flag} can't change on --resume, it is "):
            resume({"resume": str(tmp_path), flag: [text]})

    moved = {"train_file": [f"{tmp_path}/t.bin"], "val_file": [f"{tmp_path}/v.bin"]}
    for (name,), source in zip(moved.values(), (train, val), strict=True):
        shutil.copy(source, name)
    found = resume({"resume": str(tmp_path)} | moved)[1]
    assert found.data.train_file == moved["train_file"] and found.options.val_file == tuple(moved["val_file"])
    assert found.data.prepared["val"]["paths"] == moved["val_file"] and found.data.fingerprint == search.data.fingerprint
    with pytest.raises(InputError, match=r"t\.bin has changed since the search began"):
        resume({"resume": str(tmp_path), "val_file": moved["train_file"]})


@pytest.mark.parametrize(
    ("part", "field", "value", "status"),
    [("training", "weight_decay", 1e30, "diverged"), ("model", "block_size", 64, "failed")],
)
def test_trials_that_end_badly_are_kept_with_the_reason(part, field, value, status, tmp_path, byte_files):
    train, val = map(str, byte_files)
    config = SearchOptions(train_file=(train,), val_file=(val,), num_samples=1, budget_tokens=262144, name="x", space="v1")
    search = resolve_search(config, tmp_path)
    search = dataclasses.replace(search, **{part: dataclasses.replace(getattr(search, part), **{field: value})})
    assert run_search(tmp_path, search, Resources(1, 0, 1))
    trials = pd.read_csv(tmp_path / "trials.csv")
    assert trials["status"].tolist() == [status] and trials["tokens_seen"][0] <= 16384
    assert not (tmp_path / "best_config.json").exists()
    assert f"1 {status}" in summary(tmp_path)
    if status == "failed":
        assert "max_len 128 exceeds the model's block_size of 64" in summary(tmp_path)
        assert "in run_trial" in (tmp_path / "error-t00000.txt").read_text()


def test_time_that_is_long_over_ends_what_runs(small, run_name):
    """Without rungs nothing pauses, and how long a training takes is not known when the first begins."""
    flags = [*small, "--scheduler", "fifo", "--budget_tokens", "4194304", "--time_budget", "10"]
    began = time.time()
    done = run_command_line(*flags)
    assert done.returncode == 0 and time.time() - began < 40, done.stdout + done.stderr
    trials = pd.read_csv(RUNS / run_name / "trials.csv")
    assert (
        trials["status"].tolist() == ["running"]
        and "1 interrupted" in done.stdout
        and 0 < trials["tokens_seen"][0] < 4194304
    )


def test_bad_input_is_one_line_and_exit_code_2_before_ray_starts(byte_files, tmp_path):
    train, val = map(str, byte_files)
    data = ["--train_file", train, "--val_file", val]
    files = {
        "empty.bin": b"",
        "odd.bin": b"abc",
        "short.bin": b"a\0" * 100,
        "few.bin": b"a\0" * 1000,
        "beyond.bin": b"\xff\xff" * 10000,
        "latin.txt": b"\xe9" * 100,
        "bad.toml": b'colour = "red"',
        "type.toml": b'num_samples = "many"',
        "variable.toml": b'train_file = "$NOT_SET_ANYWHERE/x.bin"',
        "broken.toml": b"=",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    def file(name):
        return ["--train_file", str(tmp_path / name), "--val_file", val, "--tokenizer", "byte"]

    cases = [
        (file("missing.bin"), "no such file"),
        (file("empty.bin"), "empty"),
        (file("odd.bin"), "whole number"),
        (file("short.bin"), "fewer than one window"),
        (file("few.bin"), "largest batch"),
        (file("beyond.bin"), "beyond the vocabulary"),
        (file("latin.txt"), "not UTF-8"),
        (["--train_file", train], "belong together"),
        (["--tokenizer", "klingon"], "--tokenizer 'klingon'"),
        (["--preset", "huge"], "--preset 'huge'"),
        (["--space", "v9"], "--space 'v9'"),
        (["--scheduler", "magic"], "--scheduler 'magic'"),
        ([*data, "--budget_tokens", "1000"], "at least 2048"),
        ([*data, "--gpus_per_trial", "99"], "--gpus_per_trial is 99"),
        (["--gpus_per_trial", "1.5"], "--gpus_per_trial is 1.5; it must be a share below 1 or a whole number"),
        ([*data, "--processes_per_trial", "9999"], "--processes_per_trial is 9999, but there are"),
        (["--processes_per_trial", "some"], "neither a number nor auto"),
        (["--processes_per_trial", "auto", "--budget_seconds", "60"], "--budget_seconds needs equal processes"),
        (["--processes_per_trial", "auto", "--gpus_per_trial", "0.5"], "--processes_per_trial auto takes whole GPUs"),
        ([*data, "--set", "batch_size=3", "--processes_per_trial", "2"], "batch_size 3 can't be divided among the 2"),
        ([*data, "--cpus_per_trial", "9999"], "--cpus_per_trial is 9999"),
        (["--num_samples", "0"], "--num_samples is 0"),
        (["--mlflow", "mlruns"], "--mlflow 'mlruns' is a folder"),
        (["--time_budget", "soon"], "'soon' is no time"),
        (["--time_budget", "3"], "--time_budget is 3 s; it must be 10 or more"),
        (["--num_samples", "100000"], "from 1 to 99999"),
        (["--gpus_per_trial", "nan"], "--gpus_per_trial is nan"),
        (["--gpus_per_trial", "inf"], "--gpus_per_trial is inf"),
        (["--budget_tokens", "-5"], "--budget_tokens is -5"),
        (["--reduction_factor", "1"], "--reduction_factor is 1"),
        (["--rungs", "0.5:1"], "--rungs is '0.5:1'"),
        (["--rungs", "0.5:2", "--grace_period", "0.1"], "--rungs says all"),
        (["--rung_metric", "train_loss"], "--rung_metric 'train_loss'"),
        (["--searcher", "magic"], "--searcher 'magic'"),
        (["--keep_checkpoints", "none"], "--keep_checkpoints 'none'"),
        (["--max_failures", "-1"], "--max_failures is -1"),
        (["--storage_path", "klingon://x"], "--storage_path klingon://x"),
        (["--allow_other_owner"], "--allow_other_owner belongs to --resume"),
        (["--grace_period", "1.5"], "--grace_period is 1.5"),
        (["--replicate_best", "-1"], "--replicate_best is -1"),
        (["--audit_fraction", "0"], "--audit_fraction is 0"),
        (["--audit_fraction", "1.5"], "above 0 and at most 1"),
        (["--audit_fraction", "nan"], "--audit_fraction is nan"),
        (["--max_concurrent", "0"], "--max_concurrent is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--name", "../escape"], "--name '../escape'"),
        (["--num_samples", "many"], "invalid int value"),
        (["--resume", str(tmp_path)], "no run folder"),
        ([*data, "--address", "127.0.0.1:1"], "--address 127.0.0.1:1"),
        (["--experiment", str(tmp_path / "bad.toml")], "'colour'"),
        (["--experiment", str(tmp_path / "type.toml")], "num_samples is 'many'"),
        (["--experiment", str(tmp_path / "variable.toml")], "not set"),
        (["--experiment", str(tmp_path / "broken.toml")], "not TOML"),
        (["--experiment", str(tmp_path / "missing.toml")], "no such file"),
    ]
    before = set(RUNS.iterdir()) if RUNS.exists() else set()
    script = (  # one process for all cases: importing torch thirty times would take a minute
        "import sys, json, contextlib, io, ray\n"
        "from tune.search import main\n"
        "from myllm.system.errors import run_command\n"
        "for arguments in json.load(sys.stdin):\n"
        "    sys.argv = ['search.py', *arguments]\n"
        "    errors = io.StringIO()\n"
        "    with contextlib.redirect_stderr(errors):\n"
        "        try:\n"
        "            run_command(main)\n"
        "        except SystemExit as end:\n"
        "            print(json.dumps([end.code, errors.getvalue(), ray.is_initialized()]))\n"
    )
    done = run_command_line("-c", script, input=json.dumps([arguments for arguments, _ in cases]))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(cases), done.stderr
    for (arguments, word), (code, message, ray_started) in zip(cases, answers, strict=True):
        assert code == 2 and word in message, (arguments, message)
        assert message.startswith("error: ") and message.count("\n") == 1, message
        assert not ray_started
    assert (set(RUNS.iterdir()) if RUNS.exists() else set()) - before <= {RUNS / ".cache"}


class Started(Exception):
    """The search got as far as Ray."""


def test_two_searches_of_one_second_have_folders_of_their_own(byte_files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tune.ray_backend.begin.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr("time.strftime", lambda form: "20260101-000000")
    train, val = ([str(path)] for path in byte_files)
    given = {"train_file": train, "val_file": val, "budget_tokens": 262144, "storage_path": str(tmp_path)}
    begun = []

    class Runtime:
        def start(self, options, resources):
            begun.append(options.name)
            raise Started

    checked = [start(dict(given)) for _ in range(3)]  # all are checked before the first makes its folder
    for run_dir, spec in (*checked, start(dict(given))):
        with pytest.raises(Started):
            search(run_dir, spec, Resources(1, 0, 1), Runtime(), resumed=False)
    name = "nano-v2-20260101-000000"
    assert begun == [name, f"{name}-2", f"{name}-3", f"{name}-4"] and all((tmp_path / one).is_dir() for one in begun)
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"note: {name} is taken; this search is in ") and said.endswith(f"/{name}-2")

    checked = [start(given | {"name": "mine"}) for _ in range(2)]
    with pytest.raises(Started):
        search(*checked[0], Resources(1, 0, 1), Runtime(), resumed=False)
    with pytest.raises(InputError, match=r"^--name mine: .*/mine exists; go on with: .* or choose another name$"):
        search(*checked[1], Resources(1, 0, 1), Runtime(), resumed=False)


def test_a_dry_run_tells_what_a_search_will_take_and_leaves_nothing_behind(byte_files, run_name):
    train, val = map(str, byte_files)
    flags = ["--train_file", train, "--val_file", val, "--budget_tokens", "262144", "--name", run_name]
    flags += ["--time_budget", "1h30m", "--audit_fraction", "0.01"]
    done = run_command_line("tune/search.py", *flags, "--max_concurrent", "1", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "1 h 30 min of trials" in done.stdout and not (RUNS / run_name).exists()
    for word in ("step", "trials", "rungs", "audit", "tokens", "time", "disk", "memory"):
        assert f"\n  {word} " in done.stdout, done.stdout
    assert "about 1 h 2" in done.stdout or "about 1 h 3" in done.stdout, done.stdout


def test_report_of_no_run_is_an_error(tmp_path):
    done = run_command_line("tune/report.py", tmp_path)
    assert done.returncode == 2 and "no run folder" in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.toml")), ids=lambda p: p.name)
def test_every_shipped_experiment_parses(path, monkeypatch):
    monkeypatch.setenv("TINYSHAKESPEARE", "/data")
    monkeypatch.setenv("OPENWEBTEXT", "/data")
    SearchOptions(**read_experiment(str(path), {}))


@pytest.mark.parametrize("preset", PRESETS)
def test_list_spaces_shows_every_range_and_the_reference(preset):
    text, at_its_budget = list_spaces(preset), PRESETS[preset].at(PRESETS[preset].budget_tokens)
    for name, space in SPACES.items():
        assert f"{name}: training loop {space.version}" in text
        for parameter, distribution in space.ranges(at_its_budget).items():
            assert f"{parameter:16} {distribution}; baseline " in text


@pytest.mark.slow
def test_a_search_at_equal_time_and_its_winner(byte_files, run_name):
    train, val = byte_files
    data = ["--train_file", train, "--val_file", val]
    flags = ["--budget_seconds", "6s", "--choices", "batch_size=2,16", "optimizer=adamw,muon", "--num_samples", "6"]
    flags += ["--set", "n_layer=1", "n_embd=16", "n_head=1", "block_size=32"]
    done = run_command_line("tune/search.py", *data, *flags, "--space", "v1", "--rungs", "0.25:2", "--name", run_name)
    assert done.returncode == 0, done.stderr
    trials = pd.read_csv(RUNS / run_name / "trials.csv", dtype={"trial_id": str})
    ended = trials[trials["status"] == "completed"]
    assert len(ended) > 1 and set(trials["status"]) <= {"completed", "paused"}
    assert ended["tokens_seen"].nunique() > 1  # each as many as it could
    events = [json.loads(line) for line in (RUNS / run_name / "journal.jsonl").read_text().splitlines()]
    reports = [event for event in events if event["event"] == "report"]
    assert {round(event["budget_seconds"], 6) for event in reports} <= {round(0.188 * part, 6) for part in range(33)}
    assert any(event["event"] == "resume" for event in events)
    more = run_command_line("myllm/training/trainer.py", *data, "--config", RUNS / run_name / "best_config.json")
    assert more.returncode == 0 and more.stdout.count("val_loss") == 32, more.stderr
