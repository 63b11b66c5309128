"""The answer of a ladder: summary, page, best_config.json, and the forecast beside what came out for the target."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from helpers import SCHEMA
from test_rule import loss_of, played

from myllm.training import trainer
from tune.analysis.results import load, write_results
from tune.config.options import SearchOptions
from tune.config.resolve import Resources
from tune.core.events import Reported
from tune.estimate import ladder as estimate
from tune.estimate.forecast import simulate_rest
from tune.estimate.ladder import plan_text, resolve_target
from tune.report import write_report
from tune.reporting.ladder import TARGET_FILE
from tune.reporting.summarize import summarize

SIZE = ("n_layer=4", "n_head=4", "n_embd=32")


@pytest.fixture(scope="module")
def run_dir(byte_files, tmp_path_factory):
    """The folder of a ladder that ended in the simulated world."""
    folder = tmp_path_factory.mktemp("ladder") / "run"
    folder.mkdir()
    train, val = ((str(path),) for path in byte_files)
    options = SearchOptions(
        train_file=train, val_file=val, target=SIZE, target_tokens=60_000, target_share=1.0, name="run", seed=3
    )
    search = resolve_target(options, folder)
    search.write(folder)
    record = []
    trials = played(search.ladder, record=record)
    lines = [json.dumps(event.to_json()) for event in record]
    (folder / "journal.jsonl").write_text('{"event": "session", "session": 0, "workers": 1}\n' + "\n".join(lines) + "\n")
    write_results(folder, trials, search)
    return folder


def test_the_summary_says_answer_levels_verification_and_what_comes_next(run_dir):
    said = write_report(run_dir)
    for words in (
        "a ladder, seed 3",
        "target      n_layer=4 n_head=4 n_embd=32: ",
        "from runs, ",
        "from this project's small trainings",
        "warmup_ratio 0.02: the same share of the steps as at every level (a rule, not measured)",
        "forecast    val_loss ",
        "all came out as predicted",
        "at twice the rate ",
        "stability   of the target in short trainings",
        "confidence  Partly.",
        "Below 10M parameters no published law of the rate holds",
        "--save_model",
    ):
        assert words in said
    assert "none yet" not in said and "best        " not in said


def test_summary_json_keeps_to_its_schema_and_the_page_shows_the_ladder(run_dir):
    jsonschema = pytest.importorskip("jsonschema")
    write_report(run_dir)
    values = json.loads((run_dir / "summary.json").read_text())
    jsonschema.validate(values, SCHEMA)
    assert values["best"] is None and values["ladder"]["learning_rate"]["low"] < values["ladder"]["learning_rate"]["value"]
    page = (run_dir / "report.html").read_text()
    for words in (
        "learning rate, 90%",
        "The path of the optimum to the target",
        "Loss against compute",
        "The levels",
        "a ladder to n_layer=4",
        "<li>stability of the target",
    ):
        assert words in page
    assert {"levels.png", "path.csv", "forecast.png"} <= {path.name for path in (run_dir / "figures").iterdir()}


def test_best_config_trains_the_target_and_report_sets_the_forecast_beside_it(run_dir, monkeypatch, capsys):
    config = json.loads((run_dir / "best_config.json").read_text())
    summary = summarize(run_dir, *load(run_dir))
    assert config["train"]["batch_size"] == summary.ladder.batch_size and config["model"]["n_embd"] == 32
    assert config["train"]["learning_rate"] == pytest.approx(summary.ladder.learning_rate.value, rel=1e-3)
    assert config["train"]["budget_tokens"] == pytest.approx(60_000, rel=0.1)
    torch.set_num_threads(1)
    words = ["trainer.py", "--config", str(run_dir / "best_config.json"), "--save_model", str(run_dir / TARGET_FILE)]
    monkeypatch.setattr(sys, "argv", [*words, "--device", "cpu"])
    assert trainer.main() == 0
    assert "rescaled" not in capsys.readouterr().out
    summary = summarize(run_dir, *load(run_dir))
    truth = summary.ladder.truth
    assert truth.ended and truth.difference == pytest.approx(truth.val_loss / summary.ladder.loss.value - 1)
    assert "came out    val_loss " in write_report(run_dir)
    state = torch.load(run_dir / TARGET_FILE, weights_only=True)
    state["train_config"]["learning_rate"] *= 2  # another training than the one that was forecast
    torch.save(state, run_dir / TARGET_FILE)
    assert summarize(run_dir, *load(run_dir)).ladder.truth is None
    (run_dir / TARGET_FILE).unlink()


def test_the_plan_is_told_with_its_share_of_compute_time_and_disk(run_dir, monkeypatch):
    search, _, _ = load(run_dir)
    monkeypatch.setattr(estimate, "level_seconds", lambda search, levels, resources: {one.params: 60.0 for one in levels})
    said = plan_text(search, Resources(1, 0, 2), timed=True)
    runs = sum(level.runs for level in search.ladder.levels)
    assert f"{search.ladder.planned_share:.1%} of the target's" in said and "MB of states" in said
    assert f"about {runs * 30 // 60} min" in said


def test_the_rest_of_a_ladder_is_forecast_from_its_own_speed(run_dir):
    search, trials, events = load(run_dir)
    whole = simulate_rest(search, [], None, 1, used=5.0)
    assert whole.seconds == 5.0 and whole.trials == search.ladder.trials  # no speed is known yet
    cut = events[: next(i for i, e in enumerate(events) if isinstance(e, Reported) and e.trial_id == "t00003")]
    cut = [replace(event, train_seconds=2.0) if isinstance(event, Reported) else event for event in cut]
    rest = simulate_rest(search, cut, None, 1, used=10.0)
    assert rest.seconds > 10.0 and rest.tokens > 0.9 * trials.tokens
    assert loss_of(trials.drawn[0], trials.drawn[0].tokens, plan=search.ladder) > 0
