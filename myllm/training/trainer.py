"""Command line for one training run.

python myllm/training/trainer.py --train_file train_ids.bin --val_file val_ids.bin --epochs 4 --save_model model.pth
python myllm/training/trainer.py --config experiments/runs/NAME/best_config.json --save_model final.pth
python myllm/training/trainer.py --from_trial experiments/runs/NAME/t00007 --save_model final.pth
python myllm/training/trainer.py --load_model final.pth --generate "Once"
torchrun --nproc_per_node 4 myllm/training/trainer.py --config experiments/runs/NAME/best_config.json
"""

import os
import sys

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

import myllm.system.imports

myllm.system.imports.check_imports()


import contextlib
import dataclasses
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from myllm.config import LENGTHS, TIMED_REPORTS, TrainConfig, from_dict
from myllm.models.custom_model import CustomModelConfig
from myllm.system.errors import InputError, run_command
from myllm.system.files import check_writable
from myllm.system.machine import processes_in_environment
from myllm.system.progress_bar import Bar
from myllm.text.durations import duration
from myllm.training import generate
from myllm.training.autosave import AutoSave, minutes
from myllm.training.compatibility import trained_on_other_data
from myllm.training.options import TrainerOptions, parse_args, trainer_options
from myllm.training.parallel import SINGLE, ProcessGroup, device_of_process, joined
from myllm.training.run_artifacts import read_config
from myllm.training.run_setup import RunSetup, StartConfig, build_run, print_rescaled
from myllm.training.train import Report, Run, learning_rate_at, train_steps
from myllm.training.train_utils import load_state, load_trial, plot_losses, save_state, text_to_token_ids


@dataclass(frozen=True)
class SavedState:
    """The training state that a run goes on from."""

    state: dict[str, Any]
    path: str
    """file or URI that the state was read from"""


@dataclass(frozen=True)
class Job:
    """All that one call of trainer.py trains."""

    options: TrainerOptions
    setup: RunSetup
    extras: dict[str, Any]
    """what --save_model stores beside the run's state: history, tokenizer, rescaled"""

    @property
    def run(self) -> Run:
        return self.setup.run

    @property
    def history(self) -> list[dict[str, Any]]:
        """Returns the reports so far, those before a resume included."""
        history: list[dict[str, Any]] = self.extras["history"]
        return history


def main() -> int:
    """Runs the command; returns its exit code. Raises InputError and RunError."""
    given = parse_args()
    options = trainer_options(given)
    check(options, given)
    if options.generate is not None:
        print(generate.write(given))
        return 0
    if processes_in_environment() == 1:
        return train_and_plot(options, given, options.device, SINGLE)
    device = device_of_process(options.device)
    with joined(device) as group:
        return train_and_plot(options, given, device, group)


def train_and_plot(options: TrainerOptions, given: dict[str, Any], device: str, group: ProcessGroup) -> int:
    """Trains as one of the processes of `group`, and writes --plot; returns the exit code."""
    with group.first_alone():
        job = build(options, given, device, group)
    code = train_job(job, given)
    if options.plot and job.history and not code and group.leads:
        epochs, tokens, train_losses, val_losses = (
            [row[name] for row in job.history] for name in ("epoch", "tokens_seen", "train_loss", "val_loss")
        )
        plot_losses(epochs, tokens, train_losses, val_losses, options.plot)
        print(f"wrote {options.plot}")
    return code


def check(options: TrainerOptions, given: dict[str, Any]) -> None:
    """Raises InputError for flags that do not go together and for files that can't be written."""
    generate.check_flags(given)
    if options.generate is not None:
        return
    save, load = options.save_model, options.load_model
    minutes(options.save_every)
    if "save_every" in given and not save:
        raise InputError("--save_every says how often --save_model is written; give both, or neither")
    if load and given.get("version") == "v1":
        raise InputError("--load_model belongs to v2: V1 starts anew each time")
    goes_on = save and load and os.path.realpath(save) == os.path.realpath(load)
    if save and Path(save).exists() and not goes_on:
        raise InputError(f"--save_model {save} exists; go on from it with --load_model, or choose another name")
    if options.from_trial and options.config:
        raise InputError("--from_trial brings its trial's settings: leave out --config, or continue nothing")
    for flag in ("save_model", "plot"):
        if flag in given:
            check_writable(given[flag], f"--{flag}")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        raise InputError("--plot needs the package matplotlib; pip install matplotlib")


