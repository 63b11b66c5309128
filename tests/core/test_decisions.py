"""Every rule decides in 600 simulated searches as it did when tests/recorded/decisions.json was written.

A change of a rule on purpose records its decisions anew: PYTHONPATH=. python tests/core/test_decisions.py
"""

import hashlib
import json
import math
import random
from pathlib import Path

from tune.core.coordinator import Coordinator
from tune.core.events import SessionStarted
from tune.core.ranking import ranking
from tune.core.schedulers import SCHEDULERS
from tune.core.schedulers.audit import WithAudit
from tune.core.schedulers.baseline import WithBaseline
from tune.core.simulator import play
from tune.core.trials import Trials

RECORDED = Path(__file__).resolve().parents[1] / "recorded" / "decisions.json"
CASES = 600
BUDGET, REPORT_TOKENS = 3200, 100
DIGITS = 8  # of a digest
TOLD = ("trial_id", "source", "parent_id", "segment_end_tokens", "tokens_seen", "decision")
RULES = ("explore-finish",) * 7 + ("asha", "asha-stop", "hyperband", "fifo")
RUNGS = (None, None, None, ((1 / 4, 2),), ((1 / 2, 2),), ((1 / 16, 3), (1 / 4, 4)))


def noise(*key):
    """A number from the normal distribution that depends on nothing but the key."""
    return random.Random(" ".join(map(str, key))).gauss(0, 1)


def losses(case, diverging, spread):
    """The loss of a trial at some tokens: a level a configuration, noise a report and a seed; some trials diverge."""

    def loss(trial, tokens):
        index, seed = trial.config["index"], trial.config.get("seed", 0)
        diverges = random.Random(f"d {case} {index}").random() < diverging
        if diverges and tokens > BUDGET * random.Random(f"t {case} {index} {seed}").random():
            return math.nan
        level = noise(case, index) + 0.5 * noise(case, index, tokens)
        return 3 + spread * level + 0.05 * noise(case, index, seed) + 2 * (tokens / BUDGET) ** -0.3

    return loss


def bare(value):
    """An id as it was when the decisions were recorded; another value as it is."""
    return value.removeprefix("t") if isinstance(value, str) else value


def digest(case):
    """A digest of all events of a simulated search, and of its ranking at the end. The case's number draws its kind."""
    rng = random.Random(f"case {case}")
    workers = rng.choice((1, 1, 2, 2, 3, 4, 6, 8, 16))
    num_samples = rng.choice((3, 4, 5, 8, 9, 16, 27, 40, 64, 100, 200))
    end = rng.choice((math.inf, math.inf, 1.5, 3, 4.25, 6, 8.5, 12, 16)) * BUDGET
    known_end = rng.random() < 0.7
    name = rng.choice(RULES)
    replicated, audited = rng.choice((None, 0, 3)), rng.choice((None, None, None, 0.3))
    loss = losses(case, diverging=rng.choice((0, 0, 0.05, 0.3)), spread=rng.choice((0.02, 0.2, 1.0)))
    rule = SCHEDULERS[name](rng.choice(RUNGS) or SCHEDULERS[name].default_rungs, BUDGET, REPORT_TOKENS)
    if replicated is not None:
        rule = WithBaseline(rule, replicated)
    if audited:
        rule = WithAudit(rule, audited, case)
    trials, found = Trials(BUDGET, num_samples, events=[SessionStarted(session=0, workers=workers)]), hashlib.sha256()

    def append(event):
        values = event.to_json()
        told = [values["event"], *(bare(values.get(name)) for name in TOLD), values.get("config", {}).get("seed")]
        found.update(json.dumps(told).encode())
        return event

    search = Coordinator(trials, rule, lambda index, trials, proposed: {"index": index}, append, seed=7)
    play(search, loss, end=end, known_end=known_end)
    tokens, ordered = ranking(trials)
    found.update(json.dumps([tokens, [bare(trial.trial_id) for trial in ordered]]).encode())
    return found.hexdigest()[:DIGITS]


def test_the_rules_decide_as_recorded():
    recorded = json.loads(RECORDED.read_text())
    assert len(recorded) == CASES
    changed = [case for case in range(CASES) if digest(case) != recorded[case]]
    assert not changed, f"{len(changed)} of {CASES} searches went another way, the first of them case {changed[0]}"


if __name__ == "__main__":
    rows = [digest(case) for case in range(CASES)]
    lines = [", ".join(map(json.dumps, rows[at : at + 10])) for at in range(0, CASES, 10)]
    RECORDED.write_text("[\n" + ",\n".join(lines) + "\n]\n")
