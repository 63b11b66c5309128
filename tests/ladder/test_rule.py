"""The rule of a ladder in a simulated world: its phases, its verification, its clock, and that it remembers nothing."""

import math
from dataclasses import replace

import pytest
from test_plan import MILLION, plan_of

from tune.core.coordinator import Coordinator
from tune.core.events import Reported, SessionStarted, TrialFailed, TrialStarted
from tune.core.schedulers.base import Clock
from tune.core.simulator import play
from tune.core.trials import COMPLETED, DIVERGED, SAMPLED, SUGGESTED, Trials
from tune.ladder.plan import TOP_RUNS
from tune.ladder.rule import STABILITY_WARMUP, LadderScheduler
from tune.ladder.runs import answered, check_level, outcome, runs_below, stage, trials_by_level
from tune.store.checkpoints import worth_keeping

PLAN = plan_of(MILLION)


def optimum(params, tokens):
    """The world's best learning rate and batch in tokens."""
    return 2e-3 * (params / 1e6) ** -0.4 * (tokens / 1e6) ** 0.2, 600 * (tokens / 1e6) ** 0.5


def loss_of(trial, tokens, surprise=1.0, plan=PLAN):
    """A made-up loss; beyond 20 times the best rate a training diverges. From the top level on it is `surprise` times what
    the levels below say.
    """
    config = trial.config
    params, length = 12 * config["n_layer"] * config["n_embd"] ** 2, config["budget_tokens"]
    rate, batch = optimum(params, length)
    surprise = surprise if params >= plan.levels[plan.top].params else 1.0
    u, v = math.log(config["learning_rate"] / rate), math.log(config["batch_size"] * plan.window / batch)
    if u > 3:
        return math.nan
    t = u - 0.25 * v
    noise = 1e-3 * math.sin(1e3 * config["learning_rate"])
    return (
        surprise * 2.2 * (params * length / 1e12) ** -0.06 * math.exp(0.05 * (math.exp(t) - 1 - t) + 0.02 * v * v / 2)
        + noise
    )


def coordinator_of(plan=PLAN, events=(), workers=1, record=None):
    events = events or [SessionStarted(session=0, workers=workers)]
    record = [] if record is None else record

    def append(event):
        record.append(event)
        return event

    trials = Trials(plan.target.tokens, plan.trials, events=events)
    return Coordinator(trials, LadderScheduler(plan, 0, plan.target.tokens // 8), None, append)


def played(plan=PLAN, surprise=1.0, workers=1, record=None, events=(), **how):
    coordinator = coordinator_of(plan, events, workers, record)
    play(coordinator, lambda trial, tokens: loss_of(trial, tokens, surprise, plan), **how)
    return coordinator.trials


def test_levels_run_smallest_first_and_end_with_the_targets_stability():
    record = []
    trials = played(record=record)
    ends = [event.decision for event in record if isinstance(event, Reported)]
    assert ends.count("stop") == PLAN.trials and "pause" not in ends
    sizes = [trial.config["n_layer"] for trial in trials.drawn]
    assert sizes == sorted(sizes) and len(sizes) == PLAN.trials and sizes[-3:] == [3, 6, 6]
    assert all(trial.status == COMPLETED and trial.tokens == trial.config["budget_tokens"] for trial in trials.drawn)
    first, *spread = [trial.config for trial in trials.drawn if trial.source == SAMPLED]
    rate, batch = PLAN.centre(PLAN.levels[0])
    assert (first["learning_rate"], first["batch_size"]) == (pytest.approx(rate, rel=1e-3), batch)
    assert len({config["learning_rate"] for config in spread}) == len(spread) == 5
    low, twice = (trial.config for trial in trials.drawn[-2:])
    assert twice["learning_rate"] == pytest.approx(2 * low["learning_rate"], rel=1e-3)
    assert stage(PLAN, trials) == "stability of the target: 2 of 2"
    assert low["warmup_ratio"] == STABILITY_WARMUP and low["budget_tokens"] < 0.01 * PLAN.target.tokens


def test_the_top_is_run_where_smaller_levels_predict_it_then_at_twice_rate_and_batch():
    trials = played()
    first, rate, batch = (trial.config for trial in trials_by_level(PLAN, trials)[PLAN.top])
    assert rate["learning_rate"] == 2 * first["learning_rate"] and rate["batch_size"] == first["batch_size"]
    assert batch["batch_size"] == 2 * first["batch_size"] and batch["learning_rate"] == first["learning_rate"]
    check = check_level(PLAN, trials, PLAN.top)
    assert check.holds and not check.outside and check.widening == 1 and None not in (check.twice_rate, check.twice_batch)


def test_the_answer_is_near_the_worlds_optimum():
    found = outcome(PLAN, played())
    rate, batch = optimum(PLAN.target.params, PLAN.target.tokens)
    assert abs(math.log(found.answer.learning_rate.value / rate)) < math.log(1.6)
    assert found.answer.batch_tokens.low < batch < found.answer.batch_tokens.high
    assert [one.is_stable(257) for one in found.stability] == [True, True]


def test_a_level_keeps_no_state_of_trainings_that_ended():
    trials = played()
    trial = trials.drawn[0]
    trial.checkpoints = {trial.tokens: "folder"}
    assert worth_keeping(trials, trial) == set()


def test_two_workers_find_the_same_answer_and_wait_where_a_prediction_needs_losses():
    record = []
    trials = played(workers=2, record=record)
    top = next(trial.trial_id for trial in trials_by_level(PLAN, trials)[PLAN.top])
    begins = next(i for i, event in enumerate(record) if isinstance(event, TrialStarted) and event.trial_id == top)
    assert sum(isinstance(event, Reported) for event in record[:begins]) == sum(
        len(here) for here in trials_by_level(PLAN, trials)[: PLAN.top]
    )
    assert [len(here) for here in trials_by_level(PLAN, trials)][-1] == 2
    answers = [outcome(PLAN, one).answer.learning_rate.value for one in (trials, played())]
    assert answers[0] == pytest.approx(answers[1], rel=0.3)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.8, 0.95])
