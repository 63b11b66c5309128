"""Who goes on at a rung: by hand, and by properties. No Ray."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tune import report, state_of

from myllm.errors import InputError
from tune.ending import plan_the_end, tokens_to_finish
from tune.schedulers import (
    CONTINUE,
    PAUSE,
    SCHEDULERS,
    STOP,
    Asha,
    AshaStop,
    format_ladder,
    geometric_ladder,
    parse_ladder,
)
from tune.state import COMPLETED, DIVERGED, INTERRUPTED, REPORTED, STOPPED

LADDER = ((1 / 16, 4), (1 / 4, 4))
BUDGET, MARK = 3200, 100


def marks(scheduler):
    return [(rung.mark, rung.one_in) for rung in scheduler.rungs]


def test_rungs_lie_on_marks():
    assert marks(Asha(LADDER, BUDGET, MARK)) == [(200, 4), (800, 4)]
    assert marks(Asha(((0.01, 2), (0.05, 3), (0.99, 2)), BUDGET, MARK)) == [(100, 2), (200, 3)]
    assert marks(Asha(((0.01, 2), (0.02, 3)), BUDGET, MARK)) == [(100, 3)]  # two at one mark: the harsher


def test_ladders_are_read_and_written():
    ladder = parse_ladder("0.03125:2,0.125:8")
    assert ladder == ((1 / 32, 2), (1 / 8, 8)) and parse_ladder(format_ladder(ladder)) == ladder
    assert geometric_ladder(1 / 16, 4) == ((1 / 16, 4), (1 / 4, 4))
    for bad in ("", "0.5", "0.5:1", "0:2", "1:2", "0.5:2,0.25:2", "0.5:2,0.5:3", "a:2", "0.5:2.5", "nan:2"):
        with pytest.raises(InputError, match="--rungs"):
            parse_ladder(bad)


def feed(scheduler, trial_id, tokens, loss):
    """Reports as a live search does; returns the decision."""
    decision = scheduler.decision(trial_id, tokens, loss)
    scheduler.record(trial_id, tokens, loss, decision)
    return decision


def test_stopping_asha_by_hand():
    scheduler = AshaStop(LADDER, BUDGET, MARK)
    losses = [("a", 4.0), ("b", 6.0), ("c", 4.0), ("d", 3.0), ("e", 3.5), ("f", 3.4), ("g", 3.4)]
    # Of n losses the best max(1, n // 4) go on, here one; of equals the earlier is the better.
    assert [feed(scheduler, t, 200, loss) for t, loss in losses] == [CONTINUE, STOP, STOP, CONTINUE, STOP, STOP, STOP]
    assert [feed(scheduler, t, 200, loss) for t, loss in [("h", 2.0), ("i", 2.5), ("j", 2.7)]] == [
        CONTINUE,  # the eighth: from now on two
        CONTINUE,
        STOP,
    ]
    assert feed(scheduler, "d", 800, 9.0) == CONTINUE
    assert feed(scheduler, "h", 800, 9.5) == STOP
    assert feed(scheduler, "d", 300, 99.0) == CONTINUE  # not a rung


def test_promotion_by_hand():
    scheduler = Asha(((1 / 16, 2), (1 / 4, 2)), BUDGET, MARK)
    assert feed(scheduler, "a", 200, 5.0) == PAUSE and scheduler.turn() is None
    assert feed(scheduler, "b", 200, 6.0) == PAUSE and scheduler.turn() == "a"  # one of two
    scheduler.promote("a")
    assert scheduler.turn() is None
    assert feed(scheduler, "c", 200, 4.0) == PAUSE  # better, but of three still one
    assert feed(scheduler, "d", 200, 3.0) == CONTINUE  # of four two, and it is the best
    assert feed(scheduler, "d", 800, 2.0) == PAUSE
    assert feed(scheduler, "a", 800, 2.0) == PAUSE and scheduler.turn() == "d"  # of equals the earlier
    assert feed(scheduler, "e", 200, 9.0) == PAUSE
    assert feed(scheduler, "f", 200, 1.0) == PAUSE  # it would go on, but the higher rung comes first
    assert scheduler.turn() == "d"
    scheduler.promote("d")
    assert scheduler.turn() == "f"


def test_the_end_lets_at_least_so_many_go_on_but_waits_for_those_below():
    scheduler = Asha(((1 / 16, 4), (1 / 4, 4)), BUDGET, MARK)
    for trial_id, loss in (("a", 3.0), ("b", 2.0), ("c", 1.0)):
        feed(scheduler, trial_id, 200, loss)
    assert scheduler.turn() is None
    assert scheduler.goes_on(0, 1, 1) == 3  # thrice the one at the last rung: not the fourth
    assert scheduler.final_turn(1, slowest=100) is None  # one is on its way to the first rung
    assert scheduler.final_turn(1, slowest=math.inf) == "c"
    scheduler.promote("c")
    assert scheduler.final_turn(1, slowest=200) == "b"
    scheduler.promote("b")
    assert feed(scheduler, "d", 200, 4.0) == PAUSE
    assert scheduler.final_turn(1, slowest=200) == "a"  # one at the last rung, three at the first
    scheduler.promote("a")
    assert feed(scheduler, "c", 800, 1.0) == PAUSE and feed(scheduler, "a", 800, 3.0) == PAUSE
    assert scheduler.final_turn(1, slowest=300) is None  # b has not come to the second rung yet; d stays
    assert feed(scheduler, "b", 800, 0.5) == PAUSE
    assert scheduler.final_turn(1, slowest=math.inf) == "b"
    scheduler.promote("b")
    assert scheduler.final_turn(1, slowest=math.inf) is None


def test_late_promotion_by_hand():
    scheduler = Asha(((1 / 16, 2), (1 / 4, 2)), BUDGET, MARK, late=True)
    for trial_id, loss in zip("abcdefgh", (8.0, 3.0, 6.0, 5.0, 1.0, 7.0, 2.0, 4.0), strict=True):
        assert feed(scheduler, trial_id, 200, loss) == PAUSE  # b would have gone on at once
        assert scheduler.turn() is None
    went = []
    while (trial_id := scheduler.final_turn(1, math.inf)) is not None:
        scheduler.promote(trial_id)
        went.append(trial_id)
    assert went == ["e", "g", "b", "h"]  # four of eight, the best of all
    assert [feed(scheduler, t, 800, loss) for t, loss in zip("egbh", (2.0, 4.0, 1.0, 3.0), strict=True)] == [PAUSE] * 4
    assert scheduler.goes_on(1, 0, 1) == 2 and scheduler.final_turn(1, math.inf) == "b"


def test_a_withdrawn_trial_takes_nobodys_place():
    scheduler = Asha(((1 / 16, 2),), BUDGET, MARK)
    feed(scheduler, "a", 200, 1.0), feed(scheduler, "b", 200, 2.0)
    scheduler.withdraw("a")
    assert scheduler.turn() == "b" and feed(scheduler, "a", 800, 9.0) == CONTINUE
    assert scheduler.goes_on(0, 0, 1) == 0 and scheduler.goes_on(0, 0, 2) == 1  # a would have gone on: it is one of them
    scheduler.promote("b")
    assert scheduler.goes_on(0, 0, 2) == 0
    assert Asha(LADDER, BUDGET, MARK).out_of_reach("x", 1)


def test_out_of_reach_means_not_promoted_when_twice_as_many_have_come():
    scheduler = Asha(((1 / 16, 4), (1 / 4, 4)), BUDGET, MARK)
    for index in range(8):
        feed(scheduler, str(index), 200, float(index))  # two of eight have gone on, four of sixteen would
    assert [t for t in "234567" if scheduler.out_of_reach(t, 1)] == ["4", "5", "6", "7"]
    assert [t for t in "234567" if scheduler.out_of_reach(t, 2)] == ["6", "7"]  # six at least


LOSSES = st.floats(0, 9, allow_nan=False).map(lambda x: round(x, 1))  # rounded: ties happen
RUNGS = st.sampled_from([((1 / 32, 2), (1 / 8, 8)), ((1 / 16, 4), (1 / 4, 4)), ((1 / 8, 3),)])


def simulate(state, curves, slots, seed, cut=None):
    """Runs a search by a made-up clock: a random running trial reports next. Stops after `cut` events."""
    rng, running = random.Random(seed), {}
    while cut is None or len(state.events) < cut:
        while len(running) < slots and (trial_id := state.next_trial()):
            running[trial_id] = state.tokens_seen(trial_id)
        if not running:
            break
        trial_id = rng.choice(sorted(running))
        running[trial_id] += MARK
        tokens = running[trial_id]
        loss = curves(trial_id, tokens)
        result = dict.fromkeys(REPORTED, 0.0) | {
            "step": tokens // MARK,
            "tokens_seen": tokens,
            "val_loss": loss,
            "diverged": not math.isfinite(loss),
        }
        if state.decide(trial_id, result) != CONTINUE:
            del running[trial_id]
            state.running.discard(trial_id)
    return state


def curve_from(seed, diverging=0.0):
    def loss(trial_id, tokens):
        rng = random.Random(f"{seed} {trial_id.removesuffix('-seed')}")
        if rng.random() < diverging and trial_id != "00000":
            return math.nan
        return round(rng.random() + 1 / (1 + tokens), 2)

    return loss


def new_state(ladder, name="asha", events=(), **changes):
    scheduler = SCHEDULERS[name](ladder, BUDGET, MARK)
    return state_of(events, BUDGET, scheduler, **changes)


@settings(max_examples=60, deadline=None)
@given(RUNGS, st.integers(1, 3), st.integers(0, 10**6), st.integers(1, 30), st.sampled_from([0.0, 0.9]))
def test_never_more_than_one_in_k_goes_on_and_nobody_before_a_better_one_that_waits(ladder, slots, seed, samples, bad):
    state = new_state(ladder, num_samples=samples)
    promote = state.scheduler.promote
    least = {
        rung.mark: 3**above for above, rung in enumerate(reversed(state.scheduler.rungs))
    }  # at the end of a small search

    def checked(trial_id):
        rung = state.scheduler._paused_at[trial_id]
        waiting = {t: loss for t, loss in rung.losses.items() if t not in rung.promoted | rung.withdrawn}
        assert rung.losses[trial_id] == min(waiting.values())
        promote(trial_id)
        if len(rung.promoted) > len(rung.losses) // rung.one_in:
            assert len(rung.promoted) <= least[rung.mark]

    state.scheduler.promote = checked
    simulate(state, curve_from(seed, bad), slots, seed)
    assert state.is_over() and INTERRUPTED not in state.status.values()
    assert state.status["00000"] == COMPLETED or bad
    for rung in state.scheduler.rungs:
        assert len(rung.promoted) <= max(least[rung.mark], len(rung.losses) // rung.one_in)
        assert all(math.isfinite(loss) for loss in rung.losses.values())


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["asha", "asha-stop", "fifo"]),
    st.integers(0, 10**6),
    st.integers(1, 16),
    st.lists(st.integers(1, 120), max_size=4),
    st.integers(0, 3),
)
def test_cut_anywhere_and_resumed_decides_the_same_on_one_slot(name, seed, samples, cuts, confirm):
    ladder = ((1 / 32, 2), (1 / 8, 4))
    curves = curve_from(seed, 0.2)
    changes = dict(num_samples=samples, confirm=confirm)
    whole = simulate(new_state(ladder, name, **changes), curves, 1, seed)
    events = []
    for cut in cuts:
        state = simulate(new_state(ladder, name, events, **changes), curves, 1, seed, cut=len(events) + cut)
        events = state.events
        if events and events[-1]["event"] == "report":  # as after a crash between a checkpoint and the next report
            again = state.decide(events[-1]["trial_id"], events[-1])
            assert again == (events[-1]["decision"]) and len(state.events) == len(events)
    broken = simulate(new_state(ladder, name, events, **changes), curves, 1, seed)
    assert broken.events == whole.events


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.lists(LOSSES, min_size=1, max_size=20))
def test_what_is_read_back_holds_the_same_rungs(seed, slots, losses):
    state = simulate(new_state(((1 / 32, 2), (1 / 8, 4)), num_samples=len(losses)), curve_from(seed), slots, seed, cut=50)
    again = new_state(((1 / 32, 2), (1 / 8, 4)), events=state.events, num_samples=len(losses))
    assert [vars(rung) for rung in again.scheduler.rungs] == [vars(rung) for rung in state.scheduler.rungs]
    assert again.status == state.status and again.scheduler.turn() == state.scheduler.turn()


def test_diverged_trials_stop_and_move_nobodys_cutoff():
    clean, dirty = Asha(LADDER, BUDGET, MARK), Asha(LADDER, BUDGET, MARK)
    state = state_of([], BUDGET, dirty)
    for index in range(40):
        loss = float((7 * index) % 40)
        for bad in range(9):  # nine in ten diverge
            state.record("trial", trial_id=f"{index}-{bad}", config={})
            metrics = report("", 200, (math.nan, math.inf, 0.0)[bad % 3], diverged=True)  # 0.0: its gradient was not finite
            assert state.decide(f"{index}-{bad}", metrics) == STOP
        assert feed(dirty, f"x{index}", 200, loss) == feed(clean, f"x{index}", 200, loss)
    assert [rung.losses for rung in dirty.rungs] == [rung.losses for rung in clean.rungs]


def test_a_search_of_a_few_ends_with_the_reference_and_the_best_on_a_fresh_seed():
    state = simulate(new_state(((1 / 32, 2), (1 / 8, 8)), num_samples=16, confirm=3), curve_from(5), 1, 5)
    done = [t for t, status in state.status.items() if status == COMPLETED]
    confirmed = {of for trial_id, of in state.confirms.items() if state.status[trial_id] == COMPLETED}
    assert "00000" in done and "00000" in confirmed and 3 <= len(confirmed) <= 4
    seeds = {"seed": 7 + 1_000_003, "seed2": 7 + 2 * 1_000_003}
    assert all(state.configs[t] == {"seed": seeds[t.split("-")[1]]} for t in state.confirms)
    best = sorted((t for t in done if t not in state.confirms), key=state.last_loss)[:3]
    assert set(best) <= confirmed


def test_looks_at_the_best_before_anybody_goes_on_from_the_last_rung_in_the_end():
    state = new_state(((1 / 8, 8),), num_samples=7, confirm=3)
    losses = dict(zip("0123456", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0), strict=True))
    fresh = {"0": 1.0, "1": 8.0, "2": 3.5, "3": 3.0}  # 1 was lucky: a mean of 5.0
    started = []
    while (trial_id := state.next_trial()) is not None:
        started.append(trial_id[4:])
        loss = (fresh if trial_id in state.confirms else losses)[trial_id[4]]
        seen, decision = state.tokens_seen(trial_id), CONTINUE
        while decision == CONTINUE:
            seen += MARK
            decision = state.decide(trial_id, report(trial_id, seen, loss, step=seen))
        state.record("checkpoint", trial_id=trial_id, step=seen, path=trial_id)
        state.running.discard(trial_id)
        if started[-1] in ("1-seed", "2-seed2"):
            kept = {400} if started[-1] == "1-seed" else set()  # a second is never a confirmation
            assert seen == 400 and state.kept_checkpoints(trial_id) == kept and not state.is_over()
    assert started[:8] == [*"0123456", "0"]
    # Two places beside the reference: those that hold them are looked at twice, 1 until it does no longer. Then all three
    # that completed are confirmed.
    assert started[8:13] == ["1-seed", "2-seed", "2-seed2", "3-seed", "3-seed2"]
    assert started[13:] == ["2", "3", "0-seed", "2-seed", "3-seed"]
    assert state.is_over() and state.status["00001-seed"] == state.status["00001"] == STOPPED


def test_a_second_look_that_diverges_keeps_its_configuration_from_going_on():
    state = new_state(((1 / 8, 8),), num_samples=4, confirm=2)
    simulate(state, lambda trial_id, tokens: math.nan if trial_id == "00001-seed" else float(trial_id[4]), 1, 0)
    assert state.is_over() and state.status["00001-seed"] == DIVERGED
    assert [state.status[f"0000{i}"] for i in range(4)] == [COMPLETED, STOPPED, COMPLETED, STOPPED]


def test_a_trial_goes_on_only_after_it_has_left_its_slot():
    state = state_of([], num_samples=2, scheduler=Asha(((1 / 4, 2),), BUDGET, MARK), budget_tokens=BUDGET)
    state.record("session", slots=2)
    assert [state.next_trial(), state.next_trial()] == ["00000", "00001"]
    for trial_id, tokens, loss in (("00001", 800, 3.0), ("00000", BUDGET, 4.0)):
        state.decide(trial_id, report(trial_id, tokens, loss))
    state.running.discard("00000")
    assert state.status["00001"] == STOPPED and state.next_trial() is None and not state.is_over()  # it stores its state
    state.running.discard("00001")
    assert state.next_trial() == "00001" and state.status["00001"] == INTERRUPTED


def test_a_grown_search_lets_new_trials_compete_in_the_same_rungs():
    small = simulate(new_state(((1 / 8, 4),), num_samples=8), curve_from(2), 1, 2)
    grown = simulate(new_state(((1 / 8, 4),), events=small.events, num_samples=32), curve_from(2), 1, 2)
    rung = grown.scheduler.rungs[0]
    assert set(small.scheduler.rungs[0].losses) <= set(rung.losses) and len(rung.promoted) == len(rung.losses) // 4
    assert grown.is_over() and not small.status.keys() ^ set(list(grown.status)[:8])


def test_lost_processes_are_bounded_and_errors_of_the_code_are_not_repeated():
    state = new_state((), "fifo", num_samples=3, max_failures=2)
    for _ in range(3):
        assert state.next_trial() == "00000"
        state.failure("00000", may_pass=True, reason="killed")
        state.running.clear()
    assert state.status["00000"] == "failed" and state.reasons["00000"] == "killed"
    state.next_trial()
    state.failure("00001", may_pass=False, reason="ValueError: x")
    assert state.status["00001"] == "failed"


def test_checkpoints_worth_their_room():
    state = new_state(((1 / 8, 2),), num_samples=4)
    first = state.next_trial()
    for step, loss in ((1, 5.0), (2, 3.0), (3, 4.0)):
        state.decide(first, report(first, step * MARK, loss, step=step))
        state.record("checkpoint", trial_id=first, step=step, path=str(step))
    assert state.kept_checkpoints(first) == {2, 3}
    state.decide(first, report(first, 4 * MARK, 4.5, step=4))
    assert state.status[first] == STOPPED and state.kept_checkpoints(first) == {3}  # waits: it may be promoted
    state.record("promote", trial_id=first, guaranteed=True)
    state.decide(first, report(first, BUDGET, 4.0, step=32))
    state.record("checkpoint", trial_id=first, step=32, path="32")
    assert state.status[first] == COMPLETED and state.kept_checkpoints(first) == {2, 32}
    state.running.clear()
    second = state.next_trial()
    state.record("checkpoint", trial_id=second, step=1, path="x")
    state.decide(second, report(second, MARK, math.nan, diverged=True))
    assert state.kept_checkpoints(second) == set()


def test_what_is_left_when_no_more_trials_are_drawn_by_hand():
    state = new_state(((1 / 8, 4),), num_samples=100, confirm=2)
    reference = state.next_trial()
    # Two trials to the rung at 400, two looks at both; two finalists from there to 3200, maybe the reference; three
    # confirmations.
    assert tokens_to_finish(state, draws=1) == 2 * 400 + 4 * 400 + 2 * 2800 + 3200 + 3 * 3200
    state.decide(reference, report(reference, 400, 1.0))
    second = state.next_trial()
    state.decide(second, report(second, 300, 1.0))
    # The rest of the second to the rung and a third trial; two looks at all three; two finalists and the reference; the
    # confirmations.
    assert tokens_to_finish(state, draws=1) == 100 + 400 + 6 * 400 + 3 * 2800 + 3 * 3200
    state.record("session", session=0, slots=2)
    # One slot, while the other looks: the reference, a finalist, confirmations.
    assert tokens_to_finish(state, draws=1) == 100 + 2800 + 2800 + 2 * 3200
    state.record("session", session=0, slots=8)
    assert tokens_to_finish(state, draws=1) == 400 + 400 + 2800 + 3200
    state.record("promote", trial_id=reference, guaranteed=True)
    state.decide(reference, report(reference, 1200, 1.0))  # on its last stretch, as one of the two
    state.record("session", session=0, slots=1)
    assert tokens_to_finish(state, draws=1) == 100 + 400 + 2000 + 4 * 400 + 2800 + 3 * 3200


def closed_at_the_last_rung(confirm):
    """Eight trials wait at the only rung, of which two may go on, and no more are drawn; and the function that runs one."""
    state = state_of((), BUDGET, Asha(((1 / 8, 8),), BUDGET, MARK, late=True), num_samples=8, confirm=confirm)
    state.record("session", session=0, slots=2)

    def run_next(tokens):
        trial_id = state.next_trial()
        state.decide(trial_id, report(trial_id, tokens, 1.0 + int(trial_id[:5]), step=tokens))
        state.running.discard(trial_id)
        return trial_id

    for _ in range(8):
        run_next(400)
    state.record("close")
    assert run_next(BUDGET) == "00000"  # the reference
    return state, run_next


def planned(state):
    return [event["trials"] for event in state.events if event["event"] == "finalists"]


def test_as_many_finish_as_there_is_time_for():
    state, run_next = closed_at_the_last_rung(confirm=2)
    # Beside the reference one more goes on. Two slots: two looks at it and at one more a slot, three; its 2800 to the end;
    # its confirmation and the reference's, in full, should it be one that nobody looked at.
    assert tokens_to_finish(state) == 3 * 400 + 2800 + 3200
    left = tokens_to_finish(state, finalists=1)
    assert left == 4 * 400 + 2800 + 2 * 3200
    slack = 2 * 400  # for more than were planned
    plan_the_end(state, left + slack - 1)
    assert planned(state) == []
    plan_the_end(state, left + slack)
    assert planned(state) == [2]
    plan_the_end(state, left)
    assert planned(state) == [2]
    plan_the_end(state, 400)
    assert planned(state) == [2, 1]  # late: one finishes whatever happens
    plan_the_end(state, left + slack)
    assert [run_next(400) for _ in range(4)] == [f"0000{i}-{seed}" for i in (1, 2) for seed in ("seed", "seed2")]
    assert [run_next(BUDGET) for _ in range(2)] == ["00001", "00002"]
    plan_the_end(state, left + slack - 1)  # of as many again, one
    assert planned(state) == [2, 1, 2, 3]
    plan_the_end(state, left + slack)
    assert planned(state) == [2, 1, 2, 3, 4]
    assert [run_next(400) for _ in range(4)] == [f"0000{i}-{seed}" for i in (3, 4) for seed in ("seed", "seed2")]
    assert [run_next(BUDGET) for _ in range(2)] == ["00003", "00004"] and run_next(900) == "00000-seed"
    count = len(state.events)
    plan_the_end(state, 10**6)  # those to confirm are known
    assert len(state.events) == count


def test_a_search_that_opens_again_plans_its_finalists_anew():
    state, _ = closed_at_the_last_rung(confirm=2)
    plan_the_end(state, 10**6)
    assert planned(state) == [7] and state.scheduler.contenders(state.finalists)[1] == 7
    state.record("reopen")
    assert state.scheduler.contenders(state.finalists)[1] == 1  # and the reference


def test_offspring_runs_up_to_the_last_rung_before_anybody_goes_on_from_there():
    bred = []
    plan = dict(num_samples=100, confirm=2, breed=lambda index, state: bred.append(state.scheduler.prospects()) or {})
    state = state_of((), BUDGET, Asha(((1 / 16, 2), (1 / 8, 2)), BUDGET, MARK, late=True), **plan)

    def run_next(loss):
        trial_id, decision = state.next_trial(), CONTINUE
        while decision == CONTINUE:
            seen = state.tokens_seen(trial_id) + MARK
            decision = state.decide(trial_id, report(trial_id, seen, loss, step=seen))
        state.running.discard(trial_id)
        return trial_id, seen

    assert [run_next(float(i)) for i in range(12)] == [(f"{i:05d}", 200) for i in range(12)]
    assert not state.breeds
    state.record("close")
    assert run_next(0.0) == ("00000", BUDGET)  # the reference
    assert [run_next(float(i)) for i in range(1, 6)] == [(f"{i:05d}", 400) for i in range(1, 6)] and state.breeds
    assert run_next(2.5) == ("00012", 400) and run_next(0.5) == ("00013", 400)
    assert bred == [[f"{i:05d}" for i in numbers] for numbers in ((1, 2, 3, 4, 5), (1, 2, 12, 3, 4, 5))]
    assert tokens_to_finish(state, offspring=1) == tokens_to_finish(state) + 400
    plan_the_end(state, tokens_to_finish(state, offspring=1))
    assert state.breeds
    plan_the_end(state, tokens_to_finish(state, offspring=1) - 1)
    # Two of the five that were drawn and came to the last rung go on, however much offspring came too, and it may win.
    assert not state.breeds and state.scheduler.contenders(2)[1] == 2
    looks = [run_next(loss) for loss in (0.5, 0.5, 1.0, 1.0)]
    assert looks == [(f"{trial_id}-{seed}", 400) for trial_id in ("00013", "00001") for seed in ("seed", "seed2")]
    assert run_next(1.0) == ("00013", BUDGET)
    again = state_of(state.events, BUDGET, Asha(((1 / 16, 2), (1 / 8, 2)), BUDGET, MARK, late=True), **plan)
    assert run_next(1.0)[0] == "00001" == again.next_trial()
    state.record("reopen")
    assert state.next_trial() == "00014" and not state.bred  # a longer search draws, and breeds, again


def test_half_of_three_finalists_or_more_are_chosen_with_their_rate_in_mind():
    scheduler = Asha(((1 / 8, 8),), BUDGET, MARK, late=True)
    for place in range(16):  # a rate e times as high is worth five hundredths
        scheduler.enter(f"{place:02d}", {6: math.e**2, 10: math.e**3, 15: math.e}.get(place, 1.0))
        feed(scheduler, f"{place:02d}", 400, 3.0 + place / 100)
    scheduler.let_go_on(2)
    assert scheduler.contenders(1) == ([f"{place:02d}" for place in range(16)], 2)
    scheduler.let_go_on(5)
    assert scheduler.prospects()[:4] == ["10", "06", "00", "01"]
    assert [trial_id for trial_id in ("03", "04", "06", "10", "15") if scheduler.out_of_reach(trial_id, 1)] == ["04", "15"]
    assert scheduler.contenders(1)[0][:5] == ["06", "10", "00", "01", "02"] and scheduler.contenders(1)[1] == 5
    for trial_id in ("06", "10", "00"):
        assert scheduler.final_turn(1, math.inf) == trial_id
        scheduler.promote(trial_id)
    scheduler.look("01", 3.5)  # by the mean it is the last
    assert scheduler.contenders(1)[0][:2] == ["02", "03"] and scheduler.contenders(1)[1] == 2


def test_no_more_finish_than_the_ladder_says_where_nothing_is_confirmed():
    state, run_next = closed_at_the_last_rung(confirm=0)
    plan_the_end(state, 10**6)
    assert planned(state) == [] and run_next(BUDGET) == "00001" and state.is_over()


def test_finalists_are_those_to_confirm_and_as_many_more_as_keep_every_slot_busy():
    state = new_state(((1 / 8, 4),), num_samples=100, confirm=3)
    for slots, finalists in ((1, 3), (2, 4), (3, 3), (8, 8)):
        state.record("session", session=0, slots=slots)
        assert state.finalists == finalists


def test_a_closed_search_draws_no_more_and_ends_with_its_finalists():
    state = new_state(((1 / 8, 4),), num_samples=100, confirm=2)
    simulate(state, curve_from(3), 2, 3, cut=30)
    drawn = sum("-seed" not in trial_id for trial_id in state.status)
    state.record("close")
    for trial_id in list(state.running):
        state.running.discard(trial_id)
    simulate(state, curve_from(3), 2, 3)
    completed = [t for t, status in state.status.items() if status == COMPLETED]
    assert sum("-seed" not in trial_id for trial_id in state.status) == drawn < 100
    assert "00000" in completed and len(state.confirms) >= 2 and state.is_over()
    state.record("reopen")
    assert not state.is_over()
