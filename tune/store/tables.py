"""trials.csv and history.csv: they grow by rows while a search runs, and are written whole when it ends."""

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from myllm.system.files import write_text
from tune.core.events import REPORTED, Event, Reported
from tune.core.trials import AUDIT, REPLICATE, Trial, Trials

TRIALS, HISTORY = "trials.csv", "history.csv"
HISTORY_COLUMNS = ["trial_id", *(name for name in REPORTED if name != "diverged")]
KIND_COLUMNS = ["source", "parent_id", "seed", "status"]
LOSS_COLUMNS = ["val_loss", "val_bpb", "train_loss"]
COUNT_COLUMNS = ["tokens_seen", "step", "train_seconds"]
RESULT_COLUMNS = [*KIND_COLUMNS, *LOSS_COLUMNS, "best_val_loss", *COUNT_COLUMNS, "tok_per_sec", "checkpoint", "reason"]
"""`source` is sampled, suggested, replicate (another seed of the trial `parent_id`), or audit (of that trial)."""


def column_names(columns: Iterable[str], unit: str) -> list[str]:
    """The columns as the tables name them: tokens_seen and tok_per_sec follow the unit of the budget."""
    named = {"tokens_seen": f"{unit}_seen", "tok_per_sec": f"{unit}_per_sec"} if unit != "tokens" else {}
    return [named.get(name, name) for name in columns]


def trial_columns(trials: Trials) -> list[str]:
    """The columns of trials.csv."""
    return ["trial_id", *(trials.drawn[0].config if trials.drawn else ()), *RESULT_COLUMNS]


def trial_row(trial: Trial, seed: int) -> dict[str, Any]:
    """A trial's row. `seed` is the search's; a replicate has its own."""
    last = trial.reports[trial.tokens].to_json() if trial.reports else {}
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
    row |= {name: last.get(name, math.nan) for name in (*LOSS_COLUMNS, "tok_per_sec")}
    return row | {name: last.get(name, 0) for name in COUNT_COLUMNS}


def by_id(trials: Trials) -> list[Trial]:
    """All trials in the order of the tables."""
    return [trials.by_id[trial_id] for trial_id in sorted(trials.by_id)]


def write_tables(run_dir: Path, trials: Trials, seed: int) -> None:
    """Writes both tables: one row a trial, and one row a report."""
    rows = (trial_row(trial, seed) for trial in by_id(trials))
    write_text(run_dir / TRIALS, _text(trial_columns(trials), rows, trials.unit))
    reports = (report.to_json() for trial in by_id(trials) for report in trial.own_reports)
    write_text(run_dir / HISTORY, _text(HISTORY_COLUMNS, reports, trials.unit))


class GrowingTables:
    """Both tables while a search runs: rows are added at the end as they come. trials.csv gets one more row of a trial
    whenever its status has changed; the last one counts.
    """

    def __init__(self, run_dir: Path, trials: Trials, seed: int):
        self.run_dir, self.trials, self.seed = run_dir, trials, seed
        self._reported: list[tuple[str, int]] = []  # (trial_id, tokens_seen) since the last rows
        self._shown: dict[str, str] = {}  # trial_id -> status in its last row

    def see(self, event: Event) -> None:
        """Takes one event of the journal."""
        if isinstance(event, Reported):
            self._reported.append((event.trial_id, event.position))

    def flush(self) -> None:
        """Appends the missing rows. Until there is a trial, and at first in a session, it writes both tables whole."""
        changed = [trial for trial in by_id(self.trials) if self._shown.get(trial.trial_id) != trial.status]
        if self._shown:
            rows = (trial_row(trial, self.seed) for trial in changed)
            reports = (self.trials.by_id[trial_id].reports[tokens].to_json() for trial_id, tokens in self._reported)
            added = {TRIALS: _text(trial_columns(self.trials), rows), HISTORY: _text(HISTORY_COLUMNS, reports)}
            for name, text in added.items():
                with open(self.run_dir / name, "a", encoding="utf-8") as file:
                    file.write(text)
        else:
            write_tables(self.run_dir, self.trials, self.seed)
        self._shown |= {trial.trial_id: trial.status for trial in changed}
        self._reported.clear()


def _text(columns: list[str], rows: Iterable[Mapping[str, Any]], header_unit: str = "") -> str:
    """Lines of CSV, with a header where its unit is given. NaN, None and missing values are empty cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header_unit:
        writer.writerow(column_names(columns, header_unit))
    for row in rows:
        values = (row.get(name) for name in columns)
        writer.writerow(["" if value is None or value != value else value for value in values])
    return text.getvalue()
