"""The plan of a ladder: levels of the target's shape, the runs that a share buys, and what is refused."""

import math
import operator

import pytest

from myllm.system.errors import InputError
from tune.ladder.plan import FEWEST_LOW_RUNS, TOP_RUNS, Shape, allocate, cheapest, fractions, make_plan


def shape(settings, vocab_size=257):
    return Shape(settings, 12 * settings["n_layer"] * settings["n_embd"] ** 2, vocab_size * settings["n_embd"])


def plan_of(settings, tokens=655_360, share=0.1, **more):
    smaller = [shape(one) for one in fractions(settings)]
    return make_plan(shape(settings), smaller, tokens, share, 128, 2e-3, 0.02, 257, **more)


MILLION = {"n_layer": 6, "n_head": 6, "n_embd": 108}


def test_levels_have_the_targets_shape_and_tokens_a_parameter():
    plan = plan_of(MILLION)
    for level in plan.levels:
        assert level.settings["n_embd"] / level.settings["n_layer"] == 18
        each, whole = (one.tokens / (one.params + one.head) for one in (level, plan.target))
        assert 0.8 < each / whole <= 1.001  # whole steps of the largest batch
        assert level.tokens % (level.most_batch * 128) == 0 and math.log2(level.most_batch).is_integer()


def test_heads_divide_the_width_where_they_are_no_fraction():
    for one in fractions({"n_layer": 48, "n_head": 25, "n_embd": 1600}):
        assert one["n_embd"] % one["n_head"] == 0 and one["n_embd"] * 3 == 100 * one["n_layer"]


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 1.0])
def test_the_plan_keeps_to_its_share(share):
    plan = plan_of(MILLION, share=share)
    assert 0.5 * share < plan.planned_share <= share or share > 0.5
    assert plan.levels[plan.top].runs >= TOP_RUNS and sum(level.runs for level in plan.levels) >= 8


def test_the_least_share_that_is_named_is_enough():
    with pytest.raises(InputError, match=r"buys \d+ runs .* would do") as error:
        plan_of(MILLION, share=0.001)
    enough = float(str(error.value).split(": ")[1].split(" ")[0])
    assert plan_of(MILLION, share=enough).planned_share <= enough
    with pytest.raises(InputError):
        plan_of(MILLION, share=0.95 * enough)


@pytest.mark.parametrize("costs", [[0.01], [0.01, 0.02], [0.01, 0.3], [0.01, 0.02, 0.05, 0.2]])
def test_the_cheapest_ladder_is_one_that_fits(costs):
    room = cheapest(costs)
    runs = allocate(costs, room)
    assert runs is not None and sum(map(operator.mul, runs, costs)) <= room * 1.001
    assert allocate(costs, 0.9 * room) is None


def test_a_time_budget_bounds_the_plan():
    seconds = {level.params: level.flops / 1e9 for level in (*plan_of(MILLION).levels, plan_of(MILLION).target)}
    whole = plan_of(MILLION, share=0.5, seconds=seconds, time_budget=1e6)
    short = plan_of(MILLION, share=0.5, seconds=seconds, time_budget=500.0)
    assert short.planned_share < whole.planned_share
    assert sum(level.runs * seconds[level.params] for level in short.levels) < 500
    with pytest.raises(InputError, match=r"--time_budget 16 s is too little for a ladder; (\d+) s would do") as error:
        plan_of(MILLION, seconds=seconds, time_budget=16.0)
    enough = float(str(error.value).split("; ")[1].split(" ")[0])
    assert plan_of(MILLION, seconds=seconds, time_budget=enough)


def test_a_target_without_a_smaller_model_is_refused():
    with pytest.raises(InputError, match="no level"):
        plan_of({"n_layer": 1, "n_head": 1, "n_embd": 64})
    assert FEWEST_LOW_RUNS + TOP_RUNS == 8
