"""Losses that no language model should have: search, posterior, surface, page and comparison live with them."""

import json
import math

import pytest
from conftest import BUDGET, index_of, new_search
from helpers import copied, search_of

from tune.analysis.posterior import expected_losses
from tune.analysis.results import write_best
from tune.core.ranking import ranking
from tune.core.schedulers import SCHEDULERS
from tune.core.schedulers.audit import WithAudit
from tune.core.simulator import play
from tune.report import write_report
from tune.reporting.compare import compare
from tune.reporting.run import load_run

LOSSES = {
    "zero": lambda loss, number: 0.0,
    "zero for some": lambda loss, number: 0.0 if number % 3 == 0 else loss,
    "negative": lambda loss, number: loss - 3,
    "all equal": lambda loss, number: 2.5,
    "huge": lambda loss, number: loss * 1e300,
    "equal and huge": lambda loss, number: 1e305,
    "huge for some": lambda loss, number: 1e300 if number % 3 == 0 else loss,
    "tiny": lambda loss, number: loss * 1e-300,
    "diverged but for one": lambda loss, number: loss if number == 1 else math.nan,
}


def rewritten(run, change):
    """Writes the run's journal anew with another loss in every report; one that is not finite is a divergence."""
    lines = []
    for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["event"] == "report":
            loss = change(event["val_loss"], int(event["trial_id"][:5]))
            event |= {"val_loss": loss, "val_bpb": loss * 1.44, "diverged": not math.isfinite(loss)}
        lines.append(json.dumps(event) + "\n")
    (run / "journal.jsonl").write_text("".join(lines), encoding="utf-8")
    return run


@pytest.mark.parametrize("name", LOSSES)
def test_a_run_with_such_losses_is_reported(name, tmp_path):
    run = rewritten(copied(tmp_path), LOSSES[name])
    assert "trial 0000" in write_report(run) and (run / "figures" / "parameters.png").exists()
    summary = json.loads((run / "summary.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert summary["best"]["trial_id"] and summary["confidence"] in ("yes", "partly", "no")
    data = (run / "report.html").read_text().split('id="data">', 1)[1].split("</script>", 1)[0]
    json.loads(data, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert len(load_run(run).trials) == 22
    said, _ = compare([run, copied(tmp_path, "other")])
    assert "nats per token" in said


def test_a_run_of_one_trial_is_reported(tmp_path):
    run = copied(tmp_path)
    lines = (run / "journal.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line).get("trial_id", "00000") == "00000"]
    (run / "journal.jsonl").write_text("".join(kept))
    assert "keep it, or search longer" in write_report(run)


@pytest.mark.parametrize("rule", sorted(SCHEDULERS))
@pytest.mark.parametrize("name", LOSSES)
def test_a_search_with_such_losses_comes_to_its_end(name, rule, tmp_path):
    search = search_of()
    coordinator = new_search(rule, num_samples=40, workers=3, confirm=2, configure=search.searcher())
    coordinator.scheduler = WithAudit(coordinator.scheduler, 0.5, seed=3)

    def loss(trial, tokens):
        rate = math.log10(trial.config["learning_rate"])
        return LOSSES[name](2 + (rate + 2.5) ** 2 - 0.5 * tokens / BUDGET, index_of(trial))

    play(coordinator, loss, math.inf)
    trials = coordinator.trials
    assert not trials.running and len(trials.drawn) == 40 and ranking(trials)[1]
    write_best(tmp_path, trials, search)
    result = json.loads((tmp_path / "best_config.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert result["result"]["trial_id"] == ranking(trials)[1][0].trial_id


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 1e9, 1e300])
def test_the_posterior_knows_no_unit(scale):
    """Losses in another unit have the same posterior in that unit."""
    seeds = [[2.0, 2.1], [2.2, 2.25], [2.5], [3.0]]
    plain = expected_losses(seeds, 2)
    scaled = expected_losses([[loss * scale for loss in of_one] for of_one in seeds], 2)
    assert scaled / scale == pytest.approx(plain, rel=1e-6)