def read_start(options: TrainerOptions) -> tuple[StartConfig, SavedState | None]:
    """Reads --config, or the settings and weights of --from_trial. Raises InputError."""
    if options.config:
        return StartConfig(read_config(options.config), options.config), None
    if not options.from_trial:
        return StartConfig({}, ""), None
    trial, state, place = load_trial(options.from_trial)
    parts = {"preset": trial.preset, "model": state["model_config"], "train": state["train_config"], "data": trial.data}
    where = place if "://" not in place else str(trial.run_dir / "search.json")
    return StartConfig(parts, where), SavedState(state, place)


def build(options: TrainerOptions, given: dict[str, Any], device: str, group: ProcessGroup) -> Job:
    """Builds the run, restores a saved state into it, and prints what will be trained. Raises InputError."""
    start, saved = read_start(options)
    setup = build_run(given, start, device, group)
    run = setup.run
    if options.load_model and run.config.version == "v1":
        raise InputError("--load_model belongs to v2, and the config says v1: V1 starts anew each time")
    if not text_to_token_ids(options.start_context, setup.tokenizer).numel():
        raise InputError("--start_context is empty; give at least one character")
    if options.load_model:
        saved = SavedState(load_state(options.load_model), options.load_model)
    if saved:
        restore(run, saved)
    print_rescaled(setup, start, given)
    before = saved.state if saved else {}
    moved = [vars(change) for change in setup.rescaled if change.old != change.new]
    extras = {
        "history": before.get("history", []),
        "tokenizer": setup.tokenizer_name,
        "rescaled": moved or before.get("rescaled", []),
    }
    length = f"{duration(run.pace.budget)} of steps" if run.pace else f"{run.total_steps} steps"
    parameters = sum(parameter.numel() for parameter in run.parameters)
    processes = f" in each of {group.size} processes" if group.size > 1 else ""
    print(
        f"{parameters:,} parameters, {length} of {run.config.tokens_per_step:,} tokens, "
        f"{run.stream.steps_per_epoch} steps an epoch, on {run.device}{processes}"
    )
    if run.step >= run.total_steps:
        longer = next(f"--{name}" for name in LENGTHS if getattr(run.config, name))
        longer += ", which counts all passes so far," if run.config.epochs else ""
        print(f"nothing left to train: the saved run is at its end; a larger {longer} goes on")
    return Job(options, setup, extras)


def restore(run: Run, saved: SavedState) -> None:
    """Loads a saved state into `run`, and prints where the run goes on and what is different from then."""
    state, path = saved.state, saved.path
    run.load_state_dict(state, other_data=True)
    before = from_dict(TrainConfig, state["train_config"], path)
    print(f"resumed from {path} at step {run.step} of {run.total_steps}")
    old, new = state.get("data"), run.data_identity()
    if trained_on_other_data(state, run.stream):
        was = f"{old['train']['tokens']:,} tokens" if old else "of unknown length"
        print(
            f"data: {run.train_windows.tokens.name} ({new['train']['tokens']:,} tokens) is not what {path} was trained on "
            f"({was}); a new pass over it begins, after {run.earlier_epochs} over the other"
        )
    if old and old["val"] != new["val"]:
        print(
            f"data: {run.val_windows.tokens.name} is not the validation data of {path}: val_loss can't be compared with it"
        )
    print_changed_settings(before, run.config)
    old_total = state.get("total_steps") or steps_of(before, run)
    if old_total != run.total_steps and run.step < run.total_steps:
        old_rate = learning_rate_at(max(0, run.step - 1), old_total, before)
        new_rate = learning_rate_at(run.step, run.total_steps, run.config)
        print(
            f"schedule: laid out anew over {run.total_steps} steps (was {old_total}); "
            f"the learning rate goes from {old_rate:.3g} to {new_rate:.3g}"
        )
    model = run.model_config
    if isinstance(model, CustomModelConfig) and model.sha256 != state["model_config"].get("sha256"):
        print(f"model: the code of {model.source} is not what {path} was trained with")


