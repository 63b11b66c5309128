"""A custom model: a class in a user's file, built from a dict of settings and the vocabulary size. The contract:

    class MyGPT(torch.nn.Module):
        settings = {"n_layer": 4, "dropout": 0.0}   # names and baseline values of what may be set; may be left out

        def __init__(self, settings, vocab_size):   # such a dict, with "block_size", the longest window in tokens
            ...

        def forward(self, ids, targets):            # two (B, T) int64 tensors; targets[b, t] follows ids[b, t]
            return loss                             # mean cross-entropy in nats per token: a scalar with a gradient

        def logits(self, ids):                      # may be left out: a model that has it can write text
            return logits                           # (B, T, vocab_size), or (B, 1, vocab_size) of the last token

        def optimizers(self, settings):             # may be left out; `settings` are the training's, by name
            return optimizer                        # torch's own or like it, or a list; each rate follows the schedule

The file's text, and that of the modules beside it that it imports, is part of the model's configuration: a search goes on
with the code that it began with, on every machine. Nothing here imports torch before a model is built.
"""

import ast
import dataclasses
import difflib
import functools
import hashlib
import importlib.abc
import inspect
import json
import linecache
import os
import sys
import traceback
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from pathlib import Path
from typing import Any

from myllm.config import GPTConfig, TrainConfig, from_dict, parse_value
from myllm.system.errors import InputError, one_line
from myllm.system.files import check_regular

RESERVED = {field.name for field in dataclasses.fields(TrainConfig)} | {"vocab_size"}
"""names that a model's settings can't have: they are the training's"""


@dataclass(frozen=True)
class CustomModelConfig:
    """A custom model: its code and its settings."""

    source: str
    """FILE.py:Class, absolute; where the code came from"""
    files: dict[str, str]
    """relative path -> text of the file, the first, and of those beside it that it imports"""
    sha256: str
    """of `files`"""
    settings: dict[str, int | float | str | bool]
    """what the class is built from; "block_size" among them"""
    vocab_size: int

    def __post_init__(self) -> None:
        if self.sha256 != digest(self.files):
            raise InputError(f"the code of {self.source} is not what its sha256 says; it was edited")
        for name, value in self.settings.items():
            if name in RESERVED:
                raise InputError(f"{self.source}: its setting {name!r} is one of the training's; rename it")
            if not isinstance(value, int | float | str):
                raise InputError(f"{self.source}: its setting {name!r} is {value!r}; it must be a number, text or bool")
        if not isinstance(self.settings["block_size"], int) or self.block_size < 1:
            raise InputError(f"{self.source}: block_size is {self.block_size!r}; it must be a positive whole number")

    @property
    def block_size(self) -> int:
        """Longest context, in tokens."""
        return int(self.settings["block_size"])

    @property
    def class_name(self) -> str:
        return self.source.rpartition(":")[2]


ModelConfig = GPTConfig | CustomModelConfig
UNSAID = {field.name: field.default for field in dataclasses.fields(GPTConfig) if field.default is not dataclasses.MISSING}
"""what a checkpoint of GPT-2's decoder means where it is older than a setting"""


def settings_of(model: ModelConfig) -> dict[str, Any]:
    """Returns the settings of a model by name."""
    return dict(model.settings) if isinstance(model, CustomModelConfig) else dict(vars(model))


def described(model: ModelConfig) -> dict[str, Any]:
    """Returns the settings of a model by name, and of a custom model also where its code came from."""
    own = {"class": model.source, "sha256": model.sha256} if isinstance(model, CustomModelConfig) else {}
    return own | settings_of(model)


def with_settings(model: ModelConfig, changes: dict[str, Any]) -> ModelConfig:
    """Returns the model with other settings. Raises InputError for those that it can't have."""
    own = {"settings": model.settings | changes} if isinstance(model, CustomModelConfig) else changes
    return dataclasses.replace(model, **own)


