"""Training programs of the user's own: commands as people have them, and a function of ten lines."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pandas as pd
import psutil
import pytest
from conftest import BUDGET, ROOT, begun, report, run_command_line

from myllm.system.errors import InputError
from tune.config.options import SearchOptions
from tune.config.resolve_program import notes, program_options, resolve_program
from tune.config.spec import read_search
from tune.core.events import TrialFailed
from tune.core.trials import Trials
from tune.ray_backend.failures import why_hopeless
from tune.ray_backend.programs import first_report, open_program, process
from tune.ray_backend.programs.command import PENDING
from tune.ray_backend.programs.first_report import FirstReport
from tune.ray_backend.programs.process import ProgramLostError, json_report, pattern_parser
from tune.ray_backend.programs.reports import NoReportError, ProgramError, ReportPoints
from tune.ray_backend.trainable import Segment
from tune.store.checkpoints import Storage, read_place, write_place

PROGRAMS = ROOT / "tests" / "programs"
REPORT = r"step (?P<step>\d+): val loss (?P<loss>\S+)"
WORDS = "--rate={rate} --iters={budget} --every={report_every} --out={folder} --seed={seed}"
OPTIONS = dict(range=("rate=1e-3:1e-1",), budget=32, report=REPORT, checkpoint=("ckpt.json",), resume_args="--init=resume")


def searched(how="well", more="", **changes):
    """The settings of a search of the stand-in program, which behaves as `how` says."""
    line = f"{sys.executable} {PROGRAMS / 'stand_in.py'} {WORDS} --how={how} --pause=0.01 {more}"
    values = program_options({"command": line} | OPTIONS | changes)
    return resolve_program(SearchOptions(**values))


def opened(search, folder, resume=False, rate=0.1):
    """(the reports of a trial's program, its folder for checkpoints, the file of its output)."""
    kept = folder / "checkpoint"
    kept.mkdir(parents=True, exist_ok=True)
    program = open_program(search, 1, 0, 1, str(folder / "output.txt"))
    return program({"rate": rate}, search.budget_tokens, kept, resume), kept, folder / "output.txt"


def points(search, reports, rungs=(8,), tokens=0):
    segment = Segment(reports, 0.0)
    return ReportPoints(search, {"rate": 0.1}, rungs, tokens, 0.0).of(segment), segment


def started_with(marker):
    """The processes whose command line has `marker`."""
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found += [one] if any(str(marker) in word for word in one.cmdline()) else []
    return found


def test_a_command_reports_each_point_once_and_ends(tmp_path):
    search = searched()
    reports, _, output = opened(search, tmp_path)
    with contextlib.closing(reports):
        found = list(points(search, reports)[0])
    assert [one["tokens_seen"] for one in found] == list(range(1, 33)) and not any(one["diverged"] for one in found)
    assert found[0]["val_loss"] == pytest.approx(0.95) and found[-1]["val_loss"] == pytest.approx(0.95**32, abs=1e-6)
    assert found[3]["train_seconds"] > found[2]["train_seconds"] > 0 and "step 32:" in output.read_text()


@pytest.mark.parametrize(("how", "changes"), [("twice", {}), ("json", {"report": None})])
def test_reports_printed_twice_and_json_lines_count_once(tmp_path, how, changes):
    search = searched(how, **changes)
    reports, *_ = opened(search, tmp_path)
    with contextlib.closing(reports):
        assert [one["tokens_seen"] for one in points(search, reports)[0]] == list(range(1, 33))


def test_a_command_goes_on_from_the_checkpoint_of_the_place_where_it_was_stopped(tmp_path):
    search = searched(more="--step_seconds=0")
    reports, kept, _ = opened(search, tmp_path / "first")
    counted, segment = points(search, reports)
    *_, last = islice(counted, 8)
    assert segment.save(kept)
    saved = json.loads((kept / "ckpt.json").read_text())["step"]
    pending = json.loads((kept / PENDING).read_text()) if (kept / PENDING).exists() else []
    assert saved >= 8 and [one["step"] for one in pending][-1:] in ([saved], [], [saved + 1])
    write_place(kept, last["tokens_seen"], last["train_seconds"])
    reports.close()
    assert not started_with(tmp_path / "first")

    (tmp_path / "second").mkdir()
    kept.rename(tmp_path / "second" / "checkpoint")
    tokens, seconds = read_place(tmp_path / "second" / "checkpoint")
    assert (tokens, seconds) == (8, last["train_seconds"])
    reports, *_ = opened(search, tmp_path / "second", resume=True)
    with contextlib.closing(reports):
        found = list(points(search, reports, tokens=tokens)[0])
    assert [one["tokens_seen"] for one in found] == list(range(9, 33))
    assert found[-1]["val_loss"] == pytest.approx(0.95**32, abs=1e-6) and found[0]["train_seconds"] > seconds


def test_nan_ends_the_trial_as_diverged(tmp_path):
    search = searched("nan")
    reports, *_ = opened(search, tmp_path)
    with contextlib.closing(reports):
        *_, last = points(search, reports)[0]
    assert last["diverged"] and last["tokens_seen"] == 17


def test_a_silent_program_fails_with_the_last_line_of_its_output(tmp_path):
    search = searched("silent", stall_timeout=1.0)
    reports, *_ = opened(search, tmp_path)
    with contextlib.closing(reports), pytest.raises(ProgramError, match=r"nothing for 1 s .*last line .*step 0"):
        list(points(search, reports)[0])
    assert not started_with(tmp_path)


@pytest.mark.parametrize(
    ("how", "changes", "words"),
    [
        ("well", {"report": r"epoch (?P<step>\d+): (?P<loss>\S+)"}, "33 lines of output like 'step 32: .*none fits"),
        ("well", {"report": None}, "none is JSON"),
        ("mute", {}, "has printed nothing"),
        ("json", {"report_file": "metrics.jsonl", "report": None}, "there is no file metrics.jsonl"),
        ("file", {"report_file": "metrics.jsonl"}, "no line of --report_file metrics.jsonl fits --report"),
    ],
)
def test_where_no_report_is_read_the_error_says_what_came_instead(tmp_path, how, changes, words):
    search = searched(how, "--pause=0", **changes)
    reports, *_ = opened(search, tmp_path)
    with contextlib.closing(reports), pytest.raises(NoReportError, match=words):
        list(points(search, reports)[0])


def test_one_trial_without_a_readable_report_ends_a_search_that_has_none():
    reason = "NoReportError: there is no file metrics.jsonl"
    both, failed = [begun("t00000"), begun("t00001")], TrialFailed(trial_id="t00000", reason=reason)
    assert why_hopeless(Trials(BUDGET, 9, events=[*both, failed])) == f"trial t00000 failed with: {reason}"
    assert why_hopeless(Trials(BUDGET, 9, events=[*both, report("t00001", 100, 3.0), failed])) is None
    other = TrialFailed(trial_id="t00000", reason="ValueError: else")
    assert why_hopeless(Trials(BUDGET, 9, events=[*both, other])) is None


@pytest.mark.parametrize(
    ("output", "pattern", "said"),
    [
        ("step 1: loss 3.2\nsaving\n", "epoch", "t00000 prints lines like 'step 1: loss 3.2', which --report does not fit"),
        ("loss 3 at 1\nloading\n", None, "t00000 prints lines like 'loss 3 at 1', which is no JSON report"),
        ("loading\nno loss yet\n", None, None),
        ("step 1: loss 3.2\n", "step", None),
        ("", "epoch", None),
    ],
)
def test_output_without_a_report_is_told_early_and_once(tmp_path, monkeypatch, capsys, output, pattern, said):
    monkeypatch.setattr(first_report, "PATIENCE_SECONDS", -1.0)
    monkeypatch.setattr(first_report, "LOOK_SECONDS", 0.0)
    watch = FirstReport(tmp_path, searched(report=pattern and rf"{pattern} (?P<step>\d+): loss (?P<loss>\S+)"))
    watch.check(Trials(BUDGET, 9))  # nothing has begun
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "t00000.txt").write_text(output)
    watch.check(Trials(BUDGET, 9))
    watch.check(Trials(BUDGET, 9))
    told = capsys.readouterr().err
    assert told.count("no report yet") == bool(said) and (said or "") in told


