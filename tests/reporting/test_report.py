"""What people read of a run: summary, page and tables, of a recorded search and of hostile ones."""

import json
import math
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import pandas as pd
import pytest
from conftest import ROOT, run_command_line
from helpers import RECORDED, SCHEMA, copied

from myllm.system.errors import InputError
from tune.analysis.axes import Axis, Edge, edges
from tune.analysis.response_surface import ResponseSurface
from tune.analysis.results import UNITS, load
from tune.core.clock import search_seconds
from tune.core.events import Reported
from tune.core.search_space import LINEAR, LOG_BELOW_ONE, Choice, Range
from tune.report import write_report, write_report_behind
from tune.reporting.compare import compare
from tune.reporting.figures.base import ticks
from tune.reporting.run import load_run
from tune.reporting.summarize import judge, summarize
from tune.reporting.summary import Best, Gain

PROGRAM = r"\S+ \S*?((?:tune|myllm)/\S+\.py )"
"""the Python and the script of a command that the summary names"""


def changed(run: Path, change) -> None:
    """Applies `change` to every event of the run's journal; what it returns is written."""
    events = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    (run / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in change(events)))


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """The run with its report, written from the folder above it."""
    folder = tmp_path_factory.mktemp("report")
    run, before = copied(folder), Path.cwd()
    os.chdir(folder)
    try:
        write_report(run)
    finally:
        os.chdir(before)
    return run


def test_the_summary_of_a_recorded_search_is_the_one_it_was(report):
    said = re.sub(rf"  {PROGRAM}", r"  python \1", (report / "summary.txt").read_text())
    assert said == (RECORDED / "golden.txt").read_text()


def test_summary_json_of_a_recorded_search_is_the_one_it_was(report):
    """The recorded file is of format 1; some of its keys have other names in format 2."""
    found, former = (json.loads(path.read_text()) for path in (report / "summary.json", RECORDED / "golden.json"))
    former |= {"format": 2, "ladder": None, "baseline": former.pop("default"), "confidence": former.pop("trust")}
    former["trials"]["replicates"] = former["trials"].pop("repeats")
    former["best"] |= {"compared_with": former["best"].pop("rivals"), "in_one_piece": None}
    former |= {"budget_seconds": None, "faster": None, "program": None, "unit": "tokens"}
    former["cost"]["trainings"] = found["cost"]["tokens"] / found["budget_tokens"]
    former["verdict"] = former["verdict"].replace("default", "baseline")
    for step in found["next"]:
        step["command"] = re.sub(f"^{PROGRAM}", r"python \1", step["command"])
    assert found == former


def test_summary_json_is_as_its_schema_says_it_is(report, tmp_path):
    found = json.loads((report / "summary.json").read_text())
    jsonschema.validate(found, SCHEMA)
    assert found["best"]["trial_id"] == "00001" and found["gain"]["low"] < found["gain"]["mean"] < found["gain"]["high"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found | {"more": 1}, SCHEMA)
    early = copied(tmp_path)
    changed(early, lambda events: events[:2])  # begun, and nothing reported
    write_report(early)
    found = json.loads((early / "summary.json").read_text())
    jsonschema.validate(found, SCHEMA)
    assert found["best"] is None and found["confidence"] == "no"


def test_every_figure_has_a_picture_and_a_table(report):
    names = ["budget", "curves", "importance", "landscape", "parallel", "parameters", "speed"]
    assert sorted(p.name for p in (report / "figures").iterdir()) == [
        f"{n}.{kind}" for n in names for kind in ("csv", "png")
    ]
    curves = pd.read_csv(report / "figures" / "curves.csv", dtype={"trial_id": str})
    assert len(curves) == len(load_run(report).history) and set(curves["outcome"]) >= {"best", "baseline", "paused"}
    budget = pd.read_csv(report / "figures" / "budget.csv")
    tokens = json.loads((report / "summary.json").read_text())["cost"]["tokens"]
    assert budget[["sampled", "suggested", "replicate"]].to_numpy().sum() == tokens


