"""A random few of those left behind go on to the end: unseen by the rule, and what is said of them. One live search."""

import dataclasses
import json
import math
import random
from dataclasses import asdict

import jsonschema
import numpy as np
import pandas as pd
import pytest
from conftest import BUDGET, MARK, begun, index_of, new_search, report
from harness import FaultSearch
from helpers import SCHEMA, search_of
from scipy.stats import hypergeom, spearmanr

from tune.analysis.results import load
from tune.analysis.stopping_audit import (
    Audit,
    AuditedTrial,
    AuditSample,
    RungQuality,
    share_interval,
    summarize_audit,
    weighted_rank_correlation,
)
from tune.core.clock import SearchClock
from tune.core.events import SessionStarted, TrialStarted
from tune.core.ranking import ranking
from tune.core.schedulers import SCHEDULERS
from tune.core.schedulers.audit import WithAudit
from tune.core.simulator import play
from tune.core.trials import AUDIT, COMPLETED, DIVERGED, PAUSE, PAUSED, SAMPLED, STOP, STOPPED, Trials
from tune.estimate.forecast import Throughput, simulate_rest
from tune.report import write_report
from tune.reporting.summary import schema_of
from tune.reporting.summary_text import audit_lines, rung_verdict
from tune.store.checkpoints import worth_keeping


def loss(trial, tokens):
    """Of a configuration and a mark, always the same; some diverge late."""
    number = index_of(trial)
    value = 2 + number % 7 / 7 + 0.3 * random.Random(number * 7919 + tokens).random() - tokens / BUDGET
    return math.nan if number % 11 == 5 and tokens == BUDGET else value


def played(name, audit=None, events=(), end=math.inf, num_samples=40, confirm=2):
    """(search, its events) of a rule, played to its end."""
    record = []
    search = new_search(name, num_samples=num_samples, workers=2, confirm=confirm, events=events, record=record)
    if audit:
        search.scheduler = WithAudit(search.scheduler, audit, seed=3)
    play(search, loss, end)
    return search, [*events, *record]


def audits_of(events):
    return [event.trial_id for event in events if isinstance(event, TrialStarted) and event.source == AUDIT]


@pytest.mark.parametrize("end", [math.inf, 5.01 * BUDGET])
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_the_rule_decides_as_it_would_have_and_the_audit_comes_last(name, end):
    plain, expected = played(name, end=end)
    audited, found = played(name, 0.3, end=end)
    assert found[: len(expected)] == expected
    rest, left = found[len(expected) :], [t for t in plain.trials.drawn if t.status in (PAUSED, STOPPED)]
    chosen = {event.trial_id for event in rest}
    by_lot = sorted((trial.trial_id for trial in left), key=audited.scheduler.lot)
    assert chosen == {f"{trial_id}-audit" for trial_id in by_lot[: math.ceil(0.3 * len(left))]} and (left or name == "fifo")
    for trial in audited.trials.audits.values():
        assert trial.status in (COMPLETED, DIVERGED) and trial.tokens == BUDGET
        assert (
            trial.begun_at == audited.trials.by_id[trial.parent_id].tokens
            and trial.config is audited.trials.by_id[trial.parent_id].config
        )
    for search in (plain, audited):  # what is named, and what a rule may ask
        assert [t.status for t in search.trials.drawn] == [t.status for t in plain.trials.drawn]
        assert search.trials.count_by_rung == plain.trials.count_by_rung
        assert search.trials.segments_by_end == plain.trials.segments_by_end and not search.trials.running
    assert [t.trial_id for t in ranking(audited.trials)[1]] == [t.trial_id for t in ranking(plain.trials)[1]]
    assert audited.trials.tokens == sum(t.tokens - t.begun_at for t in audited.trials.by_id.values())


def test_the_rules_clock_stands_still_during_an_audit():
    search, seen = new_search("asha", num_samples=400), set()
    search.scheduler = WithAudit(search.scheduler, 0.2, seed=3)
    rule = search.scheduler.rule.suggest

    def suggest(trials, clock):
        seen.update({clock} if trials.audits else ())
        return rule(trials, clock)

    search.scheduler.rule.suggest = suggest
    play(search, loss, 5.01 * BUDGET)
    assert len(search.trials.audits) > 3 and len(seen) == 1 and next(iter(seen)).left > 0