def test_a_pattern_without_a_step_counts_reports_from_the_checkpoint_on(tmp_path):
    search = searched(report=r"val loss (?P<loss>\S+)", checkpoint=("ckpt-*.json",))
    parse = pattern_parser(search.options.report, 8, 4)
    assert [parse(f"val loss {loss}") for loss in (3.0, 2.0)] == [{"loss": 3.0, "step": 12}, {"loss": 2.0, "step": 16}]
    kept = tmp_path / "checkpoint"
    kept.mkdir()
    (kept / "ckpt-24.json").write_text("")
    (kept / "ckpt.json").write_text(json.dumps({"loss": 0.5, "step": 25}))
    write_place(kept, 24, 1.0)
    reports, *_ = opened(search, tmp_path, resume=True)
    with contextlib.closing(reports):
        assert [one["tokens_seen"] for one in points(search, reports, tokens=24)[0]] == list(range(25, 33))


def test_a_machine_that_lacks_the_programs_folder_says_so(tmp_path):
    search = searched()
    moved = dataclasses.replace(search, program=dataclasses.replace(search.program, folder=str(tmp_path / "gone")))
    with pytest.raises(ProgramError, match="/gone, where the search was started, is no folder on this machine; all must"):
        opened(moved, tmp_path)


@pytest.mark.parametrize("how", ["deaf", "forks"])
def test_nothing_is_left_of_a_program_that_ignores_sigterm_or_forks(tmp_path, monkeypatch, how):
    monkeypatch.setattr(process, "STOP_SECONDS", 0.3)
    search = searched(how)
    reports, *_ = opened(search, tmp_path)
    counted, _ = points(search, reports)
    next(counted)
    assert len(started_with(tmp_path)) >= 2  # the supervisor and the program
    reports.close()
    assert not started_with(tmp_path)