def print_changed_settings(before: TrainConfig, now: TrainConfig) -> None:
    """Prints the settings that a resume changes, old value and new."""
    changed = [
        f"{name} {old} -> {vars(now)[name]}"
        for name, old in vars(before).items()
        if old != vars(now)[name] and name not in LENGTHS
    ]
    if changed:
        print(f"settings: from here on {', '.join(changed)}")


def steps_of(before: TrainConfig, run: Run) -> int:
    """Returns the optimizer steps of a saved run, whose data is taken for that of `run`."""
    if before.budget_tokens is not None:
        return before.budget_tokens // before.tokens_per_step
    return max(run.step, (before.epochs or 0) * run.stream.steps_per_epoch)


def train_job(job: Job, given: dict[str, Any]) -> int:
    """Trains to the end, saving now and then; returns the exit code.

    The code is 1 where the run diverged, and 128 + the signal's number where a signal ended it.
    """
    run, path = job.run, job.options.save_model
    autosave = AutoSave(lambda: save(job), minutes(job.options.save_every), run.group)
    total, unit, begin = (TIMED_REPORTS, "parts", run.pace.reports) if run.pace else (run.total_steps, "steps", run.step)
    with autosave.catching_signals() if path else contextlib.nullcontext(), Bar(total, "training", unit, begin) as bar:
        while run.step < run.total_steps:
            end = run.epoch_end
            for report in train_steps(run, end):
                if report:
                    bar.update((run.pace.reports if run.pace else report.step) - bar.n)
                    print_report(job, report)
                if report and report.diverged:
                    print(f"diverged at step {report.step}: the loss is no longer finite; try a lower --learning_rate")
                    return 1
                if path and run.step < end and autosave.after_step():
                    break
            else:
                if path:
                    save(job)
                print_sample(job, given)
            if (number := autosave.ends()) and run.step < run.total_steps:
                how = f"--load_model {path} goes on from there" if is_finite(run) else "not saved: weights are not finite"
                print(f"interrupted at step {run.step} of {run.total_steps}; {how}")
                return 128 + number
    return 0


def save(job: Job) -> None:
    """Writes --save_model, if the weights are finite: a run that has diverged does not replace one that trains."""
    if job.options.save_model and job.run.group.leads and is_finite(job.run):
        save_state(job.run.state_dict() | job.extras, job.options.save_model)


def is_finite(run: Run) -> bool:
    """Returns True if all weights are finite numbers. Waits for the device."""
    return all(bool(parameter.isfinite().all()) for parameter in run.parameters)


def print_report(job: Job, report: Report) -> None:
    """Prints a report, and adds it to the job's history."""
    epoch = job.run.epoch_at(report.step)
    if measured := job.run.compilation.pop_measurement():
        print(measured)
    print(
        f"epoch {epoch:.2f} step {report.step}: train_loss {report.train_loss:.4f} val_loss {report.val_loss:.4f} "
        f"lr {report.lr:.2e} {report.tok_per_sec:,.0f} tok/s"
    )
    job.history.append(dataclasses.asdict(report) | {"epoch": epoch})


def print_sample(job: Job, given: dict[str, Any]) -> None:
    """Prints how the model continues --start_context, where it can write."""
    run = job.run
    if run.group.leads and generate.can_write(run.model, run.model_config):
        how = {"length": generate.SAMPLE_LENGTH} | given
        start = job.options.start_context
        text = generate.draw(run.model, run.model_config, start, job.setup.tokenizer, how, run.config.seed)
        print("sample: " + repr(text))


def cli() -> None:
    """Runs the command with its errors in one line; ends the process."""
    run_command(main)


if __name__ == "__main__":
    cli()