def test_a_search_that_goes_on_from_any_event_ends_the_same(share):
    record = []
    whole = played(record=record)
    cut = record[: int(share * len(record))]
    coordinator = coordinator_of(events=[SessionStarted(session=0, workers=1), *cut])
    coordinator.active.clear()
    play(coordinator, loss_of)
    assert [(t.trial_id, t.config, t.losses) for t in coordinator.trials.drawn] == [
        (t.trial_id, t.config, t.losses) for t in whole.drawn
    ]


def test_a_failed_prediction_widens_the_intervals_and_goes_a_level_up_while_the_share_lasts():
    wide = plan_of(MILLION, share=0.6)
    assert wide.levels[wide.top].settings["n_layer"] == 4
    roomy = type(wide)(**{**vars(PLAN), "share": 0.6})  # the levels of 10%, with room for one more
    trials = played(roomy, surprise=1.4)
    counts = [len(here) for here in trials_by_level(roomy, trials)]
    assert counts[roomy.top + 1] == TOP_RUNS and counts[roomy.top + 2] == 0
    failed = check_level(roomy, trials, roomy.top)
    assert not failed.holds and failed.outside == ["loss"]
    assert [len(here) for here in trials_by_level(roomy, played(roomy))][roomy.top + 1] == 0  # nothing failed
    narrow = played(PLAN, surprise=1.4)
    assert len(trials_by_level(PLAN, narrow)[PLAN.top + 1]) == 0
    check = outcome(PLAN, narrow).checks[-1]
    assert check.widening > 1
    plain = answered(runs_below(PLAN, narrow, len(PLAN.levels)), PLAN.target.size).learning_rate
    missed = outcome(PLAN, narrow).answer.learning_rate
    assert math.log(missed.high / missed.low) == pytest.approx(check.widening * math.log(plain.high / plain.low))


def test_a_run_that_diverges_counts_as_untrained_and_one_that_failed_not_at_all():
    coordinator = coordinator_of()
    first = coordinator.next_trial(Clock(0.0))
    coordinator.record(TrialFailed(trial_id=first.trial_id, reason="lost"))
    coordinator.on_end(first)
    play(coordinator, lambda trial, tokens: math.nan if trial.trial_id == "t00001" else loss_of(trial, tokens))
    assert coordinator.trials.by_id["t00001"].status == DIVERGED
    assert outcome(PLAN, coordinator.trials) is not None
    assert any(trial.source == SUGGESTED for trial in coordinator.trials.drawn)


def test_nothing_begins_that_does_not_end_in_time():
    """Runs took a second each; the clock then has time for the short trainings, for one run more, or for nothing."""
    record = []
    whole = played(record=record)
    low, top = PLAN.levels[0], PLAN.levels[PLAN.top]
    count = sum(len(here) for here in trials_by_level(PLAN, whole)[: PLAN.top])
    begins = [index for index, event in enumerate(record) if isinstance(event, TrialStarted)]
    events = [replace(e, train_seconds=1.0) if isinstance(e, Reported) else e for e in record[: begins[count]]]
    rule, trials = LadderScheduler(PLAN, 0, 1), Trials(PLAN.target.tokens, PLAN.trials, events=events)
    one_of_the_top = top.flops / low.flops
    enough, short = (rule.suggest(trials, Clock(10.0, times * one_of_the_top)) for times in (1.01, 0.99))
    assert enough.segment_end_tokens == top.tokens and enough.config["n_layer"] == top.settings["n_layer"]
    assert short.config["n_layer"] == PLAN.target.settings["n_layer"] and short.segment_end_tokens < low.tokens
    assert rule.suggest(trials, Clock(10.0, 1e-3)) is None and rule.suggest(trials, Clock(10.0, 0.0)) is None