def test_the_page_needs_no_network_and_is_small(report):
    page = (report / "report.html").read_text()
    assert len(page) < 6e6
    own = page.replace(__import__("plotly").offline.get_plotlyjs(), "")
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", own)
    order = [own.index(f"id={name}") for name in ("next", "curves", "parameters", "landscape", "parallel", "importance")]
    assert own.index('id="answer"') < order[0] and order == sorted(order)


def test_the_page_is_there_at_once_and_its_rest_is_written_behind(tmp_path):
    run = copied(tmp_path)
    said = write_report(run, whole=False)
    page = (run / "report.html").read_text()
    assert 'http-equiv="refresh"' in page and "This page loads itself again" in page and 'id="plot-curves"' in page
    assert 'id="plot-importance"' not in page and not (run / "figures").exists()
    write_report_behind(run)
    latest = time.monotonic() + 200
    while (run / "report.log").exists() and time.monotonic() < latest:
        time.sleep(0.1)
    page = (run / "report.html").read_text()
    assert 'http-equiv="refresh"' not in page and 'id="plot-importance"' in page
    assert (run / "figures" / "importance.png").exists()
    assert (run / "summary.txt").read_text().strip() == said.strip()  # its commands too are those for where the user stands


def test_a_report_is_not_written_over_that_of_a_search_that_went_on(tmp_path, monkeypatch):
    run = copied(tmp_path)
    write_report(run, whole=False)
    before = (run / "report.html").read_text()

    def summarize_and_go_on(run_dir, *found):
        changed(run_dir, lambda events: [*events, {"event": "session", "session": 9, "workers": 1, "time": 1e9}])
        return summarize(run_dir, *found)

    monkeypatch.setattr("tune.reporting.render.summarize", summarize_and_go_on)
    write_report(run, still=True)
    assert (run / "report.html").read_text() == before and not (run / "figures").exists()


def test_names_and_errors_can_not_break_out_of_the_page(tmp_path):
    run, evil = copied(tmp_path), "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    changed(run, lambda events: [*events, {"event": "failed", "time": 1e9, "trial_id": "00002", "reason": evil}])
    search = json.loads((run / "search.json").read_text())
    search["config"] |= {"train_file": [evil], "val_file": [evil]}
    search["data"] |= {"train_file": [evil], "val_file": [evil]}
    (run / "search.json").write_text(json.dumps(search))
    write_report(run)
    page = (run / "report.html").read_text()
    assert "alert(1)" in page and "<script>alert" not in page and "<img src=x" not in page


def test_a_run_without_repeats_claims_no_interval(tmp_path):
    run = copied(tmp_path)
    changed(run, lambda events: [event for event in events if "-seed" not in event.get("trial_id", "")])
    search = json.loads((run / "search.json").read_text())
    search["config"]["time_budget"] = 60.0
    (run / "search.json").write_text(json.dumps(search))
    said = write_report(run)
    assert "--num_samples 32 --time_budget 240" in said  # more trials alone would not begin
    found = json.loads((run / "summary.json").read_text())
    jsonschema.validate(found, SCHEMA)
    assert found["best"]["low"] is None and found["confidence"] == "no" and "luck and merit" in said
    assert any("--replicate_best" in row["command"] for row in found["next"])


def test_where_every_trial_diverged_there_is_a_report_that_says_so(tmp_path):
    run = copied(tmp_path)
    changed(
        run,
        lambda events: [
            event | ({"diverged": True, "val_loss": math.nan, "decision": "stop"} if event["event"] == "report" else {})
            for event in events
        ],
    )
    assert "diverged" in write_report(run) and (run / "figures" / "parallel.png").exists()