def test_an_audit_that_was_broken_off_goes_on_with_the_same_trials():
    _, events = played("explore-finish", 0.3)
    whole = set(audits_of(events))
    first = events.index(next(e for e in events if isinstance(e, TrialStarted) and e.source == AUDIT))
    assert len(whole) > 3
    for cut in range(first - 5, len(events), 3):
        again, found = played("explore-finish", 0.3, events=events[:cut])
        assert set(audits_of(found)) == whole
        assert {t.status for t in again.trials.audits.values()} <= {COMPLETED, DIVERGED}


def test_a_larger_share_keeps_those_chosen_before():
    _, few = played("asha", 0.1)
    search, many = played("asha", 0.4, events=few)
    assert audits_of(many)[: len(audits_of(few))] == audits_of(few) and len(audits_of(many)) > len(audits_of(few))
    left = sum(trial.status == PAUSED for trial in search.trials.drawn)
    assert len(audits_of(many)) == math.ceil(0.4 * left)


def test_a_search_that_grows_after_its_audit_decides_as_if_there_had_been_none():
    _, events = played("explore-finish", 0.3, num_samples=20)
    plain = [event for event in events if not event.trial_id.endswith("-audit")]
    grown, expected = played("explore-finish", events=plain, num_samples=30)
    audited, found = played("explore-finish", 0.3, events=events, num_samples=30)
    own = [event for event in found if not event.trial_id.endswith("-audit")]
    assert own == expected and len(own) > len(plain)
    assert audited.trials.drawn[-1].config == grown.trials.drawn[-1].config


def test_who_is_chosen_is_drawn_by_lot():
    lots = [
        WithAudit(new_search("explore-finish").scheduler, 0.1, seed).lot(f"{i:05d}")
        for seed in range(20)
        for i in range(200)
    ]
    assert all(0 <= lot < 1 for lot in lots) and 0.09 < sum(lot < 0.1 for lot in lots) / len(lots) < 0.11
    assert abs(np.corrcoef(lots[:200], lots[200:400])[0, 1]) < 0.2


def test_the_state_of_those_that_may_be_chosen_is_kept():
    search, _ = played("asha-stop", num_samples=20)
    rule = WithAudit(search.scheduler, 0.5, seed=3)
    stopped = [trial for trial in search.trials.drawn if trial.status == STOPPED]
    for trial in stopped:
        trial.checkpoints = {MARK: "a", trial.tokens: "b"}
        kept = worth_keeping(search.trials, trial, rule.may_audit(search.trials, trial))
        assert kept == ({trial.tokens} if rule.lot(trial.trial_id) < 0.5 else set())
    assert {rule.may_audit(search.trials, trial) for trial in stopped} == {True, False}


def test_an_audits_time_is_not_the_searchs():
    def session(time):
        return SessionStarted(time=time, session=0, workers=1)

    def trial(time, source=SAMPLED):
        return begun("00000", source, time=time)

    def reported(time):
        return report("00000", 100, 2.0, time=time)

    events = [session(100), trial(110), reported(150), trial(151, AUDIT), reported(191)]
    events += [session(1000), reported(1010), trial(1020), reported(1050)]
    assert (SearchClock(events[:4]).search, SearchClock(events[:4]).audit) == (51, 0)
    assert (SearchClock(events[:7]).search, SearchClock(events[:7]).audit, SearchClock(events[:7]).auditing) == (
        51,
        50,
        True,
    )
    assert (SearchClock(events).search, SearchClock(events).audit, SearchClock(events).auditing) == (81, 60, False)
    plain = [session(100), trial(110), reported(150), session(900), reported(907), reported(920)]
    assert (SearchClock(plain).search, SearchClock(plain).starting) == (70, 17)


def test_a_forecast_counts_the_audit_after_the_time_of_the_search():
    pace, times = Throughput(1e-5, 1e-3, 0.1), {"time_budget": 3600.0}
    plain, audited = (simulate_rest(search_of(**times, **more), [], pace, 2) for more in ({}, {"audit_fraction": 0.1}))
    assert audited.audits > 3 and audited.trials == plain.trials and audited.came == plain.came
    assert audited.seconds - audited.audit_seconds <= 3600 < audited.seconds
    each = search_of().budget_tokens * 1e-5
    assert audited.audits * each / 2 * 0.7 < audited.audit_seconds < audited.audits * each * 3
    assert audited.tokens - plain.tokens > 0.6 * audited.audits * search_of().budget_tokens


