"""Who goes on: by hand, and by properties, on a simulated clock. No Ray."""

import contextlib
import math
import random
import re
from collections import Counter, defaultdict

import pytest
from conftest import BUDGET, MARK, begun, index_of, new_search, report
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm.system.errors import InputError
from tune.core.decision_config import DECISIONS
from tune.core.events import REPORTED, Reported
from tune.core.ranking import by_expected_final_loss, expected_final_loss, ranking
from tune.core.schedulers import SCHEDULERS, geometric_rungs, parse_rungs
from tune.core.schedulers.asha import Asha
from tune.core.schedulers.base import Clock, Replicate, Resume, Start
from tune.core.simulator import play
from tune.core.trials import COMPLETED, DIVERGED, PAUSED, REPLICATE, SAMPLED, STOPPED, SUGGESTED, Trials


def test_rungs_lie_on_marks():
    assert Asha(((1 / 16, 4), (1 / 4, 4)), BUDGET, MARK).factors == {200: 4, 800: 4}
    assert Asha(((0.01, 2), (0.05, 3), (0.99, 2)), BUDGET, MARK).factors == {100: 2, 200: 3}
    assert Asha(((0.01, 2), (0.02, 3)), BUDGET, MARK).factors == {100: 3}  # two at one mark: the harsher


def test_rungs_are_read():
    assert parse_rungs("0.03125:2,0.125:8") == ((1 / 32, 2), (1 / 8, 8))
    assert geometric_rungs(1 / 16, 4) == ((1 / 16, 4), (1 / 4, 4))
    for bad in ("", "0.5", "0.5:1", "0:2", "1:2", "0.5:2,0.25:2", "0.5:2,0.5:3", "a:2", "0.5:2.5", "nan:2"):
        with pytest.raises(InputError, match="--rungs"):
            parse_rungs(bad)


def constant(losses):
    """Trial number i always reports losses[i]; so do its repeats."""
    return lambda trial, tokens: losses[index_of(trial)]


def reached(search):
    """How far each trial came."""
    return {re.sub("^t0*(?=.)", "", trial_id): trial.tokens for trial_id, trial in search.trials.by_id.items()}


def test_fifo_trains_what_fits_to_the_end():
    search = new_search("fifo", num_samples=9, workers=2)
    assert play(search, constant(range(9)), end=2.5 * BUDGET) == 2 * BUDGET
    assert reached(search) == {str(i): BUDGET for i in range(4)}


def test_stopping_asha_by_hand():
    losses = [4.0, 6.0, 4.0, 3.0, 3.5, 3.4, 3.4, 2.0, 2.5, 2.7]
    search = new_search("asha-stop", num_samples=10)
    play(search, constant(losses))
    # Of n losses the best max(1, n // 4) go on at 200, of equals the earlier; from the eighth on these are two. Of those
    # who came to 800 one in four goes on, and the best at least.
    assert reached(search) == dict(
        zip("0123456789", [BUDGET, 200, 200, BUDGET, 200, 200, 200, BUDGET, 800, 200], strict=True)
    )
    assert {search.trials.by_id[f"t0000{i}"].status for i in (1, 8)} == {STOPPED}


def test_promotion_by_hand():
    search = new_search("asha", rungs=((1 / 16, 2), (1 / 4, 2)), num_samples=4)
    steps = [search.next_trial(Clock(0)).trial_id for _ in range(4)]
    assert steps == ["t00000", "t00001", "t00002", "t00003"] and search.next_trial(Clock(0)) is None

    def at_rung(trial_id, tokens, loss):
        result = {"tokens_seen": tokens, "val_loss": loss, "diverged": False}
        trial = search.trials.by_id[trial_id]
        decision = search.on_report(trial, dict.fromkeys(REPORTED, 0.0) | result, Clock(0))
        if decision != "continue":
            search.on_end(trial)
        return decision

    assert at_rung("t00000", 200, 5.0) == "pause"
    assert at_rung("t00001", 200, 6.0) == "pause"  # the first is the better one of two
    assert search.next_trial(Clock(0)).trial_id == "t00000"
    assert at_rung("t00002", 200, 4.0) == "pause"  # better, but of three still one
    assert at_rung("t00003", 200, 3.0) == "continue"  # of four two, and it is the best
    assert at_rung("t00003", 800, 2.0) == "pause"
    assert at_rung("t00000", 800, 2.0) == "pause"  # of equals the earlier: not it
    assert search.next_trial(Clock(0)).trial_id == "t00003" and search.next_trial(Clock(0)) is None