def test_an_answer_at_an_edge_or_unsure_is_relied_on_in_part():
    shared = dict(share_of_budget=1, compared_with=3, in_one_piece=None)
    best = Best("00001", {}, 3200, 2.0, 3.0, 0.1, 2, 1.9, 2.1, 0.95, regret=0.1, **shared)
    sure = {"best": best, "baseline": replace(best, trial_id="00000"), "gain": Gain(0.2, 0.1, 0.3), "found_edges": ()}
    edge, unsure = {"found_edges": [Edge("clip_norm", 1.0, 1.0, "")]}, {"best": replace(best, probability_best=0.5)}
    alike, none = {"best": replace(best, probability_best=0.5, regret=0.001)}, {"gain": Gain(0.2, -0.1, 0.5)}
    kept = {"best": replace(best, trial_id="00000")}
    early = {"best": replace(best, trial_id="00000", share_of_budget=0.05)}
    found = [judge(**sure | change)[0] for change in ({}, edge, unsure, alike, none, kept, early)]
    assert found == ["yes", "partly", "partly", "yes", "no", "partly", "no"]


def test_edges_name_the_flag_that_looks_beyond():
    axes = [Axis("learning_rate", Range(0.001, 0.1)), Axis("batch_size", Choice((4, 8, 16)))]
    assert edges(axes, {"learning_rate": 0.01, "batch_size": 8}) == []
    found = {edge.hyper_parameter: edge.search_next for edge in edges(axes, {"learning_rate": 0.095, "batch_size": 16})}
    assert found == {
        "learning_rate": "--range learning_rate=0.0095:0.95",
        "batch_size": "--choices batch_size=4,8,16,32,64",
    }
    assert edges([Axis("schedule", Choice(("cosine", "wsd")))], {"schedule": "cosine"}) == []
    assert edges([Axis("dropout", Range(0.0, 0.3, LINEAR))], {"dropout": 0.0}) == []  # nothing lies below
    assert edges([Axis("beta2", Choice((0.9, 0.95, 0.99)))], {"beta2": 0.99}) == []  # nor above
    assert edges([Axis("n_head", Choice((2, 4, 6)))], {"n_head": 6}) == []  # they divide the width
    for axis, value, flag in (
        (Axis("beta2", Range(0.9, 0.999, LOG_BELOW_ONE)), 0.999, "--range beta2=0.99:0.9999"),
        (Axis("learning_rate", Range(0.001, 0.003, LINEAR)), 0.003, "--range learning_rate=0.002:0.004:linear"),
        (Axis("n_layer", Range(2, 6, LINEAR, integer=True)), 6, "--range n_layer=4:8"),
        (Axis("n_layer", Choice((1, 2, 4))), 4, "--choices n_layer=1,2,4,8,16"),
        (Axis("dropout", Choice((0.1, 0.2, 0.4))), 0.4, "--choices dropout=0.1,0.2,0.4,0.8"),
    ):
        assert [edge.search_next for edge in edges([axis], {axis.name: value})] == [flag]
    for drawn_from, values in (
        (Range(0.001, 0.1), (0.001, 0.01, 0.1)),
        (Range(0.0, 1.0, LINEAR), (0.0, 0.5, 1.0)),
        (Range(0.9, 0.999, LOG_BELOW_ONE), (0.9, 0.99, 0.999)),
        (Choice((2, 4, 8)), (2, 4, 8)),
    ):
        axis = Axis("x", drawn_from)
        assert [axis.place(v) for v in values] == pytest.approx([0, 0.5, 1])
        assert [axis.value(p) for p in (0, 0.5, 1)] == pytest.approx(values)


def test_axes_are_marked_where_numbers_are_round():
    for drawn_from, most, words in (
        (Range(3e-4, 0.03), 3, "0.001 0.01"),
        (Range(3e-4, 0.03), 5, "0.0003 0.001 0.003 0.01 0.03"),
        (Range(0.0012, 0.0018), 3, "0.0012 0.0018"),
        (Range(1e-9, 1.0), 3, "1e-09 1e-05 0.1"),
        (Choice((4, 8, 64)), 2, "4 8 64"),
        (Range(0.0, 0.3, LINEAR), 3, ""),
    ):
        assert " ".join(ticks(Axis("x", drawn_from), most).values()) == words