def test_a_worker_that_is_killed_takes_its_program_along(tmp_path):
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from pathlib import Path; from test_programs import opened, searched\n"
        "reports, *_ = opened(searched('forks'), Path(sys.argv[2])); next(reports); print('on', flush=True)\n"
        "import time; time.sleep(60)"
    )
    words = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as worker:
        assert worker.stdout.readline() == b"on\n" and len(started_with(tmp_path)) >= 3
        worker.kill()
    end = time.monotonic() + 10
    while started_with(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert not started_with(tmp_path)


def test_exit_codes_and_signals_tell_a_failure_from_a_loss(tmp_path):
    search = searched("crashes")
    reports, *_ = opened(search, tmp_path / "crashes")
    with contextlib.closing(reports), pytest.raises(ProgramError) as failed:
        list(points(search, reports)[0])
    assert str(failed.value).splitlines()[-1] == "ProgramError: exit code 1: ValueError: the rate is too high"
    search = searched("killed")
    reports, *_ = opened(search, tmp_path / "killed")
    with contextlib.closing(reports), pytest.raises(ProgramLostError, match="SIGKILL"):
        list(points(search, reports)[0])


def test_a_program_that_ends_early_or_skips_a_rung_says_so(tmp_path):
    search = searched()
    segment = [{"step": step, "val_loss": 1.0} for step in (4, 8)]
    with pytest.raises(ProgramError, match="after its report at 8 of 32 iterations"):
        list(points(search, iter(segment), rungs=())[0])
    with pytest.raises(ProgramError, match="step 12 and has not reported 8"):
        list(points(search, iter([{"step": 4, "val_loss": 1.0}, {"step": 12, "val_loss": 1.0}]))[0])
    with pytest.raises(ProgramError, match="whole"):
        list(points(search, iter([{"val_loss": 1.0}]))[0])


def test_steps_that_count_from_zero_come_to_the_same_points():
    search = dataclasses.replace(searched(), report_tokens=8)
    sparse = [{"step": step, "val_loss": 1.0} for step in (0, 7, 15, 23, 31)]
    dense = [{"step": step, "val_loss": 1.0} for step in range(32)]
    for reports in (sparse, dense):
        assert [one["tokens_seen"] for one in points(search, iter(reports), rungs=())[0]] == [8, 16, 24, 32]


def test_larger_batches_have_fewer_steps_of_the_same_tokens():
    search = searched(
        "well", "--n={n}", range=("rate=1e-3:1e-1",), choices=("n=2,4",), tokens_per_step="{n} * 8", budget=1024
    )
    assert search.unit == "tokens" and search.budget_tokens == 1024 and search.report_tokens == 32
    small, large = (search.values({"rate": 0.1, "n": n}) for n in (2, 4))
    assert (small["budget"], small["report_every"]) == (64, 2) and (large["budget"], large["report_every"]) == (32, 1)
    with pytest.raises(InputError, match="n is a range"):
        searched("well", "--n={n}", range=("rate=1e-3:1e-1", "n=1:4"), tokens_per_step="{n} * 8")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"command": "python train.py"}, "no {rate}"),
        ({"command": "python missing.py {rate} {budget} {folder} {report_every}"}, "missing.py is no file"),
        ({"command": "no-such-program {rate} {budget} {folder} {report_every}"}, "there is no program"),
        ({"command": "true {rate} {budget} {folder} {report_every} {oops}"}, "{oops} has no value"),
        ({"command": "true {rate} {budget} {folder}"}, "--report_every"),
        ({"command": "true {rate} {folder} {report_every}"}, "no {budget}"),
        ({"command": "true {rate} {budget} {report_every}"}, "no {folder}"),
        ({"command": "true {rate +} {budget} {report_every} {folder}"}, "is no expression"),
        ({"report": "step (?P<step>\\d+"}, "no regular expression"),
        ({"report": "step (?P<step>.*)"}, "must have the group"),
        ({"budget": None}, "--budget is missing"),
        ({"budget": 30, "report_every": 4}, "no multiple"),
        ({"preset": "nano"}, "belongs to the built-in"),
        ({"no_resume": True}, "contradict"),
        ({"resume_args": None, "scheduler": "asha"}, "can't go on from a checkpoint"),
        ({"range": ("seed=0:1",)}, "can't be a name"),
        ({"range": ("step=0:1",)}, "can't be a name"),
        ({"baseline": ("lr=1",)}, "lr is not searched"),
        ({"unit": "two words"}, "is no word"),
    ],
)
def test_bad_input_is_one_line(changes, words):
    line = {"command": "true {rate} {budget} {folder} {report_every}"}
    with pytest.raises(InputError) as error:
        resolve_program(SearchOptions(**program_options(line | OPTIONS | changes)))
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_baseline_has_numbers_of_the_kind_that_its_range_has():
    spaces = dict(range=("rate=0:0.3", "n=1:4"), baseline=("rate=0", "n=2"))
    search = searched("well", "--n={n}", **spaces)
    words = search.command_line(search.baseline, "folder")
    assert "--rate=0.0" in words and "--n=2" in words  # a program may refuse 0 where it wants 0.0


