"""A search that another program asks for: from Python, and with --json."""

import inspect
import json
import subprocess
import sys

import jsonschema
import pytest
from conftest import ROOT, run_command_line
from helpers import RECORDED, SCHEMA, copied

import tune
from myllm.system.errors import InputError
from tune.config.options import SearchOptions
from tune.store.journal import Journal, is_running


def test_a_recorded_run_has_its_answer_tables_and_figures():
    run = tune.load_run(RECORDED)
    assert run.best_config == run.summary.best.config and run.best_config["learning_rate"] > 0
    assert run.trials.index[0] == "00000" and set(run.history["trial_id"]) <= set(run.trials.index)
    assert str(run).startswith("Search ") and run.figure("curves").data
    shown = run._repr_html_()
    assert "<pre>Search " in shown and shown.count("data:image/png;base64,") == 2 and "http" not in shown
    with pytest.raises(InputError, match=r"no figure 'curve'; there are curves, "):
        run.figure("curve")


def test_the_keywords_of_a_search_are_the_options():
    assert inspect.signature(tune.run_search) == inspect.signature(SearchOptions)
    for options, words in (
        ({"sapce": "v2"}, "unknown key 'sapce'"),
        ({"space": "v9"}, "'v9' is unknown"),
        ({"time_budget": "soon"}, "soon"),
        ({"num_samples": "3"}, "must be a int"),
    ):
        with pytest.raises(InputError, match=words):
            tune.run_search(**options)
    with pytest.raises(InputError, match="is no run folder"):
        tune.resume_search(ROOT / "docs")


def test_json_is_all_of_standard_output(tmp_path):
    run = copied(tmp_path)
    done = run_command_line("tune/report.py", run, "--json")
    assert done.returncode == 0, done.stderr
    jsonschema.validate(json.loads(done.stdout), SCHEMA)
    for words, said in (
        (["tune/report.py", tmp_path, "--json"], "is no run folder"),
        (["tune/search.py", "--seed", "-1", "--json"], "--seed is -1"),
        (["tune/search.py", "--sed", "1", "--json"], "unrecognized arguments"),
    ):
        done = run_command_line(*words)
        error = json.loads(done.stdout)["error"]
        assert done.returncode == error["code"] == 2 and said in error["message"] and not done.stderr
    done = run_command_line("tune/search.py", "--status", run, "--json")
    found = json.loads(done.stdout)
    assert not found.pop("running") and not done.stderr
    jsonschema.validate(found, SCHEMA)
    assert "the search is not running" in run_command_line("tune/search.py", "--status", run).stdout


def test_a_search_is_running_while_its_journal_is_open(tmp_path):
    assert not is_running(tmp_path)
    journal = Journal(tmp_path)
    assert is_running(tmp_path)
    journal.close()
    assert not is_running(tmp_path)


@pytest.mark.slow
def test_a_search_with_json_prints_its_summary_alone_and_is_seen_while_it_runs(tmp_path):
    words = ["--trainable", "tests/programs/ten_lines.py:train", "--range", "rate=1e-3:1e-1", "--budget", "64"]
    words += ["--num_samples", "3", "--storage_path", str(tmp_path), "--name", "run", "--json"]
    with subprocess.Popen(
        [sys.executable, "tune/search.py", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as search:
        seen = False
        while search.poll() is None:
            done = run_command_line("tune/search.py", "--status", tmp_path / "run", "--json")
            found = json.loads(done.stdout)
            seen = seen or found.get("running", False)
        output = search.stdout.read()
    assert search.returncode == 0 and seen
    jsonschema.validate(json.loads(output), SCHEMA)