def test_hyperband_starts_brackets_at_each_rung():
    search = new_search("hyperband", rungs=((1 / 16, 4), (1 / 4, 4)), num_samples=27)
    losses = [float((7 * i) % 27) for i in range(27)]
    play(search, constant(losses))
    # 16 at 1/16 of the budget, 8 (twice 4) at 1/4, 3 in full; one in four goes on from each.
    came = [trial.tokens for trial in search.trials.drawn]
    assert sorted(came[:16], reverse=True) == [BUDGET, 800, 800, 800, *[200] * 12]
    assert sorted(came[16:24], reverse=True) == [BUDGET] * 2 + [800] * 6 and came[24:] == [BUDGET] * 3
    assert came[min(range(16), key=losses.__getitem__)] == BUDGET


def test_the_better_half_goes_on_and_every_second_configuration_is_suggested_when_enough_is_known():
    search = new_search("explore-finish", rungs=((1 / 32, 2), (1 / 8, 2), (1 / 4, 2)), num_samples=200)
    play(search, constant([float((37 * i) % 101) for i in range(200)]), end=20 * BUDGET)
    trials = search.trials
    proposed = [trial for trial in trials.drawn if trial.source == SUGGESTED]
    assert proposed and all(800 in trial.losses for trial in proposed)  # they wait at no rung before
    assert all(trial.source == SAMPLED for trial in trials.drawn[: DECISIONS.compared])
    drawn = [trial for trial in trials.drawn if trial.source != SUGGESTED]
    for here, there in ((100, 400), (400, 800)):
        came = [trial for trial in drawn if here in trial.losses]
        gone = [trial for trial in came if there in trial.losses]
        assert len(came) // 2 - 2 <= len(gone) <= len(came) // 2
        assert max(trial.losses[here] for trial in gone) <= sorted(t.losses[here] for t in came)[len(came) // 2 + 2]
    spent = [sum(min(800, trial.tokens) for trial in group) for group in (drawn, proposed)]
    assert abs(spent[0] - spent[1]) <= 800


@pytest.mark.parametrize("rungs", [((1 / 4, 4),), ((1 / 2, 2),), ((1 / 4, 2), (1 / 2, 2))], ids=["1/4", "1/2", "both"])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_finishing_has_its_share_of_the_time_wherever_the_rung_lies(rungs, workers):
    search, spent = new_search("explore-finish", rungs=rungs, num_samples=10_000, workers=workers), Counter()

    def watch(worker, begin, end, trial):
        spent[trial.segment_end_tokens == BUDGET] += end - begin

    play(search, noisy(3), 16 * BUDGET, watch=watch)
    share = spent[True] / (16 * BUDGET * workers)
    assert DECISIONS.finishing_share - 0.16 <= share <= DECISIONS.finishing_share
    assert len(search.trials.drawn) >= 10 * workers


@pytest.mark.parametrize(("baseline", "ends"), [(2.95, ["t00000", "t00006"]), (3.5, [])])
def test_a_short_search_finishes_the_best_and_a_baseline_that_may_be_as_good(baseline, ends):
    """The best at the rung is trial 6; at the end low losses at the rung have fallen least."""
    at_rung = [baseline, 3.2, 3.4, 3.3, 3.6, 3.1, 2.9]

    def loss(trial, tokens):
        first = at_rung[index_of(trial)] if index_of(trial) < 7 else 4.0 + index_of(trial)
        return first if tokens < BUDGET else 5.0 - first

    search = new_search(num_samples=100, workers=2)
    play(search, loss, end=3 * BUDGET)
    assert [trial.trial_id for trial in search.trials.drawn if trial.status == COMPLETED] == ends
    assert ranking(search.trials)[1][0].trial_id == (ends[0] if ends else "t00006")


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_exploring_ends_with_second_seeds_for_the_best_few(workers):
    """Of many with one seed the luckiest leads, and luck lasts to the end."""
    search = new_search("explore-finish", num_samples=10_000, workers=workers, confirm=0)
    rng = random.Random(8)
    luck = defaultdict(rng.random)
    play(search, lambda trial, tokens: 1 + (index_of(trial) + 3) % 7 + luck[trial.trial_id], 3 * BUDGET)
    best = sorted(search.trials.ranked_at(800), key=lambda trial: trial.mean_at(800))[:workers]
    assert all(len(trial.seeds_at(800)) == 2 for trial in best)
    assert search.trials.replicates <= len(search.trials.drawn) / 2  # all others wait with one


def test_the_last_seeds_of_a_short_search_run_side_by_side():
    search, spans = new_search("explore-finish", num_samples=4, workers=2, confirm=0), defaultdict(list)
    losses = constant([1.0, 2.0, 3.0, 4.0])
    over = play(search, losses, watch=lambda worker, begin, end, trial: spans[trial.trial_id].append((begin, end)))
    seeds = [trial for trial in search.trials.by_id.values() if trial.source == REPLICATE]
    assert [trial.status for trial in seeds] == [COMPLETED] * (DECISIONS.seeds - 1)
    first, second = (spans[trial.trial_id] for trial in seeds)
    assert any(begin < end_2 and begin_2 < end for begin, end in first for begin_2, end_2 in second)
    assert over <= 2.5 * BUDGET  # one after the other they end after 3.25


def test_no_single_seed_is_believed():
    def loss(trial, tokens):
        lucky = (
            trial.parent_id == "t00001" and trial.source != REPLICATE
        )  # 00001 would be the best, were it not for its other seeds
        return 0.0 if lucky and tokens == BUDGET else float(index_of(trial)) + 1

    search = new_search("explore-finish", rungs=((1 / 8, 2),), num_samples=4)
    play(search, loss, end=12 * BUDGET)
    _, best = ranking(search.trials)
    assert best[0].trial_id == "t00000" and len(best[0].seeds_at(BUDGET)) >= 2
    assert len(search.trials.by_id["t00001"].seeds_at(BUDGET)) >= 2
    first = next(trial for trial in search.trials.by_id.values() if trial.source == REPLICATE)
    assert first.parent_id == "t00000" and first.losses.keys() >= {400}  # a second seed at the rung, before it goes on


def trials_of(losses):
    """Trials of as many configurations as `losses` has rows; a row has {tokens: loss} of each seed."""
    trials = Trials(BUDGET, len(losses))
    for index, seeds in enumerate(losses):
        for number, reports in enumerate(seeds):
            trial_id, of = f"t{index:05d}" + number * f"-seed{number}", f"t{index:05d}"
            trials.apply(begun(trial_id, REPLICATE if number else SAMPLED, parent_id=of))
            for tokens, loss in reports.items():
                trials.apply(report(trial_id, tokens, loss, "pause"))
    return trials


def test_a_seed_on_its_way_counts_with_what_it_is_expected_to_end_at():
    lucky, sound = [{800: 3.0, BUDGET: 1.0}, {800: 3.4}], [{800: 3.0, BUDGET: 1.1}, {800: 3.0}]
    trials = trials_of([lucky, sound])
    lost = 1.95  # from there to the end, on average
    assert trials.mean_change_from(800) == pytest.approx(-lost)
    assert expected_final_loss(trials.by_id["t00000"], trials) == pytest.approx((1.0 + 3.4 - lost) / 2)
    assert [trial.trial_id for trial in by_expected_final_loss(trials)] == ["t00001", "t00000"]
    assert ranking(trials)[1][0].trial_id == "t00001"
    too_early = trials_of([[{400: 3.0, BUDGET: 1.0}, {400: 9.0}], [{400: 3.0, BUDGET: 1.1}]])
    assert ranking(too_early)[1][0].trial_id == "t00000"
    # Nor at a rung: there the one that is looked at again would be behind those that were not.
    rung = trials_of([[{400: 3.0, 800: 2.0}, {400: 3.4}], [{400: 3.0, 800: 2.1}]])
    assert ranking(rung)[1][0].trial_id == "t00000"


def test_a_lucky_pair_of_seeds_is_behind_what_three_seeds_say():
    three, worse = [{BUDGET: 2.0}] * 3, [{BUDGET: 1.5}, {BUDGET: 2.6}]
    pair = [{BUDGET: 1.0}, {BUDGET: 2.9}]
    assert [trial.trial_id for trial in ranking(trials_of([worse, pair, three]))[1]] == ["t00002", "t00001", "t00000"]
    assert ranking(trials_of([worse, pair]))[1][0].trial_id == "t00001"  # where none has three, two are trusted


def test_a_baseline_with_fewer_seeds_is_named_before_what_is_worse():
    three, pair = [{BUDGET: 2.0}] * 3, [{BUDGET: 1.0}, {BUDGET: 2.9}]
    for baseline, order in (([{BUDGET: 1.99}], "021"), ([{BUDGET: 2.01}], "210")):
        ranked = ranking(trials_of([baseline, pair, three]))[1]
        assert "".join(trial.trial_id[-1] for trial in ranked) == order
    alone = trials_of([[{BUDGET: 2.0}] * 2, [{BUDGET: 1.0}]])  # its seeds put no other one behind it
    assert ranking(alone)[1][0].trial_id == "t00001"


def test_a_seed_that_diverged_is_trusted_for_nothing():
    once, twice = [{BUDGET: 1.0}, {BUDGET: math.inf}], [{BUDGET: 1.0}, {BUDGET: 1.1}, {BUDGET: math.inf}]
    single, pair = [{BUDGET: 2.0}], [{BUDGET: 2.0}, {BUDGET: 2.1}]
    for diverged, sound in ((once, single), (twice, pair), (twice, single)):
        for workers in (1, 2, 8):
            trials = trials_of([diverged, sound, [{BUDGET: 9.0}]])
            trials.workers = workers
            assert [trial.trial_id for trial in ranking(trials)[1]] == ["t00001", "t00002", "t00000"]


def test_a_baseline_that_ended_alone_gets_no_seed_before_another_configuration_ends():
    """With two seeds it would be named before better ones with one: the time that is left fits no other seed."""
    search = new_search("explore-finish", num_samples=1000, workers=2, confirm=0)
    rng = random.Random(1)
    levels = [rng.random() for _ in range(1000)]

    def loss(trial, tokens):  # the baseline leads at the rung, where it gets a seed, and ends last
        if trial.parent_id == "t00000":
            return 9.0 if tokens == BUDGET else 0.0
        return 1 + levels[index_of(trial)]

    play(search, loss, end=8 * BUDGET)
    assert search.trials.baseline.status == COMPLETED and len(search.trials.baseline.seeds_at(BUDGET)) == 1
    assert ranking(search.trials)[1][0].trial_id != "t00000"


def test_a_bad_baseline_that_finishes_gets_no_seeds_beside_it():
    """With three seeds it would be named before better ones with one or two."""
    rng = random.Random(64)
    levels = [1 + rng.random() for _ in range(64)]
    for quarters in range(8, 17):
        search = new_search("explore-finish", num_samples=64, workers=8, confirm=0)
        play(search, lambda trial, tokens: 9.0 if trial.parent_id == "t00000" else levels[index_of(trial)], quarters * 800)
        assert ranking(search.trials)[1][0].trial_id != "t00000"


def test_it_ends_with_more_seeds_of_its_best_instead_of_what_could_not_be_believed_in_time():
    search = new_search("explore-finish", num_samples=1000, workers=2)
    play(search, constant([(37 * i % 101) + 1.0 for i in range(1000)]), end=8 * BUDGET)
    done = [trial for trial in search.trials.drawn if trial.status == COMPLETED]
    assert 2 <= len(done) <= 3 and len(min(done, key=lambda trial: trial.losses[BUDGET]).seeds_at(BUDGET)) >= 2


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_a_search_of_few_still_finishes_its_best(samples):
    search = new_search("explore-finish", num_samples=samples, confirm=1)
    play(search, lambda trial, tokens: 9.0 if trial.parent_id == "t00000" else float(index_of(trial)))
    done = {trial.trial_id for trial in search.trials.drawn if trial.status == COMPLETED}
    assert done >= {"t00000", "t00001" if samples > 1 else "t00000"} and len(done) < max(3, samples)


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_a_search_of_sixteen_finishes_its_best_whoever_comes_to_the_rung_first(workers):
    search = new_search("explore-finish", num_samples=16, workers=workers)
    play(search, lambda trial, tokens: 17.0 - index_of(trial))
    assert ranking(search.trials)[1][0].trial_id == "t00015"


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_the_longer_it_searches_the_more_it_finishes(workers):
    finished = []
    for trainings in (1, 2, 4, 8, 16):
        search = new_search("explore-finish", num_samples=10_000, workers=workers)
        rng = random.Random(trainings)
        losses = [rng.random() for _ in range(10_000)]
        play(search, constant(losses), end=trainings * BUDGET)
        finished.append(sum(trial.status == COMPLETED for trial in search.trials.drawn))
    assert finished == sorted(finished) and finished[0] == 0 < finished[-1] and finished[-1] >= 2 * workers


CURVES = st.integers(0, 10**6)


def noisy(seed, diverging=0.0):
    """Losses that depend on the seed, the trial and the tokens alone; so many trials diverge halfway."""

    def loss(trial, tokens):
        rng = random.Random(f"{seed} {trial.trial_id}")
        level, breaks = rng.random(), rng.random() < diverging
        return (
            math.nan
            if breaks and tokens > 200
            else round(level + random.Random(f"{seed} {trial.trial_id} {tokens}").random() / 3, 1)
        )

    return loss


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SCHEDULERS)), CURVES, st.integers(1, 4), st.integers(2, 40), st.sampled_from([0.0, 0.3]))
def test_every_rule_ends_in_time_and_the_default_uses_its_time(name, seed, workers, quarters, diverging):
    end = quarters * BUDGET / 4
    search = new_search(name, num_samples=10_000, workers=workers, confirm=0)
    last = play(search, noisy(seed, diverging), end)
    trials = search.trials
    assert last <= end and not trials.running
    assert sum(trial.tokens for trial in trials.by_id.values()) <= workers * end
    if name == "explore-finish" and not diverging and quarters >= 8:
        assert last > end - 0.75 * BUDGET


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_a_start_that_takes_long_is_not_shared_out(workers):
    late, early = [], []
    for record, start in ((early, 0.0), (late, 3.0 * BUDGET)):
        search = new_search("explore-finish", num_samples=10_000, workers=workers, record=record)
        play(search, noisy(5, 0.1), start + 4 * BUDGET, begin=start, idle=start)
    assert late == early and len(late) > 20


