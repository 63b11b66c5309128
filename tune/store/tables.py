"""trials.csv and history.csv: whole when a search ends, and grown by rows while it runs. Column names live here."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from myllm.system.files import write_text
from tune.core.trials import AUDIT, REPLICATE, REPORTED, Event, Trial, Trials

TRIALS, HISTORY = "trials.csv", "history.csv"
HISTORY_COLUMNS = ["trial_id", *(name for name in REPORTED if name != "diverged")]
RESULT_COLUMNS = [
    *("source", "parent_id", "seed", "status", "val_loss", "val_bpb", "train_loss", "best_val_loss", "tokens_seen", "step"),
    *("train_seconds", "tok_per_sec", "checkpoint", "reason"),
]
"""kind: drawn, proposed from what was known, repeat (a configuration on another seed, that of the trial `of`), or audit (of
the trial `of`, which was left behind)"""


def trial_columns(trials: Trials) -> list[str]:
    """The columns of trials.csv."""
    return ["trial_id", *(trials.drawn[0].config if trials.drawn else ()), *RESULT_COLUMNS]


def trial_row(trial: Trial, seed: int) -> dict[str, Any]:
    """A trial's row, in a search with that seed."""
    last = trial.reports[trial.tokens]._asdict() if trial.reports else {}
    finite = [report.val_loss for report in trial.reports.values() if math.isfinite(report.val_loss)]
    row = {"trial_id": trial.trial_id, "seed": seed} | trial.config
    row |= {
        "source": trial.source,
        "parent_id": trial.parent_id if trial.source in (REPLICATE, AUDIT) else "",
        "status": trial.status,
        "best_val_loss": min(finite, default=math.nan),
        "checkpoint": trial.checkpoints[max(trial.checkpoints)] if trial.checkpoints else "",
        "reason": trial.reason,
    }
    row |= {name: last.get(name, math.nan) for name in ("val_loss", "val_bpb", "train_loss", "tok_per_sec")}
    return row | {name: last.get(name, 0) for name in ("tokens_seen", "step", "train_seconds")}


def by_id(trials: Trials) -> list[Trial]:
    """All trials in the order of the tables."""
    return [trials.by_id[trial_id] for trial_id in sorted(trials.by_id)]


def write_tables(run_dir: Path, trials: Trials, seed: int) -> None:
    """Writes both tables: one row a trial, and one a report, each mark once."""
    rows = (trial_row(trial, seed) for trial in by_id(trials))
    write_text(run_dir / TRIALS, _text(trial_columns(trials), rows, header=True))
    reports = (report._asdict() for trial in by_id(trials) for report in trial.own_reports)
    write_text(run_dir / HISTORY, _text(HISTORY_COLUMNS, reports, header=True))


class GrowingTables:
    """Both tables while a search runs: new rows are added at the end, in the order in which they come.

    trials.csv gets one more row of a trial whenever its status has changed; the last one counts.
    """

    def __init__(self, run_dir: Path, trials: Trials, seed: int):
        self.run_dir, self.trials, self.seed = run_dir, trials, seed
        self._events: list[tuple[str, int]] | None = None  # (trial_id, tokens_seen, 0 for no report) since the last rows
        self._shown: dict[str, str] = {}  # trial_id -> status in its last row

    def see(self, event: Event) -> None:
        """Takes note of an event of the journal."""
        if self._events is not None and "trial_id" in event:
            self._events.append((event["trial_id"], event["tokens_seen"] if event["event"] == "report" else 0))

    def flush(self) -> None:
        """Writes what the tables lack; the first time in a session both as a whole."""
        if self._events is None:
            write_tables(self.run_dir, self.trials, self.seed)
            self._shown = {trial.trial_id: trial.status for trial in self.trials.by_id.values()}
        else:
            seen = (self.trials.by_id[trial_id] for trial_id in sorted({trial_id for trial_id, _ in self._events}))
            changed = [trial for trial in seen if self._shown.get(trial.trial_id) != trial.status]
            self._add(TRIALS, trial_columns(self.trials), (trial_row(trial, self.seed) for trial in changed))
            reports = (self.trials.by_id[trial_id].reports[tokens] for trial_id, tokens in self._events if tokens)
            self._add(HISTORY, HISTORY_COLUMNS, (report._asdict() for report in reports))
            self._shown |= {trial.trial_id: trial.status for trial in changed}
        self._events = []

    def _add(self, name: str, columns: list[str], rows: Iterable[Mapping[str, Any]]) -> None:
        with open(self.run_dir / name, "a", encoding="utf-8") as file:
            file.write(_text(columns, rows))


def _text(columns: list[str], rows: Iterable[Mapping[str, Any]], header: bool = False) -> str:
    """Lines of CSV; what is not a number, or not known, is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(columns)
    for row in rows:
        values = (row.get(name) for name in columns)
        writer.writerow(["" if value is None or value != value else value for value in values])
    return text.getvalue()