def test_options_of_programs_are_refused_beside_the_builtin_training():
    for flag in ({"budget": 3}, {"report": REPORT}, {"no_resume": True}, {"baseline": ("a=1",)}):
        with pytest.raises(InputError, match="belongs to --command"):
            SearchOptions(**flag)


def test_what_a_command_can_not_do_is_said():
    search = searched("well", command=f"{sys.executable} --version {{rate}} {{budget}} {{report_every}}", resume_args=None)
    assert search.options.scheduler == "asha-stop" and not search.has_seeds
    said = " ".join(notes(search))
    assert "can't pause" in said and "no {folder}" in said and "no {seed}" in said and "again" not in said
    search = searched("well", command=searched().options.command.replace("--seed={seed}", ""))
    assert not search.has_seeds and search.max_seeds == 2 and "train again in one piece" in " ".join(notes(search))
    assert search.baseline["rate"] == pytest.approx(0.01)  # the middle of the logarithmic range


def test_lines_are_reports_or_not():
    parse = pattern_parser(REPORT)
    assert parse("step 250: val loss 3.1") == {"step": 250, "loss": 3.1}
    assert parse("iter 250: loss 3.1") is None
    assert json_report('{"step": 3, "val_loss": null}')["step"] == 3 and json_report('{"step": 3}') is None
    assert json_report("{not json") is None