def fix_settings(model: ModelConfig, texts: Iterable[str]) -> ModelConfig:
    """Returns the model with the settings of `texts`, each NAME=VALUE. Raises InputError for the first that can't be."""
    texts = list(texts)
    known = {setting: value for setting, value in settings_of(model).items() if setting != "vocab_size"}
    changes = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            hint = f"; it is the training's, --{name}" if name in RESERVED else ""
            raise InputError(f"--set {text}: the model has no setting {name!r}{hint}; it has {', '.join(known)}")
        try:
            changes[name] = parse_value(type(known[name]), value)
        except ValueError as error:
            raise InputError(f"--set {text}: {error}") from None
    try:
        return with_settings(model, changes)
    except InputError as error:
        raise InputError(f"--set {' '.join(texts)}: {error}") from None


def read_model(values: Any, where: str) -> ModelConfig:
    """Returns the model that a JSON file describes. Raises InputError."""
    if isinstance(values, dict) and "source" in values:
        return from_dict(CustomModelConfig, values, where)
    return from_dict(GPTConfig, values, where)


def difference(model: ModelConfig, saved: dict[str, Any]) -> str | None:
    """Returns a difference between a checkpoint's model and `model` that makes the weights unusable, or None.

    The same class with other code is no obstacle by itself: what it changed shows where the weights are put in.
    """
    if isinstance(model, CustomModelConfig) != ("source" in saved):
        theirs = saved.get("source", "GPT-2's decoder")
        return f"the checkpoint's model is {theirs}, this one {getattr(model, 'source', 'the built-in one')}"
    own = "source" in saved
    theirs = saved.get("settings", {}) | {"vocab_size": saved.get("vocab_size")} if own else UNSAID | saved
    ours = settings_of(model) | {"vocab_size": model.vocab_size}
    for field in {**theirs, **ours} if own else ours:
        if theirs.get(field) != ours.get(field) and field != "dropout":
            return f"the checkpoint's model has {field} {theirs.get(field)}, this one {ours.get(field)}"
    return None


def absolute(spec: str, flag: str = "--model", kind: str = "Class") -> str:
    """FILE.py:Class with an absolute path. Raises InputError, which begins with `flag`, where it names none."""
    path, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        raise InputError(f"{flag} {spec!r} names no {kind.lower()}; write FILE.py:{kind}")
    return f"{os.path.abspath(path)}:{name}"


def read_files(path: Path) -> dict[str, str]:
    """Returns the text of a Python file and of modules beside it that it imports, by relative path. Raises InputError."""
    folder, files = path.parent, {}
    waiting = [path]
    while waiting:
        file = waiting.pop(0)
        name = str(file.relative_to(folder))
        if name in files:
            continue
        check_regular(file)
        try:
            files[name] = text = file.read_text("utf-8")
            tree = ast.parse(text)
        except SyntaxError as error:
            raise InputError(f"{file}: not Python, line {error.lineno or 1}: {error.msg}") from None
        except (UnicodeDecodeError, ValueError):
            raise InputError(f"{file}: not Python: it is not UTF-8 text") from None
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            for module in {name.partition(".")[0] for name in names}:
                if not _is_elsewhere(module):
                    waiting += [f for f in (folder / f"{module}.py",) if f.is_file()] or sorted(
                        (folder / module).rglob("*.py")
                    )
    return files


def _is_elsewhere(module: str) -> bool:
    """Returns True if `import module` means one of Python's own or a loaded one, not the file beside the model."""
    return module in sys.stdlib_module_names or (module in sys.modules and module not in _beside)


def digest(files: dict[str, str]) -> str:
    """Returns the SHA-256 of files' names and texts."""
    return hashlib.sha256(json.dumps(list(files.items())).encode()).hexdigest()


def is_changed(model: ModelConfig) -> bool:
    """Returns True if the files of a custom model have changed since the configuration was made, or are gone."""
    if not isinstance(model, CustomModelConfig):
        return False
    try:
        return digest(read_files(Path(model.source.rpartition(":")[0]))) != model.sha256
    except (InputError, OSError):
        return True


# Classes

_beside: set[str] = set()
"""names of modules that were loaded from files beside a model's"""


