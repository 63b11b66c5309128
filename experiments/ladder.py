"""Finds a large model's learning rate and batch from trainings of smaller ones.

    python experiments/ladder.py --history runs.csv --target_params 124e6 --target_tokens 2.5e9 --json answer.json

The table, a .csv or .csv.gz, has one whole training a row: params (without embeddings and head), tokens, learning_rate,
batch_tokens (tokens a step), loss (nats a token), and perhaps seed. Rows without a finite loss are left out.
"""

import csv
import gzip
import json
import math
from pathlib import Path

from myllm.scaling_laws import PUBLISHED_LAWS, Size
from myllm.system.errors import InputError, Parser, run_command, warn
from tune.ladder.answer import Answer, answer
from tune.ladder.fit import Run

COLUMNS = ("params", "tokens", "learning_rate", "batch_tokens", "loss")


def read_runs(path: Path) -> list[Run]:
    """Returns the runs of a table. Raises InputError for a missing file, a missing column, a bad number or no runs."""
    if not path.is_file():
        raise InputError(f"--history {path}: there is no such file")
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise InputError(f"--history {path}: no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
            rows = [[_number(path, reader.line_num, name, row[name]) for name in COLUMNS] for row in reader]
    except (UnicodeDecodeError, csv.Error, gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"--history {path} is no .csv or .csv.gz table: {error}") from None
    runs = [Run(Size(row[0], row[1]), row[2], row[3], row[4]) for row in rows if math.isfinite(row[4])]
    if not runs:
        raise InputError(f"--history {path}: no run with a finite loss")
    if len(runs) < len(rows):
        warn(f"{path}: {len(rows) - len(runs)} of {len(rows)} runs have no finite loss and are left out")
    return runs


def _number(path: Path, line: int, name: str, text: str | None) -> float:
    """Returns a cell's number: positive, but a loss may be empty, infinite or no number."""
    try:
        value = float(text) if text else math.nan
    except ValueError:
        value = 0.0
    if value <= 0 or (name != "loss" and not math.isfinite(value)):
        raise InputError(f"--history {path}, line {line}: {name} is {text!r}; it must be a positive number")
    return value


def positive(text: str) -> float:
    """Returns a flag's positive, finite number; raises ValueError otherwise."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


def show(found: Answer) -> None:
    """Prints the answer as a few lines."""
    rate, batch, loss = found.learning_rate, found.batch_tokens, found.loss
    print(f"learning rate  {rate.value:.3g}  (90%: {rate.low:.3g} to {rate.high:.3g})")
    print(f"batch, tokens  {batch.value:,.0f}  (90%: {batch.low:,.0f} to {batch.high:,.0f})")
    print(f"loss           {loss.value:.4f}  (90%: {loss.low:.4f} to {loss.high:.4f})")
    print(f"expected regret {found.expected_regret:.4f} nats; by the {found.method}")
    for note in found.notes:
        print(note)


def main() -> None:
    laws = ", ".join(PUBLISHED_LAWS)
    parser = Parser(prog="ladder.py", description=__doc__.splitlines()[0], epilog=f"The exponents' priors: {laws}.")
    parser.add_argument("--history", type=Path, required=True, help="table of runs, .csv or .csv.gz")
    parser.add_argument("--target_params", type=positive, required=True, help="without embeddings and head")
    parser.add_argument("--target_tokens", type=positive, required=True, help="tokens of the target's training")
    parser.add_argument("--json", type=Path, help="file for the answer")
    args = parser.parse_args()
    if args.json and not args.json.parent.is_dir():
        raise InputError(f"--json {args.json}: there is no folder {args.json.parent}")
    found = answer(read_runs(args.history), Size(args.target_params, args.target_tokens))
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found.as_dict(), indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
