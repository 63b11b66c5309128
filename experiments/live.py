"""Draws the screen of a search as it was when a share of its reports had come: experiments/live.svg.

python experiments/live.py experiments/runs/NAME --share 0.7
"""

import io
from pathlib import Path

from rich.console import Console

from myllm.system.errors import Parser, run_command
from tune.config.spec import read_search
from tune.core.clock import search_seconds
from tune.core.trials import Trials
from tune.estimate.forecast import measured_throughput, simulate_rest
from tune.monitor.screen import View, render
from tune.store.journal import read_journal

WIDTH = 100


def main() -> None:
    parser = Parser(prog="live.py", description="Draws the screen of a search at a moment of it.")
    parser.add_argument("run", help="run folder, experiments/runs/NAME")
    parser.add_argument("--share", type=float, default=0.6, help="of the journal's events")
    args = parser.parse_args()
    search, events = read_search(Path(args.run)), read_journal(Path(args.run))
    events = events[: int(len(events) * args.share)]
    trials = Trials(search.budget_tokens, search.options.trials, search.options.rung_metric, events)
    seconds, throughput = search_seconds(events), measured_throughput(events, per_segment=0.5)
    trained = sum(trial.train_seconds for trial in trials.by_id.values())
    view = View(
        name=search.options.name,
        trials=trials,
        rung_tokens=search.scheduler().rung_tokens,
        workers=[*trials.running.values(), *[None] * trials.workers][: trials.workers],
        seconds=seconds,
        forecast=simulate_rest(search, events, throughput, trials.workers, seconds),
        training_share=min(1.0, trained / (trials.workers * seconds)),
    )
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(render(view, WIDTH))
    console.save_svg(str(Path(__file__).with_name("live.svg")), title="python tune/search.py")


if __name__ == "__main__":
    run_command(main)