def test_importance_finds_what_the_loss_follows(tmp_path):
    run = copied(tmp_path)

    def by_clip_alone(events):
        configs = {event["trial_id"]: event["config"] for event in events if event["event"] == "trial"}
        for event in events:
            if event["event"] == "report":
                event["val_loss"] = 3 + 0.3 * math.log10(configs[event["trial_id"]]["clip_norm"]) ** 2
        return events

    changed(run, by_clip_alone)
    surface = ResponseSurface(*load(run)[:2])
    assert (surface.losses == surface.losses.max()).mean() >= 0.5  # how bad the worse half is does not matter
    rows = surface.importance()
    assert rows[0]["hyper_parameter"] == "clip_norm" and rows[0]["low"] > max(row["importance"] for row in rows[1:])


def test_tables_for_pandas_are_typed_and_every_column_is_documented():
    run = load_run(RECORDED)
    columns = {name for table in (run.trials, run.history, run.leaderboard) for name in table.columns}
    assert columns - set(run.search.ranges) | {"learning_rate"} == {*UNITS}
    assert run.trials["tokens_seen"].dtype == "int64" and run.trials["status"].dtype == "category"
    replicates = run.trials[run.trials["source"] == "replicate"]
    assert (
        len(replicates) == 6 and set(replicates["parent_id"]) <= set(run.trials.index) and (replicates["seed"] != 0).all()
    )
    assert run.leaderboard.index[0] == "00001" and run.leaderboard["low"].iloc[0] < run.leaderboard["val_loss"].iloc[0]


def with_the_best_an_audit(events: list[dict]) -> list[dict]:
    """The same, and one that was left behind would have ended lowest."""
    left, last = next(e for e in events if e.get("trial_id") == "00002"), [e for e in events if e["event"] == "report"][-1]
    last = last | {"trial_id": "00002-audit", "tokens_seen": 786432, "val_loss": 1.0}
    return [
        *events,
        left | {"trial_id": "00002-audit", "source": "audit", "parent_id": "00002", "time": last["time"]},
        last,
    ]


def test_comparing_searches(tmp_path):
    one, other = copied(tmp_path, "one"), copied(tmp_path, "other")
    search = json.loads((other / "search.json").read_text())
    search["config"] |= {"seed": 7, "audit": 0.1, "wandb": "x"}  # one has settings that the other lacks
    (other / "search.json").write_text(json.dumps(search))
    changed(other, with_the_best_an_audit)
    said, page = compare([one, other])
    data = re.search('id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1]
    rows = json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} is no JSON: a browser reads nothing then"))
    assert {"x", None} <= {cell for row in rows["rows"] for cell in row}
    assert "nats per token" in said and re.search(r"^seed +0 +7$", said, re.MULTILINE) and page == one / "compare.html"
    assert (one / "compare" / "progress.png").read_bytes()[1:4] == b"PNG"
    progress, (_, trials, events) = pd.read_csv(one / "compare" / "progress.csv"), load(one)
    assert set(progress["run"]) == {os.path.relpath(run) for run in (one, other)}
    assert progress["val_loss"].min() == min(event.val_loss for event in events if isinstance(event, Reported))
    assert progress["tokens"].max() == trials.tokens  # a line goes on to where its search ended
    assert 0.9 * search_seconds(events) < progress["seconds"].max() <= search_seconds(events)
    assert re.search(r"^best learning_rate +0\.\d+ +0\.\d+$", said, re.MULTILINE)
    search["data"]["tokenizer_sha256"] = "another"
    (other / "search.json").write_text(json.dumps(search))
    said, page = compare([one, other])
    assert "val_bpb" in said and "val_loss" not in said and "differ in data or tokenizer" in said
    done = run_command_line("tune/report.py", one, one)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "named twice" in done.stderr