class Cut(Exception):
    pass


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(sorted(SCHEDULERS)),
    CURVES,
    st.integers(1, 16),
    st.lists(st.integers(1, 40), max_size=4),
    st.integers(0, 3),
)
def test_cut_anywhere_and_resumed_decides_the_same_on_one_worker(name, seed, samples, cuts, confirm):
    whole, events = [], []
    play(new_search(name, num_samples=samples, confirm=confirm, record=whole), noisy(seed, 0.2))
    for cut in (*cuts, None):
        record = list(events)
        search = new_search(name, num_samples=samples, confirm=confirm, events=events, record=record)
        append, most = search.append, None if cut is None else len(record) + cut

        def limited(event, most=most, record=record, append=append, **values):
            if most is not None and len(record) >= most:
                raise Cut
            return append(event, **values)

        search.append = limited
        with contextlib.suppress(Cut):
            play(search, noisy(seed, 0.2))
        events = record
    assert events == whole


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(SCHEDULERS)), CURVES, st.integers(1, 4), st.integers(1, 20))
def test_what_is_read_back_is_what_was(name, seed, workers, samples):
    events = []
    search = new_search(name, num_samples=samples, workers=workers, record=events)
    play(search, noisy(seed, 0.2), end=2 * BUDGET)
    again = new_search(name, num_samples=samples, workers=workers, events=events).trials
    assert again.by_id == search.trials.by_id and ranking(again)[0] == ranking(search.trials)[0]
    for tokens in (100, 200, 400, BUDGET):
        assert again.ranked_at(tokens) == search.trials.ranked_at(tokens)
        reported = [e.trial_id for e in events if isinstance(e, Reported) and e.tokens_seen == tokens]
        came = [again.by_id[trial_id] for trial_id in reported if "-" not in trial_id]  # of equal losses the earlier first
        assert again.ranked_at(tokens) == sorted(filter(lambda t: tokens in t.losses, came), key=lambda t: t.losses[tokens])
        waits = [trial for trial in again.ranked_at(tokens) if trial.status == PAUSED and trial.tokens == tokens]
        assert again.paused_at(tokens) == waits


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_diverged_trials_move_nobodys_cutoff(name):
    def loss(trial, tokens):
        index = index_of(trial)
        return math.nan if index % 10 else float((7 * index) % 40)

    search = new_search(name, num_samples=100)
    play(search, loss)
    alone = new_search(name, num_samples=10)
    play(alone, lambda trial, tokens: float((70 * index_of(trial)) % 40))
    sound = [trial.tokens for trial in search.trials.drawn[::10]]
    assert all(trial.status == DIVERGED for trial in search.trials.drawn if index_of(trial) % 10)
    if name in ("asha", "asha-stop", "fifo"):
        assert sound == [trial.tokens for trial in alone.trials.drawn]


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_the_reference_ends_and_the_best_run_again_on_a_fresh_seed(name):
    search = new_search(name, num_samples=16, confirm=3)
    play(search, lambda trial, tokens: 9.0 if trial.parent_id == "t00000" else float(index_of(trial)))
    trials = search.trials
    assert trials.by_id["t00000"].status == COMPLETED and trials.by_id["t00000-seed"].status == COMPLETED
    assert trials.by_id["t00000-seed"].config == {"seed": 7 + 1_000_003}
    done = [trial for trial in trials.drawn if trial.status == COMPLETED and trial.trial_id != "t00000"]
    assert all(len(trial.seeds_at(BUDGET)) > 1 for trial in sorted(done, key=lambda t: t.trial_id)[:3])
    assert search.is_over(Clock(0))


