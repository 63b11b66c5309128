"""Resolves the user's options into the specification of a search, checked against the data before anything starts."""

import dataclasses
import itertools
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.config import TIMED_REPORTS
from myllm.datasets.data_paths import Source, absolute, are_tokens, find_files, is_builtin
from myllm.datasets.load_tokens import default_tokenizer, prepare
from myllm.datasets.overlap import check_separate
from myllm.datasets.token_file import TokenFile, are_there
from myllm.datasets.tokenizer import get_tokenizer, identity, resolve, token_bytes
from myllm.datasets.windows import Windows
from myllm.models.custom_model import CustomModelConfig, custom_model, settings_of, with_settings
from myllm.presets import get_preset
from myllm.system.errors import InputError, naming
from myllm.system.machine import cpp_compiler, gpu_names, origin
from tune.config.options import AUTO, SearchOptions
from tune.config.overrides import Override, check_space, extremes, parse_overrides, preset_at, searched_space
from tune.config.spec import RUN_ID_DIGITS, BuiltinSearch, Data, SearchSpec
from tune.core.search_space import get_space
from tune.store.tables import RESULT_COLUMNS

EMA_RATIO = 0.1  # horizon of the averaged weights of --rung_metric val_loss_ema
PACKAGES = ("torch", "ray", "tiktoken", "numpy", "pandas", "optuna")  # whose versions search.json keeps
CODE = ("python", "packages", "git_commit")  # of a search's origin
TAKEN = {"trial_id", *RESULT_COLUMNS, "fate", "measured", "end_loss", "seeds", "last_val_loss"}
"""columns of trials.csv and of a report's tables, which stand beside those of the hyper-parameters"""
NUM_REPORTS = 32  # token marks a full training
MIN_EVAL_TOKENS, MAX_EVAL_TOKENS, EVAL_SHARE = 4096, 2**20, 1 / 256  # of val, at each mark; the share is of the budget
MOST_BUILT = 32  # shapes of a user's own model that are tried before the start
TRAIN_EVAL = 4  # one window of train for so many of val: train_loss is there to be read, nothing is decided by it