def test_open_shows_the_page_in_the_users_browser_or_says_where_it_is(tmp_path):
    run, shown = copied(tmp_path), tmp_path / "shown"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {shown}\n')
    browser.chmod(0o755)
    nowhere = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    done = run_command_line("tune/report.py", run, "--open", env=nowhere | {"BROWSER": str(browser)})
    assert done.returncode == 0 and shown.read_text() == (run / "report.html").as_uri(), done.stderr
    done = run_command_line("tune/report.py", run, copied(tmp_path, "o" * 100), "--open", env=nowhere)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.splitlines()[-1] == f"no browser here; open {run / 'compare.html'}"


def many(run: Path, count: int) -> None:
    """Makes a search of `count` trials with 32 reports each of the recorded one."""
    search = json.loads((run / "search.json").read_text())
    search["config"]["num_samples"] = count
    (run / "search.json").write_text(json.dumps(search))
    rng, base = random.Random(0), {}
    for line in (run / "journal.jsonl").read_text().splitlines():
        event = json.loads(line)
        base.setdefault(event["event"], event)
    step = 786432 // 32
    with open(run / "journal.jsonl", "w") as file:
        file.write(json.dumps(base["session"]) + "\n")
        for index in range(count):
            rate, batch = 3e-4 * 100 ** rng.random(), rng.choice([4, 8, 16, 32, 64])
            config = {"learning_rate": rate, "batch_size": batch}
            config |= {"warmup_ratio": 0.003 * 60 ** rng.random(), "clip_norm": 0.1 * 100 ** rng.random()}
            begun = base["trial"] | {"trial_id": f"{index:05d}", "config": config, "segment_end_tokens": 786432}
            file.write(json.dumps(begun) + "\n")
            level = 2 + 0.3 * math.log10(rate / 3e-3) ** 2 + 0.05 * math.log2(batch) + rng.gauss(0, 0.02)
            for mark in range(1, 33):
                loss = {"val_loss": level + 1.5 / mark, "tokens_seen": mark * step, "decision": "continue"}
                file.write(json.dumps(base["report"] | loss | {"trial_id": f"{index:05d}"}) + "\n")


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_large_searches_fit(count, tmp_path):
    run = copied(tmp_path)
    many(run, count)
    code = (
        "import sys, myllm.system.machine, tune.report; sys.argv = ['report.py', sys.argv[1]]; tune.report.main(); "
        "print('peak', myllm.system.machine.peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code, run], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split("peak ")[1]) < 1e9
    assert count > 1000 or (run / "report.html").stat().st_size < 6e6


def test_the_example_notebook_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "experiments" / "read_a_run.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "experiments")}}).execute()
    shown = json.dumps([cell.get("outputs") for cell in notebook.cells])
    assert "00001" in shown and "image/png" in shown


def test_load_run_is_imported_from_tune_and_nothing_else_is_at_first():
    code = (
        "import sys, tune; assert not {'numpy', 'pandas', 'tune.analysis'} & set(sys.modules), 'heavy'; "
        "from tune import load_run; from tune.reporting import run; assert load_run is run.load_run"
    )
    done = run_command_line("-c", code)
    assert done.returncode == 0, done.stderr


def test_text_is_utf_8_whatever_the_locale(tmp_path):
    run = copied(tmp_path)
    changed(run, lambda events: [*events, {"event": "failed", "time": 1e9, "trial_id": "00002", "reason": "größe"}])
    done = run_command_line(
        "tune/report.py",
        run,
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    assert "größe" in (run / "summary.txt").read_text(encoding="utf-8")
    assert "▲" in (run / "report.html").read_text(encoding="utf-8")


def test_no_run_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no run folder"):
        load_run(tmp_path)
