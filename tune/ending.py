"""How a search that knows its end comes to it in time: when to draw and breed no more, and how many to let finish.

Computed from the state alone, in tokens of a slot; what a token takes, the caller knows.
"""

import bisect
import heapq

from tune.state import COMPLETED, INTERRUPTED, LOOKS, STOPPED, SearchState

BREEDING = 1.5  # as many times as long as it has drawn a search breeds


def plan_the_end(state: SearchState, left: float, used: float = 0.0) -> None:
    """Draws no more when the rest of the time is needed to breed and to finish; breeds no more when it is needed to finish.
    Then as many finish as it is enough for, but none more where nothing confirms them: among many that end, the luckiest
    wins. `left` and `used` are in tokens of one slot."""
    to_breed = BREEDING * used if state.confirm and not state.bred else 0
    if not state.closed and tokens_to_finish(state, draws=1) + to_breed > left:
        state.record("close")
    if state.breeds and tokens_to_finish(state, offspring=1) > left:
        state.record("bred")
    if _finalists_are_chosen(state):
        waiting, places = state.scheduler.contenders(state.finalists)
        rung = state.scheduler.rungs[-1]
        gone = len(rung.promoted)
        most, going = (len(waiting) if state.confirm else places), (0 if gone else 1)
        while going < most:
            spare = left - tokens_to_finish(state, finalists=going + 1 - places)
            if spare < (2 * rung.mark if going >= places else 0):  # lest it change to and fro
                break
            going += 1
        if going != places:
            state.record("finalists", trials=gone + going)


def _finalists_are_chosen(state: SearchState) -> bool:
    """Whether it is the moment to: all that may come to the last rung are there, some wait, and none that went on from
    it is being confirmed yet."""
    if not state.closed or state.breeds or not state.scheduler.contenders(state.finalists)[0]:
        return False
    over = [trial_id for trial_id, of in state.confirms.items() if state.status[of] == COMPLETED]
    if any(state.status[trial_id] in (INTERRUPTED, COMPLETED) for trial_id in over):
        return False
    last = len(state.scheduler.rungs) - 1
    if any(state.scheduler.goes_on(level, 0, state.finalists) for level in range(last)):
        return False
    drawn = [t for t, status in state.status.items() if status == INTERRUPTED and t not in state.confirms]
    return all(state.tokens_seen(trial_id) >= state.scheduler.rungs[last].mark for trial_id in drawn)


def tokens_to_finish(state: SearchState, draws: int = 0, offspring: int = 0, finalists: int = 0) -> int:
    """Tokens that the busiest slot would still train if so many more trials were drawn, offspring bred, and finalists went
    on: an upper estimate.

    What runs comes to the next rung, and the reference goes on to its end. Rung after rung, when all are there, those
    whose turn it is go on to the next, and from the last, after looks, to the end. Then the confirmations train: in full,
    where none of the looks may have begun them.
    """
    budget, rungs, reference = state.plan.budget_tokens, state.scheduler.rungs, state.plan.reference
    drawn = [trial_id for trial_id in state.status if trial_id not in state.confirms]
    marks = [0, *(rung.mark for rung in rungs), budget]
    running = []  # (tokens seen, the number of the mark it runs to, whether it is offspring)
    for trial_id in drawn:
        if state.status[trial_id] == INTERRUPTED:
            seen = state.tokens_seen(trial_id)
            bred = trial_id in state.scheduler.offspring
            running.append((seen, max(len(rungs) if bred else 1, bisect.bisect_right(marks, seen)), bred))
    looks = [t for t in state.confirms if rungs and state.tokens_seen(t) <= marks[-2]]
    looked_at = {state.confirms[trial_id] for trial_id in looks}
    free = [0] * state.slots

    def occupy(tokens: int, start: int = 0) -> int:
        end = max(start, heapq.heappop(free)) + tokens
        heapq.heappush(free, end)
        return end

    on_the_way = [(occupy(marks[level] - seen), level) for seen, level, _ in sorted(running)]
    ends = [end for end, level in on_the_way if level <= len(rungs)]  # nobody waits for those past the last rung
    ends += [occupy(marks[-2]) for _ in range(offspring)]
    ends += [occupy(marks[-2] - state.tokens_seen(t)) for t in looks if state.status[t] == INTERRUPTED]
    all_there = max([*(occupy(marks[1]) for _ in range(draws)), *ends], default=0)
    if reference and rungs and state.status.get(reference, INTERRUPTED) in (INTERRUPTED, STOPPED):
        seen = state.tokens_seen(reference) if reference in drawn else 0
        if seen < marks[-2] or state.status[reference] == STOPPED:
            occupy(budget - seen)
    again = blind = state.confirm  # confirmations beside the reference's, and those that no look has begun
    arriving = draws
    for level, rung in enumerate(rungs):
        there = arriving + sum(to == level + 1 for _, to, _ in running)
        bred = sum(to == level + 1 and of_offspring for _, to, of_offspring in running)
        arriving = state.scheduler.goes_on(level, there - bred, state.finalists)
        if rung is rungs[-1]:
            there += offspring
            arriving += finalists
            to_look = 0
            if state.confirm and arriving:
                to_look = max(0, min(state.most_looks(arriving), LOOKS * (there + len(rung.losses))) - len(looks))
                all_there = max([all_there, *(occupy(rung.mark, all_there) for _ in range(to_look))])
            if not there:
                again = min(again, len(rung.promoted) + arriving)
            if not there + to_look:
                first = state.scheduler.contenders(state.finalists, finalists)[0][:arriving]
                blind = len({*rung.promoted, *first} - looked_at)
        ends = [occupy(marks[level + 2] - marks[level + 1], all_there) for _ in range(arriving)]
        all_there = max([all_there, *ends])
    trained, blind = max(free), min(blind, again)
    seen = [0] * (blind + bool(reference)) + [marks[-2]] * (again - blind)
    confirmed = len(state.confirms) - len(looks)
    left = max(0, len(seen) - confirmed) if state.confirm else 0
    return max([trained, *(occupy(budget - tokens, trained) for tokens in seen[:left])])