@pytest.mark.parametrize("most", [1, 2])
def test_without_seeds_the_best_train_again_once_where_that_may_differ(most):
    search = new_search(num_samples=16, confirm=3)
    search.trials.has_seeds, search.trials.max_seeds = False, most
    decided, decide = [], search.on_report

    def on_report(trial, result, clock):
        decided.append((trial.source, result["tokens_seen"], decide(trial, result, clock)))
        return decided[-1][-1]

    search.on_report = on_report
    play(search, lambda trial, tokens: float(16 - index_of(trial)))  # the last one is the best
    again = [trial for trial in search.trials.by_id.values() if trial.source == REPLICATE]
    assert [trial.trial_id for trial in again if trial.parent_id == "t00015"] == ["t00015-again"][: most - 1]
    assert len({trial.parent_id for trial in again}) == len(again) and all(trial.tokens == BUDGET for trial in again)
    assert not any("seed" in trial.config for trial in again)
    at_rung = {decision for source, tokens, decision in decided if tokens == BUDGET // 4 and source != REPLICATE}
    assert at_rung == {"pause"}  # the best goes on from its checkpoint as all do


@pytest.mark.parametrize(
    ("trainings", "confirm", "seeds"),
    [(8, 1, 0), (24, 1, 1), (40, 1, 2), (40, 0, 1)],
    ids=["short", "room", "for two", "not asked"],
)
def test_a_timed_search_finishes_the_reference_where_there_is_room(trainings, confirm, seeds):
    search = new_search("explore-finish", num_samples=1000, confirm=confirm)
    play(
        search, lambda trial, tokens: 9.0 if trial.parent_id == "t00000" else float(index_of(trial)), end=trainings * BUDGET
    )
    assert len(search.trials.by_id["t00000"].seeds_at(BUDGET)) == seeds


def test_a_trial_goes_on_only_after_it_has_left_its_worker():
    search = new_search("asha", rungs=((1 / 4, 2),), num_samples=2, workers=2)
    first, second = (search.next_trial(Clock(0)) for _ in range(2))
    for trial, loss in ((second, 3.0), (first, 4.0)):
        search.on_report(trial, report_of(800, loss), Clock(0))
    assert (
        second.status == PAUSED and search.next_trial(Clock(0)) is None and not search.is_over(Clock(0))
    )  # it stores its state
    search.on_end(second)
    assert search.next_trial(Clock(0)) is second


def report_of(tokens, loss):
    return dict.fromkeys(REPORTED, 0.0) | {"tokens_seen": tokens, "val_loss": loss, "diverged": False}


def test_a_grown_search_lets_new_trials_compete_in_the_same_rungs():
    events = []
    play(new_search("asha", rungs=((1 / 8, 4),), num_samples=8, record=events), noisy(2))
    grown = new_search("asha", rungs=((1 / 8, 4),), num_samples=32, events=events)
    play(grown, noisy(2))
    came = grown.trials.ranked_at(400)
    assert len(came) == 32 and sum(trial.tokens > 400 for trial in came) == 8


def test_lost_processes_are_bounded_and_errors_of_the_code_are_not_repeated():
    search = new_search("fifo", num_samples=3)
    search.max_failures = 2
    for _ in range(3):
        trial = search.next_trial(Clock(0))
        search.on_failure(trial, may_pass=True, reason="killed")
        search.on_end(trial)
    assert trial.trial_id == "t00000" and trial.status == "failed" and trial.reason == "killed"
    trial = search.next_trial(Clock(0))
    search.on_failure(trial, may_pass=False, reason="ValueError: x")
    assert trial.status == "failed" and trial.lost == 0


def test_a_rule_of_fifteen_lines_plays_in_a_simulation(monkeypatch):
    from own_rule import OwnRule

    monkeypatch.setitem(SCHEDULERS, "own", OwnRule)
    search = new_search("own", num_samples=6, workers=2, confirm=1)
    play(search, constant([3.0, 1.0, 5.0, 0.5, 4.0, 2.0]))
    completed = {trial.trial_id for trial in search.trials.drawn if trial.status == COMPLETED}
    assert completed == {"t00000", "t00001", "t00003", "t00005"}  # the better half, and the reference
    assert len(search.trials.by_id["t00003"].seeds_at(BUDGET)) == 2


def test_a_suggestion_that_cannot_be_is_an_error_and_not_a_silent_wait():
    class Wrong(Asha):
        def suggest(self, trials: Trials, clock: Clock):
            return Resume("t00000", BUDGET) if trials.drawn else Start(segment_end_tokens=BUDGET)

    search = new_search("asha", num_samples=2, workers=2)
    search.scheduler = Wrong((), BUDGET, MARK)
    search.next_trial(Clock(0))
    with pytest.raises(ValueError, match="trial t00000 is running"):
        search.next_trial(Clock(0))
    assert Replicate("t00000", 5) != Resume("t00000", 5)


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_an_interrupted_trial_does_not_outlive_the_time(name):
    events = []
    new_search(name, record=events).next_trial(Clock(0))
    search = new_search(name, events=events)
    assert search.is_over(Clock(5, 0.0)) and search.next_trial(Clock(5, 0.0)) is None
    assert not search.is_over(Clock(5, BUDGET)) and search.next_trial(Clock(5, BUDGET)).trial_id == "t00000"
