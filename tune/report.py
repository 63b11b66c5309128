"""Command line of the report: writes summary, figures and page of a run, or compares runs. It reads only files."""

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

import myllm.system.imports

myllm.system.imports.check_imports()


import json
import subprocess
import webbrowser
from dataclasses import asdict
from pathlib import Path

from myllm.system.errors import InputError, Parser, run_command
from myllm.system.files import obstacle, write_text
from myllm.system.machine import refuse_torchrun
from tune.analysis.results import load
from tune.config.spec import FILE_NAME
from tune.core.trials import FAILED
from tune.reporting.render import render
from tune.reporting.summary_text import summary_text
from tune.store.journal import FILE_NAME as JOURNAL

LOG = "report.log"
"""file of the run with the error of a report written in the background; deleted once the report is written"""


def write_report(run_dir: Path, whole: bool = True, still: bool = False) -> str:
    """Writes summary.txt, summary.json, report.html and figures/ into the run folder; returns the summary as text.

    With `whole` False there are no figures/ and no response surface; the page says that more comes and loads itself again.
    With `still` nothing is written if the search has gone on meanwhile: the search writes a report when it ends.
    """
    from tune.reporting.figures.base import write_figures
    from tune.reporting.html_report import page

    size = (run_dir / JOURNAL).stat().st_size if still else 0
    report = render(run_dir, whole)
    said = summary_text(report.summary)
    if still and (run_dir / JOURNAL).stat().st_size != size:
        return said
    if whole:
        write_figures(run_dir / "figures", report.figures)
    again = "" if whole else f"More is being drawn. This page loads itself again; or: {report.summary.next[-1].command}"
    write_text(run_dir / "report.html", page(report, again))
    write_text(run_dir / "summary.json", json.dumps(asdict(report.summary), indent=2) + "\n")
    write_text(run_dir / "summary.txt", said.lstrip("\n") + "\n")
    return said


def write_report_behind(run_dir: Path) -> None:
    """Starts a process of lowest priority that writes the whole report, also after this one ends; logs to report.log."""
    with open(run_dir / LOG, "w", encoding="utf-8") as log:
        python = sys.orig_argv[0] or sys.executable  # as the user named it: so the commands begin that it writes
        subprocess.Popen(
            [python, __file__, str(run_dir), "--behind"],
            executable=sys.executable,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # Ctrl-C and the end of the terminal are not meant for it
        )


def nothing_reported(run_dir: Path) -> str | None:
    """Returns why no trial of a run has a loss, in one line; None where one has."""
    trials = load(run_dir)[1].by_id.values()
    if any(trial.losses for trial in trials):
        return None
    failed = next((trial for trial in trials if trial.status == FAILED), None)
    why = f"; the first that failed, {failed.trial_id}: {failed.reason}" if failed else ": all diverged"
    return f"no trial has reported a loss{why}"


def main() -> None:
    refuse_torchrun("tune/report.py")
    parser = Parser(prog="report.py", description="Prints a run's summary and rewrites its report; several: compares.")
    parser.add_argument("runs", nargs="+", metavar="run", help="run folder, experiments/runs/NAME")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--json", action="store_true", help="print the summary, or an error, as JSON and nothing else")
    parser.add_argument("--serve", action="store_true", help="show the page on this machine, live until Ctrl-C")
    parser.add_argument("--behind", action="store_true", help="print nothing, and let all others go first")
    args = parser.parse_args()
    folders = [Path(os.path.realpath(run)) for run in args.runs]
    if len(set(folders)) < len(folders):
        raise InputError("the same run is named twice: name those to compare, each once")
    if len(folders) == 1:
        reason = obstacle(folders[0] / "report.html") if (folders[0] / FILE_NAME).is_file() else None
        if reason:
            raise InputError(f"{folders[0]}: the report can't be written: {reason}")
        if args.serve:
            from tune.reporting.serve import serve

            return serve(folders[0], args.open)
        if args.behind:
            os.nice(19)
        said = write_report(folders[0], still=args.behind)
        if args.behind:
            (folders[0] / LOG).unlink(missing_ok=True)
        else:
            print((folders[0] / "summary.json").read_text("utf-8").rstrip() if args.json else said)
        page = folders[0] / "report.html"
    else:
        from tune.reporting.compare import compare

        said, page = compare(folders)
        print(said)
    if args.open and not webbrowser.open(page.as_uri()):
        print(f"no browser here; open {page}")


def cli() -> None:
    """Runs the command with its errors in one line; ends the process."""
    run_command(main)


if __name__ == "__main__":
    cli()