# What is said


def test_the_interval_of_a_share_holds_and_knows_what_was_seen():
    assert share_interval(0, 5, 5) == (0, 0) and share_interval(2, 5, 5) == (0.4, 0.4)
    assert share_interval(0, 5, 50)[0] == 0 and share_interval(5, 5, 50)[1] == 1
    intervals = [share_interval(count, 12, 100) for count in range(13)]
    true = np.arange(5, 96)
    odds = hypergeom(100, true[:, None], 12).pmf(np.arange(13))  # of each count
    held = sum(odds[:, n] * ((low <= true / 100) & (true / 100 <= high)) for n, (low, high) in enumerate(intervals))
    assert 0.88 < held.mean() < 0.93 and held.min() > 0.78


def test_weights_count_like_as_many_trials():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 5, 12).astype(float)
    y, weights = x + rng.normal(size=12), np.array([3] * 4 + [1] * 8)
    expected = spearmanr(np.repeat(x, weights), np.repeat(y, weights)).statistic
    found = weighted_rank_correlation(x, y, np.stack([weights, np.ones(12)]))
    assert found == pytest.approx([expected, spearmanr(x, y).statistic])
    assert weighted_rank_correlation(np.full(3, math.inf), np.arange(3.0), np.ones(3)) == 0


def test_the_cost_and_the_ranking_of_a_population_are_held():
    rng, held, ranked, worst = np.random.default_rng(1), [], [], []
    for _ in range(120):
        early = rng.gamma(2.0, 0.2, 60)
        end = 2 + 0.5 * early + 0.08 * rng.normal(size=60)
        order, events = np.argsort(early), [SessionStarted(session=0, workers=1)]
        for index in range(60):
            trial_id = f"{index:05d}"
            finished = index in order[:6]
            events += [begun(trial_id), report(trial_id, 800, 3 + early[index], "continue" if finished else PAUSE)]
            events += [report(trial_id, BUDGET, end[index], STOP)] if finished else []
        for index in rng.permutation(order[6:])[:10]:
            trial_id = f"{index:05d}-audit"
            events += [begun(trial_id, AUDIT, parent_id=f"{index:05d}"), report(trial_id, BUDGET, end[index], STOP)]
        sample = AuditSample(Trials(BUDGET, 60, events=events))
        best, cost = end[order[:6]].min(), sample.stopping_cost(end[order[:6]].min())
        held.append(cost.low <= max(0.0, best - end[order[6:]].min()) <= cost.high)
        rung = sample.rung_quality(800, (2,))
        ranked.append(rung.low <= spearmanr(early, end).statistic <= rung.high)
        below = sample.share_below(end[order[:6]].max())
        worst.append(below.low <= (end[order[6:]] < end[order[:6]].max()).mean() <= below.high)
    assert all(0.8 <= np.mean(of_one) <= 0.97 for of_one in (held, ranked, worst))


def with_audits(*finals, better=2.5):
    """Ten trials of which two were finished, the better at `better`; audits of the first of the others end at `finals`."""
    events = [SessionStarted(session=0, workers=1)]
    for index in range(10):
        trial_id = f"{index:05d}"
        events += [begun(trial_id), report(trial_id, 400, 3 + index / 10, "continue" if index < 2 else PAUSE)]
        events += [report(trial_id, BUDGET, better + index / 10, STOP)] if index < 2 else []
    for index, final in enumerate(finals, 2):
        trial_id, last = f"{index:05d}-audit", {"diverged": True} if math.isnan(final) else {}
        events += [begun(trial_id, AUDIT, parent_id=f"{index:05d}"), report(trial_id, BUDGET, final, STOP, **last)]
    events = [dataclasses.replace(event, time=float(at)) for at, event in enumerate(events)]
    return summarize_audit(search_of(rungs="0.125:2"), Trials(BUDGET, 10, events=events), events)