def test_a_damaged_checkpoint_of_a_program_is_found_by_its_checksum(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "weights").write_text("abc")
    write_place(folder, 8, 1.5)
    assert Storage(str(tmp_path)).damage("checkpoint") is None
    (folder / "weights").write_text("abd")
    assert "checksum of weights" in Storage(str(tmp_path)).damage("checkpoint")
    (folder / "weights").unlink()
    assert "can't be read" in Storage(str(tmp_path)).damage("checkpoint")


def test_a_function_saves_and_goes_on_where_it_was(tmp_path):
    values = {"trainable": f"{PROGRAMS / 'ten_lines.py'}:train", "range": ("rate=1e-3:1e-1",), "budget": 32}
    search = resolve_program(SearchOptions(**program_options(values)))
    reports, kept, _ = opened(search, tmp_path)
    counted, segment = points(search, reports)
    *_, last = islice(counted, 8)
    assert segment.save(kept) and last["tokens_seen"] == 8
    reports.close()
    reports, *_ = opened(search, tmp_path, resume=True)
    assert [one["tokens_seen"] for one in points(search, reports, tokens=8)[0]] == list(range(9, 33))
    for bad, words in (("nothing", "no generator function nothing"), ("np", "no generator function np")):
        with pytest.raises(InputError, match=words):
            resolve_program(SearchOptions(**program_options(values | {"trainable": f"{PROGRAMS / 'ten_lines.py'}:{bad}"})))


COMMAND = f"{sys.executable} {PROGRAMS / 'stand_in.py'} {WORDS} --pause=0.02"
FUNCTION = ["--trainable", str(PROGRAMS / "ten_lines.py:train")]
LIVE = ["--range", "rate=1e-3:1e-1", "--budget", "64", "--num_samples", "4", "--max_concurrent", "1"]
AS_COMMAND = ["--command", COMMAND, "--report", REPORT, "--checkpoint", "ckpt.json", "--resume_args", "--init=resume"]


@pytest.mark.timeout(200)
@pytest.mark.parametrize("program", [pytest.param(AS_COMMAND, id="command"), pytest.param(FUNCTION, id="function")])
@pytest.mark.slow
def test_a_killed_search_of_a_program_goes_on_and_decides_the_same(tmp_path, program):
    words = ["tune/search.py", *program, *LIVE, "--storage_path", str(tmp_path)]
    done = run_command_line(*words, "--name", "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "iterations (64 a full training)" in done.stdout and "nats" not in done.stdout
    with subprocess.Popen([sys.executable, *words, "--name", "broken"], cwd=ROOT, stdout=subprocess.DEVNULL) as search:
        journal = tmp_path / "broken" / "journal.jsonl"
        while not (journal.exists() and journal.read_text().count('"report"') >= 30):
            assert search.poll() is None
            time.sleep(0.05)
        search.send_signal(signal.SIGKILL)
    time.sleep(2)
    assert not started_with(tmp_path / "broken" / "ray" / "work")
    done = run_command_line("tune/search.py", "--resume", tmp_path / "broken")
    assert done.returncode == 0, done.stdout + done.stderr
    tables = [pd.read_csv(tmp_path / name / "history.csv") for name in ("whole", "broken")]
    marks = [set(zip(table["trial_id"], table["iterations_seen"], strict=True)) for table in tables]
    assert len(marks[1]) == len(tables[1])  # a point that was reported twice counts once
    if program is AS_COMMAND:
        assert marks[0] == marks[1]
    assert not (tmp_path / "broken" / "ray" / "work").exists() and read_search(tmp_path / "broken").unit == "iterations"
    best = json.loads((tmp_path / "broken" / "best_config.json").read_text())
    if program is AS_COMMAND:
        line = best["command"].replace(str(ROOT / "broken-best"), str(tmp_path / "again"))
        again = subprocess.run(line, shell=True, cwd=best["working_folder"], capture_output=True, text=True)
        assert (
            f"val loss {best['result']['val_loss']:.3f}"[:-1] in again.stdout.splitlines()[-1]
            or best["result"]["seeds"] > 1
        )
    report = run_command_line("tune/report.py", tmp_path / "broken", tmp_path / "whole")
    assert report.returncode == 0, report.stderr