class _Files(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports modules from texts, `files` by their path below `root`: nothing is written, and nothing there is read."""

    def __init__(self, root: Path, files: dict[str, str]):
        self.root, self.files = root, files

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        base = name.replace(".", "/")
        for file in (f"{base}.py", f"{base}/__init__.py"):
            if file in self.files:
                return spec_from_loader(name, self, origin=file, is_package=file.endswith("__init__.py"))
        is_folder = any(file.startswith(f"{base}/") for file in self.files)
        return spec_from_loader(name, self, is_package=True) if is_folder else None

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__spec__ and module.__spec__.origin:
            self.execute(module, module.__spec__.origin)

    def execute(self, module: types.ModuleType, file: str) -> None:
        """Executes a file in a module; tracebacks and inspect see its text."""
        text, module.__file__ = self.files[file], str(self.root / file)
        linecache.cache[module.__file__] = (len(text), None, text.splitlines(keepends=True), module.__file__)
        exec(compile(text, module.__file__, "exec"), vars(module))


@functools.lru_cache(maxsize=8)
def load_object(source: str, sha256: str, code: str, flag: str, is_wanted: Callable[[Any], bool], kind: str) -> Any:
    """What FILE.py:name names, its code executed once a process: `code` is the JSON of the files, `sha256` of `digest`.
    Raises InputError, which begins with `flag`, where the file can't be imported or has no such object of that `kind`.
    """
    path, _, name = source.rpartition(":")
    files = _Files(Path(path).parent, json.loads(code))
    main, *others = files.files
    module = types.ModuleType(f"{Path(main).stem}_{sha256[:8]}")
    sys.modules[module.__name__] = module  # where dataclasses look
    for other in {Path(other).parts[0].removesuffix(".py") for other in others}:
        _beside.add(other)
        for loaded in [name for name in sys.modules if name.partition(".")[0] == other]:
            del sys.modules[loaded]  # of another model
    sys.meta_path.insert(0, files)
    try:
        files.execute(module, main)
    except (Exception, SystemExit) as error:
        raise InputError(f"{flag} {source}: importing it raises {error_text(error)}") from None
    found = getattr(module, name, None)
    if not is_wanted(found):
        known = [n for n, value in vars(module).items() if is_wanted(value)]
        near = difflib.get_close_matches(name, known, 1, 0.5) or known
        raise InputError(f"{flag} {source}: it has no {kind} {name}; it has {', '.join(near) or 'none'}")
    return found


def load_class(model: CustomModelConfig) -> type:
    """Returns the class of a custom model, its code executed once a process. Raises InputError."""
    found: type = load_object(model.source, model.sha256, json.dumps(model.files), "--model", inspect.isclass, "class")
    return found


def error_text(error: BaseException) -> str:
    """Returns an error of the user's code, in one line, with the line that raised it."""
    *_, last = traceback.extract_tb(error.__traceback__)
    where = f" ({os.path.basename(last.filename)}:{last.lineno}: {last.line})" if last.line else ""
    return f"{type(error).__name__}: {one_line(error)}"[:300] + where[:120]


def custom_model(spec: str, vocab_size: int, block_size: int) -> CustomModelConfig:
    """Returns the model that --model names, with its own baseline settings. Raises InputError."""
    source = absolute(spec)
    try:
        files = read_files(Path(source.rpartition(":")[0]))
    except InputError as error:
        raise InputError(f"--model {error}") from None
    empty = CustomModelConfig(source, files, digest(files), {"block_size": block_size}, vocab_size)
    settings = getattr(load_class(empty), "settings", {})
    if not isinstance(settings, dict):
        raise InputError(f"--model {source}: its `settings` is a {type(settings).__name__}; it must be a dict of defaults")
    return dataclasses.replace(empty, settings=empty.settings | settings)


def builder(model: ModelConfig) -> Callable[[], Any]:
    """Returns a function that builds the torch module. The file of a custom model is executed before it returns."""
    if isinstance(model, CustomModelConfig):
        return functools.partial(load_class(model), dict(model.settings), model.vocab_size)
    from myllm.models.gpt import GPT

    return functools.partial(GPT, model)