def test_what_is_said_of_an_audit():
    assert with_audits() is None
    found = with_audits(2.9, 2.55, math.nan, 2.8, 3.0)
    jsonschema.validate(json.loads(json.dumps(asdict(found))), schema_of(Audit))
    assert (found.left_behind, found.chosen, found.ended) == (8, 5, 5) and found.better == ()
    assert found.below_best.count == 0 and found.below_worst.count == 1 and found.cost.low == 0
    assert found.tokens == 5 * (BUDGET - 400) and found.rungs[0].share == 0.125
    said = "\n".join(audit_lines(found))
    assert "5 of the 8 left behind" in said and "0 of them ended below the best" in said and "names no best" not in said
    wrong = with_audits(2.4, 2.3, 2.9, 3.0)
    assert wrong.better[0] == AuditedTrial("00003-audit", 2.3) and wrong.cost.low == pytest.approx(0.2)
    assert "00003-audit ended at 2.3000, below the best" in "\n".join(audit_lines(wrong))
    few = with_audits(2.9)
    assert few.rungs == () and few.cost.high is None and "too few" in "\n".join(audit_lines(few))


def test_the_rung_that_would_have_ranked_better_is_named():
    def rung(share, one_in, **kept):
        return RungQuality(100, share, 0.9, 0.8, 1.0, {"2": 0.95, "4": 0.9, "8": 0.5} | kept, one_in)

    early, late = rung(1 / 32, 2, **{"2": 0.6}), rung(1 / 8, None)
    assert rung_verdict([rung(1 / 64, None), early, late]).endswith(
        "with probability 0.60; one at 1/8 instead would have with 0.95."
    )
    assert rung_verdict([rung(1 / 32, 8), rung(1 / 8, None)]).endswith("one in 4 there with 0.90.")
    assert "ranked well" in rung_verdict([rung(1 / 32, 2), late]) and rung_verdict([late]) == ""
    assert rung_verdict([early]).endswith("none of those looked at would have with 0.90.")


# Live


def test_an_audit_goes_on_from_the_rungs_and_a_search_that_has_ended_takes_a_larger_one(byte_files, tmp_path):
    search = FaultSearch(
        tmp_path / "run", byte_files, num_samples=7, replicate_best=0, scheduler="asha", rungs="0.25:7", audit_fraction=0.5
    )
    search.finish()
    trials, history = (table.set_index("trial_id") for table in search.tables())
    audits, best = trials[trials["source"] == AUDIT], (search.folder / "best_config.json").read_text()
    left = trials[trials["status"] == PAUSED]
    assert len(audits) == math.ceil(len(left) / 2) and set(audits["status"]) == {COMPLETED} and audits["checkpoint"].all()
    for audit, row in audits.iterrows():
        of = left.loc[audit.removesuffix("-audit")]
        assert history.loc[audit, "tokens_seen"].min() > of["tokens_seen"] and row["learning_rate"] == of["learning_rate"]

    search.change(audit_fraction=1.0)  # as --resume RUN --audit_fraction 1
    search.finish()
    assert (search.folder / "best_config.json").read_text() == best
    again = search.tables()[0].set_index("trial_id")
    assert (again["source"] == AUDIT).sum() == len(left)
    pd.testing.assert_frame_equal(again.loc[trials.index].drop(columns="checkpoint"), trials.drop(columns="checkpoint"))
    said, found = write_report(search.folder), json.loads((search.folder / "summary.json").read_text())
    jsonschema.validate(found, SCHEMA)
    assert found["audit"]["ended"] == found["audit"]["left_behind"] == len(left)
    assert f"{len(left)} of the {len(left)} left behind" in said and found["audit"]["rungs"][0]["one_in"] is None
    assert {rung["share"]: rung["one_in"] for rung in found["audit"]["rungs"]}[0.25] == 7
    budget = pd.read_csv(search.folder / "figures" / "budget.csv")
    assert found["cost"]["tokens"] == budget[["sampled", "suggested", "replicate", AUDIT]].to_numpy().sum()
    page = (search.folder / "report.html").read_text()
    assert "left behind, drawn by lot" in page and "id=audit" in page
    assert load(search.folder)[1].replicates == 0
