"""Reads what a final model needs of a search from plain files: best_config.json, or a trial and its checkpoint.

Of a run's folder this needs, and no more: search.json's `data` (DATA_KEYS), its `options` with `preset`, `storage_path`
and `name`, and the `run_id` of its `origin`; journal.jsonl, one event a line, of which `trial` has a `trial_id`,
`checkpoint` a `trial_id`, `tokens_seen` and `path`, and `checkpoints_deleted` a `trial_id` and a list `tokens_seen`; and
state.pt in each checkpoint's folder, below RUN/ray or the search's folder at the URI of storage_path. So a folder that was
moved is read as well.
"""

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.system.errors import InputError

CONFIG_KEYS = ("preset", "model", "train", "data", "result")
DATA_KEYS = ("train_file", "val_file", "token_dtype", "text_column", "tokenizer", "tokenizer_sha256", "fingerprint")
"""what best_config.json and search.json say of the data"""


@dataclass(frozen=True)
class TrialCheckpoint:
    """A trial of a search, and where its weights are."""

    run_dir: Path
    trial_id: str
    preset: str
    data: dict[str, Any]
    """DATA_KEYS"""
    checkpoints: tuple[str, ...]
    """state files, paths or URIs, the newest first"""


def read_config(path: str) -> dict[str, Any]:
    """Returns the parts of a best_config.json. Raises InputError for another file or an unknown key."""
    config = _json(Path(path), f"--config {path}")
    for keys, part, where in ((CONFIG_KEYS, config, path), (DATA_KEYS, config.get("data", {}), f"{path}: data")):
        for key in part:
            if key not in keys:
                raise InputError(f"--config {where}: unknown key {key!r}; known are {', '.join(keys)}")
    return config


def _json(path: Path, where: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{where}: no such file") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{where}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected a JSON object")
    return values


def find_trial(spec: str) -> TrialCheckpoint:
    """Returns the trial that RUN/TRIAL names, TRIAL an id or an unambiguous part of one. Raises InputError."""
    where, run_dir, name = f"--from_trial {spec}", Path(spec).parent, Path(spec).name
    if (Path(spec) / "search.json").is_file():
        raise InputError(
            f"{where}: names no trial of this run; write {Path(spec) / 't00000'}, or another id of its trials.csv"
        )
    if not (run_dir / "search.json").is_file():
        raise InputError(f"{where}: {run_dir} is no run folder, it has no search.json; write RUN/TRIAL")
    search, stored = _json(run_dir / "search.json", where), _checkpoints(run_dir / "journal.jsonl", where)
    trial_id = _match(name, list(stored), where)
    if not stored[trial_id]:
        raise InputError(
            f"{where}: no checkpoint of trial {trial_id} is left; those of trials that can't win are deleted, "
            "a search with --keep_checkpoints all keeps every one"
        )
    try:
        data, config = search["data"], search.get("options") or search["config"]  # its name before 0.1.0
        uri = config["storage_path"] if "://" in (config["storage_path"] or "") else None
        folder = remote_folder(config["name"], search.get("origin", {}))
        files = tuple(
            uri_below(uri, folder, path, "state.pt") if uri else str(run_dir / "ray" / path / "state.pt")
            for _, path in sorted(stored[trial_id].items(), reverse=True)
        )
        return TrialCheckpoint(run_dir, trial_id, config["preset"], {key: data.get(key) for key in DATA_KEYS}, files)
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{where}: {run_dir / 'search.json'} is damaged, or of another version") from None


def remote_folder(name: str, provenance: dict[str, Any]) -> str:
    """Returns a search's folder below a storage URI: its name and its `run_id`. Runs before 0.1.0 have the name alone."""
    return f"{name}-{provenance['run_id']}" if "run_id" in provenance else name


def uri_below(uri: str, *names: str) -> str:
    """Returns the URI of what lies below another, whose options (s3://bucket/runs?region=here) it keeps."""
    folder, mark, options = uri.partition("?")
    scheme, _, path = folder.partition("://")
    return "/".join([f"{scheme}://{path.rstrip('/')}", *names]) + mark + options


def _checkpoints(journal: Path, where: str) -> dict[str, dict[int, str]]:
    """Trial -> tokens_seen -> path of each checkpoint that is kept. A last line that is not whole is left out."""
    stored: dict[str, dict[int, str]] = {}
    try:
        lines = journal.read_bytes().split(b"\n")[:-1]
        for line in lines:
            if b'"event": "report"' in line[:20]:  # most lines, and nothing here is said by one
                continue
            event = json.loads(line)
            if event["event"] == "trial":
                stored[event["trial_id"]] = {}
            elif event["event"] == "checkpoint":
                stored[event["trial_id"]][event["tokens_seen"]] = event["path"]
            elif event["event"] in ("checkpoints_deleted", "pruned"):  # its name before 0.1.0
                for tokens in event["tokens_seen"]:
                    stored[event["trial_id"]].pop(tokens, None)
    except FileNotFoundError:
        raise InputError(f"{where}: {journal} is missing: nothing has begun, or the folder is not whole") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{where}: {journal} is damaged") from None
    return stored


def _match(name: str, ids: list[str], where: str) -> str:
    """Returns the id that is `name`, but for its "t" and leading zeros, or the only one that `name` is a part of."""

    def bare(text: str) -> str:
        return re.sub(r"^t?0*(?=\d)", "", text)

    for like in (lambda i: i == name, lambda i: bare(i) == bare(name), lambda i: name in i):
        found = [trial_id for trial_id in ids if like(trial_id)]
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(found[:8]) + (", ..." if len(found) > 8 else "")
            raise InputError(f"{where}: {name!r} is a part of several trials' ids: {some}; write one of them")
    known = f"its trials are {min(ids)} to {max(ids)}" if ids else "none has begun"
    raise InputError(f"{where}: the run has no trial {name!r}; {known}")


@contextlib.contextmanager
def local_file(place: str) -> Iterator[Path]:
    """The file at a path or URI; of a URI a copy, while the block lasts. Raises InputError where it can't be read."""
    if "://" not in place:
        yield Path(place)
        return
    import pyarrow.fs

    with tempfile.NamedTemporaryFile(suffix=".pt") as copy:
        try:
            filesystem, path = pyarrow.fs.FileSystem.from_uri(place)
            with filesystem.open_input_stream(path) as file:
                shutil.copyfileobj(file, copy)
        except (OSError, ValueError) as error:
            raise InputError(f"{place}: can't be read ({error})") from None
        copy.flush()
        yield Path(copy.name)