@dataclass(frozen=True)
class Resources:
    """The share of the machine that one trial takes, and the trials that train at once."""

    cpus_per_trial: int  # CPU cores
    gpus_per_trial: float  # GPUs; a fraction shares one
    workers: int  # trials that train at once
    processes: int = 1  # processes that share a trial's training

    @property
    def threads(self) -> int:
        """The torch threads of each process."""
        return max(1, self.cpus_per_trial // self.processes)

    def times(self, slots: int) -> "Resources":
        """Those of one trial alone that has the shares of `slots` trials."""
        return Resources(slots * self.cpus_per_trial, slots * self.gpus_per_trial, 1, slots * self.processes)


def resolve_resources(options: SearchOptions, num_cpus: int, *num_gpus: int) -> Resources:
    """The trials' share of `num_cpus` cores and of the GPUs of each machine. Raises InputError where not one trial fits."""
    gpus, cpus = options.gpus_per_trial, options.cpus_per_trial
    if isinstance(gpus, str) or isinstance(cpus, str):
        raise ValueError(f"{AUTO} is not resolved yet")
    if gpus is None:
        gpus = 1 if sum(num_gpus) else 0
    if gpus > max(num_gpus):
        where = "" if len(num_gpus) == 1 else " on one machine of the cluster"
        raise InputError(f"--gpus_per_trial is {gpus:g}, but there are {max(num_gpus)} GPUs{where}")
    by_gpu = num_cpus
    if gpus:
        by_gpu = sum(int(1 / gpus + 1e-9) * count if gpus < 1 else count // int(gpus) for count in num_gpus)
    processes = options.processes_a_slot
    if gpus and processes != max(1, int(gpus)):
        raise InputError(f"--processes_per_trial is for CPU cores; {gpus:g} GPUs a trial are {max(1, int(gpus))} processes")
    cpus = cpus or (max(1, num_cpus // by_gpu) if gpus else processes)
    if cpus > num_cpus:
        flag = "cpus" if options.cpus_per_trial else "processes"
        raise InputError(f"--{flag}_per_trial is {cpus}, but there are {num_cpus} CPU cores")
    if processes > cpus and not gpus:
        raise InputError(f"--processes_per_trial is {processes}, more than --cpus_per_trial {cpus}")
    workers = min(by_gpu, num_cpus // cpus)
    return Resources(cpus, gpus, min(workers, options.max_concurrent or workers), processes)


def check_processes(search: SearchSpec, processes: int) -> None:
    """Raises InputError where the processes of a trial can't share a batch of the search evenly, or train nothing."""
    if not isinstance(search, BuiltinSearch):
        if search.options.processes_per_trial:
            raise InputError("--processes_per_trial is for the built-in training; another program starts its own processes")
        return
    wrong = [batch for batch in search.batch_sizes if batch % processes]
    if wrong:
        right = [batch for batch in search.batch_sizes if batch not in wrong] or [processes]
        how = f"{'--choices' if len(right) > 1 else '--set'} batch_size={','.join(map(str, right))}"
        raise InputError(f"batch_size {wrong[0]} can't be divided among the {processes} processes of a trial; take {how}")


def resolve_search(options: SearchOptions, cache_dir: Path) -> BuiltinSearch:
    """The specification of the search that `options` ask for, checked against the data.

    Raises InputError, one line, for the first fault.
    """
    tokenizer = resolve(options.tokenizer or default_tokenizer(options.train_file))
    encoding = get_tokenizer(tokenizer)
    named, n_vocab = get_preset(options.preset), encoding.n_vocab
    model = custom_model(options.model, n_vocab, named.block_size) if options.model else named.model(n_vocab)
    overrides = parse_overrides(vars(options), model)
    names = settings_of(model)
    shape = {name: one.fixed for name, one in overrides.items() if one.values is None and name in names}
    with naming(", ".join(overrides[name].flag for name in shape)):
        model = with_settings(model, shape)
    preset = preset_at(options, model, overrides)
    searched = searched_space(options, model, overrides, preset)
    check_space(options, searched, overrides)
    if taken := sorted(searched.ranges.keys() & TAKEN):
        raise InputError(
            f"{taken[0]!r} can't be searched: a search's tables have a column of that name; rename the setting, or --set it"
        )
    sources = {"train": options.train_file, "val": options.val_file}
    how = cache_dir, options.token_dtype, options.text_column
    files = {split: prepare(source, split, tokenizer, encoding, *how) for split, source in sources.items()}
    check_separate(files["train"], files["val"])
    max_len = model.block_size
    windows = {split: Windows(tokens, max_len, max_len) for split, tokens in files.items()}
    batch_sizes = searched.values_of("batch_size", preset.batch_size)
    check_batch_sizes(options, batch_sizes, overrides, windows["train"])
    length, report_tokens = resolve_length(options, named.budget_tokens, batch_sizes, max_len)
    budget = length.get("budget_tokens", named.budget_tokens)
    eval_windows = int(min(MAX_EVAL_TOKENS, max(MIN_EVAL_TOKENS, budget * EVAL_SHARE))) // max_len or 1
    targets = windows["val"].ids(windows["val"].spread(eval_windows))[:, 1:]
    settled: dict[str, Any] = length | {
        "batch_size": searched.baseline.get("batch_size", preset.batch_size),
        "max_len": max_len,
        "version": get_space(options.space).version,
        "seed": options.seed,
        "eval_windows": eval_windows,
        "train_eval_windows": max(1, eval_windows // TRAIN_EVAL),
        "ema_ratio": EMA_RATIO if options.rung_metric == "val_loss_ema" else 0.0,
    }
    fixed = {name: value for name, value in searched.fixed.items() if name not in shape}
    with naming(f"--set {' '.join(f'{name}={value}' for name, value in fixed.items())}"):
        training = preset.training(**(settled | fixed))
    bytes_per_token = max(1, int(token_bytes(encoding)[targets].sum())) / targets.size
    data = described_data(options, files, tokenizer, identity(encoding), bytes_per_token)
    started = {"run_id": uuid.uuid4().hex[:RUN_ID_DIGITS]} | origin(PACKAGES)
    search = BuiltinSearch(
        options=options,
        model=model,
        training=training,
        data=data,
        report_tokens=report_tokens,
        origin=started,
        **vars(searched),
    )
    check_trials(search, overrides)
    return search


def described_data(
    options: SearchOptions, files: Mapping[str, TokenFile], tokenizer: str, tokenizer_sha256: str, bytes_per_token: float
) -> Data:
    """The data of every trial, as search.json describes it."""
    return Data(
        train_file=absolute(options.train_file),
        val_file=absolute(options.val_file),
        token_dtype=options.token_dtype,
        text_column=options.text_column,
        tokenizer=tokenizer,
        tokenizer_sha256=tokenizer_sha256,
        fingerprint={split: tokens.fingerprint() for split, tokens in files.items()},
        prepared={split: tokens.spec for split, tokens in files.items()},
        bytes_per_token=bytes_per_token,
    )


def check_batch_sizes(
    options: SearchOptions, sizes: Sequence[int], overrides: Mapping[str, Override], train: Windows
) -> None:
    """Raises InputError for a batch size, in windows, that is below 1 or that `train` can't fill."""
    if min(sizes) < 1:
        raise InputError(f"{overrides['batch_size'].flag}: batch_size is {min(sizes)}; it must be 1 or more")
    if len(train) < max(sizes):
        raise InputError(
            f"{' '.join(options.train_file)}: its {len(train)} windows of {train.max_len} tokens are fewer than the"
            f" largest batch of space {options.space} with preset {options.preset}, {max(sizes)} windows"
        )


def resolve_length(
    options: SearchOptions, usual: int, batch_sizes: Sequence[int], max_len: int
) -> tuple[dict[str, Any], int]:
    """(the length of one full training as a setting of it, tokens or milliseconds between reports). `usual` are the
    preset's tokens. Raises InputError where there would be less than two reports.
    """
    if options.budget_seconds is None:
        budget, report_tokens = resolve_marks(options.budget_tokens or usual, batch_sizes, max_len)
        return {"budget_tokens": budget}, report_tokens
    milliseconds = max(1, round(1000 * options.budget_seconds / TIMED_REPORTS))
    return {"budget_seconds": TIMED_REPORTS * milliseconds / 1000}, milliseconds


def resolve_marks(wanted: int, batch_sizes: Sequence[int], max_len: int) -> tuple[int, int]:
    """(tokens of one full training, tokens between reports), near the `wanted` tokens: at most NUM_REPORTS reports.

    A report comes after whole steps of every batch size. Raises InputError where there would be less than two.
    """
    alike, largest = math.lcm(*batch_sizes), max(batch_sizes)
    step = alike * max_len
    reports = min(NUM_REPORTS, wanted // step)
    if reports < 2:
        listed = ", ".join(map(str, batch_sizes))
        of = f"the largest batch, {largest}" if alike == largest else f"batches of {listed} alike, {alike}"
        raise InputError(
            f"--budget_tokens is {wanted}: less than two reports, each a whole number of steps of {of} windows of {max_len}"
            f" tokens; it must be at least {2 * step}, or the batches smaller (--choices batch_size=...)"
        )
    report_tokens = wanted // (reports * step) * step
    return report_tokens * reports, report_tokens


def check_trials(search: BuiltinSearch, overrides: Mapping[str, Override]) -> None:
    """Raises InputError if a configuration within the user's ranges can't be trained, or if no rung lies before the end."""
    options = search.options
    shapes = []
    for flags, hyper_parameters in extremes(search, overrides, settings_of(search.model)):
        with naming(flags):
            search.train_config(hyper_parameters)
            shapes.append(search.model_config(hyper_parameters))
    baseline = search.model_config(search.baseline)
    if isinstance(baseline, CustomModelConfig):
        from myllm.models.model_check import check_builds, check_trains  # here: torch takes long, and only they need it
        from myllm.training.optimizers import check_optimizers

        check_trains(baseline)
        names = search.values_of("optimizer", search.training.optimizer)
        check_optimizers(baseline, [dataclasses.replace(search.training, optimizer=name) for name in names])
        different = {str(shape.settings): shape for shape in shapes if isinstance(shape, CustomModelConfig)}
        for shape in itertools.islice(different.values(), MOST_BUILT):
            check_builds(shape)
    check_rungs(search)
    if search.training.compile == "on" and options.address is None and not gpu_names() and cpp_compiler() is None:
        raise InputError("--set compile=on: there is no C++ compiler here; install g++, or name one in the variable CXX")


def check_rungs(search: SearchSpec) -> None:
    """Raises InputError if no rung lies before the end of the budget."""
    options = search.options
    if options.resolved_rungs and not search.scheduler().rung_tokens:
        longer = "--budget" if options.is_own_program else "--budget_tokens"
        raise InputError(
            f"{'--rungs' if options.grace_period is None else '--grace_period'}: no rung lies at one of the "
            f"{search.budget_tokens // search.report_tokens} reports before the end; choose an earlier one, or a larger "
            f"{longer}"
        )


def changed_code(search: SearchSpec) -> str:
    """One line that lists the changes of code and packages since the search began; empty if there are none."""
    before, now = (one["packages"] | {name: one[name] for name in CODE} for one in (search.origin, origin(PACKAGES)))
    changed = [name for name in now if name != "packages" and before.get(name) != now[name]]
    return ", ".join(f"{name} {before.get(name)} -> {now[name]}" for name in changed)


def is_text(source: Source) -> bool:
    """True if `source` has files of text, whose tokens may be of an earlier state. Prints a note if they are gone."""
    try:
        return not is_builtin(source) and not are_tokens(find_files(source))
    except InputError as error:
        print(f"note: {error}; the search goes on with the tokens that were made of it")
        return False


def check_comparable(search: BuiltinSearch, cache_dir: Path, moved: dict[str, Any]) -> BuiltinSearch:
    """The search with its prepared data in place, or where `moved` says that it is now, by train_file and val_file. Raises
    InputError where the content of the tokenizer or of the data is another one.
    """
    places: dict[str, Any] = {name: absolute(list(files)) for name, files in moved.items()}
    data = dataclasses.replace(search.data, **places)
    encoding, prepared = get_tokenizer(data.tokenizer), dict(data.prepared)
    how = cache_dir, data.token_dtype, data.text_column
    changed = [] if identity(encoding) == data.tokenizer_sha256 else [f"tokenizer {data.tokenizer}"]
    for split, source in (("train", data.train_file), ("val", data.val_file)):
        if f"{split}_file" in moved or not are_there(prepared[split]) or is_text(source):
            prepared[split] = prepare(source, split, data.tokenizer, encoding, *how).spec
        if TokenFile(prepared[split]).fingerprint() != data.fingerprint[split]:
            changed.append(source if isinstance(source, str) else " ".join(source))
    if changed:
        raise InputError(
            f"{changed[0]} has changed since the search began: its trials could not be compared with new ones; "
            "put it back as it was, or start a new search"
        )
    options = dataclasses.replace(search.options, **moved)
    return dataclasses.replace(search, options=options, data=dataclasses.replace(data, prepared=prepared))
