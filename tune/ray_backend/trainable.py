"""A worker's side: Ray's flat config dict -> the training program -> Ray's reports and checkpoints."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.tune as ray_tune

from tune.config.function import Reports
from tune.config.spec import ProgramSearch, SearchSpec
from tune.core.events import position_of
from tune.ray_backend.programs import open_program
from tune.ray_backend.programs.reports import ReportPoints
from tune.store.checkpoints import WORK, Storage, read_place, write_place

CHECKPOINT = "start_from_checkpoint"
"""key of a segment's config that holds the checkpoint to go on from, relative to the search's storage"""
SLOTS = "slots_of_the_trial"
"""key of a segment's config that holds its slots where it has more than one"""
IS_STORED = "is_stored"
"""key of a report that says True if the state of the report is stored with it"""
CHECKPOINT_SHARE = 0.05  # of a trial's time, which checkpoints may take; those at rungs and at the end come on top
CHECKPOINT_MIN_SECONDS = 2.0  # between two checkpoints


def run_trial(
    config: dict[str, Any],
    search: SearchSpec,
    storage_root: str,
    rung_tokens: tuple[int, ...],
    threads: int,
    gpus: float,
    processes: int = 1,
) -> None:
    """Ray's function trainable: trains one configuration, from the checkpoint that its config names where there is one.
    The state is stored at the `rung_tokens`, at the end, and now and then between them. Raises what the program raises.
    """
    storage, settings = Storage(storage_root), {name: config[name] for name in config if name not in (CHECKPOINT, SLOTS)}
    slots = config.get(SLOTS, 1)
    gpus, processes = gpus * slots, processes * slots
    trial_id = ray_tune.get_context().get_trial_id()
    output = str(Path(storage.path).parent / "output" / f"{trial_id.partition('.')[0]}.txt") if storage.is_local else ""
    with _folder(storage, search, trial_id) as folder:
        if CHECKPOINT in config:
            storage.fetch(config[CHECKPOINT], folder)
        tokens, seconds = read_place(folder)
        budget = search.budget_tokens // search.step_tokens(settings)
        train = open_program(search, threads, gpus, processes, output)
        with contextlib.closing(train(settings, budget, folder, CHECKPOINT in config)) as reports:
            segment, last_saved, cost = Segment(reports, seconds), time.monotonic(), 0.0
            counted = iter(segment)
            if isinstance(search, ProgramSearch):
                counted = ReportPoints(search, settings, rung_tokens, tokens, seconds).of(segment)
            for metrics in counted:
                since = time.monotonic() - last_saved
                position = position_of(metrics["tokens_seen"], metrics.get("budget_seconds"))
                must = position in rung_tokens or position >= settings.get("budget_tokens", search.budget_tokens)
                due = must or since > max(CHECKPOINT_MIN_SECONDS, cost / CHECKPOINT_SHARE)
                checkpoint = None
                if due and not metrics["diverged"] and not search.options.no_resume:
                    start = time.monotonic()
                    if segment.save(folder):
                        if isinstance(search, ProgramSearch):
                            write_place(folder, metrics["tokens_seen"], metrics["train_seconds"])
                        checkpoint = ray_tune.Checkpoint.from_directory(folder)
                    last_saved, cost = time.monotonic(), time.monotonic() - start
                beside = {IS_STORED: checkpoint is not None, "processes": processes}
                ray_tune.report(metrics | beside, checkpoint=checkpoint)


class Segment:
    """Iterates over the reports of a training program, and asks it to save between two of them."""

    def __init__(self, reports: Reports, seconds: float):
        self.reports = reports
        self.seconds = seconds  # that the program has trained, over all segments
        self._next: dict[str, Any] | None = None  # a report that came in the place of an answer

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            report, self._next = self._next, None
            try:
                report = report or self._timed(None)
            except StopIteration:
                return
            if report is not None:
                yield report

    def save(self, folder: Path) -> bool:
        """Lets the program save its state into `folder`; False where nothing is in it."""
        with contextlib.suppress(StopIteration):
            self._next = self._timed("save")
        return any(folder.iterdir())

    def _timed(self, word: str | None) -> dict[str, Any] | None:
        """Lets the program go on until its next `yield`. Raises StopIteration where it has ended."""
        start = time.monotonic()
        try:
            return next(self.reports) if word is None else self.reports.send(word)
        finally:
            self.seconds += time.monotonic() - start


@contextlib.contextmanager
def _folder(storage: Storage, search: SearchSpec, trial_id: str) -> Iterator[Path]:
    """A trial's folder for its state. That of an own program lies beside the checkpoints: both may be large."""
    work = None
    if storage.is_local and isinstance(search, ProgramSearch):
        work = Path(storage.path) / WORK
        work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix=f"{trial_id}-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "checkpoint"
        folder.mkdir()
        yield folder
