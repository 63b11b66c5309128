"""How a search that knows its end comes to it in time: when to draw no more, and how many to let finish.

Computed from the state alone, in tokens of a slot; what a token takes, the caller knows.
"""

import bisect
import heapq

from tune.state import COMPLETED, INTERRUPTED, STOPPED, SearchState


def plan_the_end(state: SearchState, left: float) -> None:
    """Draws no more when the rest of the time is needed to finish; then as many finish as it is enough for, but none
    more where nothing confirms them: among many that end, the luckiest wins. `left` is in tokens of one slot."""
    if not state.closed and tokens_to_finish(state) > left:
        state.record("close")
    if _finalists_are_chosen(state):
        waiting, places = state.scheduler.contenders(state.finalists)
        gone = len(state.scheduler.rungs[-1].promoted)
        most, going = (len(waiting) if state.confirm else places), (0 if gone else 1)
        while going < most and tokens_to_finish(state, more=going + 1 - places) <= left:
            going += 1
        if going != places:
            state.record("finalists", trials=gone + going)


def _finalists_are_chosen(state: SearchState) -> bool:
    """Whether it is the moment to: all that may come to the last rung are there, some wait, and none that went on from
    it is being confirmed yet."""
    if not state.closed or not state.scheduler.contenders(state.finalists)[0]:
        return False
    over = [trial_id for trial_id, of in state.confirms.items() if state.status[of] == COMPLETED]
    if any(state.status[trial_id] in (INTERRUPTED, COMPLETED) for trial_id in over):
        return False
    last = len(state.scheduler.rungs) - 1
    if any(state.scheduler.goes_on(level, 0, state.finalists) for level in range(last)):
        return False
    drawn = [t for t, status in state.status.items() if status == INTERRUPTED and t not in state.confirms]
    return all(state.tokens_seen(trial_id) >= state.scheduler.rungs[last].mark for trial_id in drawn)


def tokens_to_finish(state: SearchState, more: int | None = None) -> int:
    """Tokens that the busiest slot would still train if one more trial were drawn, or if none were and so many `more`
    finalists went on: an upper estimate.

    What runs comes to the next rung, and the reference goes on to its end. Rung after rung, when all are there, those
    whose turn it is go on to the next, and from the last, after second looks, to the end. Then the confirmations train:
    in full, where a second look may not help.
    """
    budget, rungs, reference = state.plan.budget_tokens, state.scheduler.rungs, state.plan.reference
    drawn = [trial_id for trial_id in state.status if trial_id not in state.confirms]
    running = sorted(state.tokens_seen(trial_id) for trial_id in drawn if state.status[trial_id] == INTERRUPTED)
    marks = [0, *(rung.mark for rung in rungs), budget]
    looked_at = {of: t for t, of in state.confirms.items() if rungs and state.tokens_seen(t) <= marks[-2]}
    levels = [bisect.bisect_right(marks, seen) for seen in running]  # each runs to marks[level]
    free = [0] * state.slots

    def occupy(tokens: int, start: int = 0) -> int:
        end = max(start, heapq.heappop(free)) + tokens
        heapq.heappush(free, end)
        return end

    arriving = 1 if more is None else 0
    on_the_way = [(occupy(marks[level] - seen), level) for seen, level in zip(running, levels, strict=True)]
    ends = [end for end, level in on_the_way if level <= len(rungs)]  # nobody waits for those past the last rung
    ends += [occupy(marks[-2] - state.tokens_seen(t)) for t in looked_at.values() if state.status[t] == INTERRUPTED]
    all_there = max([*(occupy(marks[1]) for _ in range(arriving)), *ends], default=0)
    if reference and rungs and state.status.get(reference, INTERRUPTED) in (INTERRUPTED, STOPPED):
        seen = state.tokens_seen(reference) if reference in drawn else 0
        if seen < marks[-2] or state.status[reference] == STOPPED:
            occupy(budget - seen)
    again = blind = state.confirm  # confirmations beside the reference's, and those that no second look shortens
    for level, rung in enumerate(rungs):
        there = levels.count(level + 1) + arriving
        arriving = state.scheduler.goes_on(level, there, state.finalists)
        if rung is rungs[-1]:
            arriving += more or 0
            looks = 0
            if state.confirm and arriving:
                looks = max(0, min(arriving + state.slots, there + len(rung.losses)) - len(looked_at))
                all_there = max([all_there, *(occupy(rung.mark, all_there) for _ in range(looks))])
            if not there:
                again = min(again, len(rung.promoted) + arriving)
            if not there + looks:
                blind = len({*rung.promoted, *rung.waiting()[:arriving]} - looked_at.keys())
        ends = [occupy(marks[level + 2] - marks[level + 1], all_there) for _ in range(arriving)]
        all_there = max([all_there, *ends])
    trained, blind = max(free), min(blind, again)
    seen = [0] * (blind + bool(reference)) + [marks[-2]] * (again - blind)
    confirmed = len(state.confirms) - len(looked_at)
    left = max(0, len(seen) - confirmed) if state.confirm else 0
    return max([trained, *(occupy(budget - tokens, trained) for tokens in seen[:left])])
