"""Tries what the contract of a custom model assumes: seeds, inputs, evaluation, cutting of batches, and saved state.

docs/custom-model-checks.md shows the smallest failing model of each kind.
"""

import io
from typing import Any

import torch

from myllm.models.custom_model import CustomModelConfig, builder, error_text
from myllm.system.errors import InputError

SHORT = 64
"""tokens of a window in these checks, where the model takes windows shorter than its block_size"""
TOLERANCE = 2e-5
"""relative difference between two losses that rounding in float32 explains"""
SUSPECTS = (0, 1, 2, 10, 32, -2, -1)
"""ids that models leave out of their loss: padding, line break, space; from the end of the vocabulary the end of text"""


class Probe:
    """A custom model that is tried. Raises InputError for what breaks the contract; the message names the model."""

    def __init__(self, config: CustomModelConfig):
        self.config = config
        self.length = config.block_size

    def wrong(self, reason: str) -> InputError:
        """Returns the error that names the model and the reason."""
        return InputError(f"--model {self.config.source}: {reason}")

    def build(self, seed: int) -> Any:
        """Builds the module from torch's generator at `seed`. Raises InputError."""
        config = self.config
        torch.manual_seed(seed)
        try:
            module = builder(config)()
        except (Exception, SystemExit) as error:
            call = f"{config.class_name}({config.settings}, {config.vocab_size})"
            raise self.wrong(f"{call} raises {error_text(error)}") from None
        if any(isinstance(p, torch.nn.parameter.UninitializedParameter) for p in module.parameters()):
            raise self.wrong(
                "it has lazy modules, whose parameters have no shape before they are used: give them their sizes"
            )
        return module

    def windows(self, count: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns random inputs and targets, two (count, length) int64 tensors; the largest id is among both."""
        ids = torch.randint(self.config.vocab_size, (count, length + 1), generator=torch.Generator().manual_seed(0))
        ids[0, 0] = ids[-1, -1] = self.config.vocab_size - 1
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def forward(self, module: Any, ids: torch.Tensor, targets: torch.Tensor) -> Any:
        """Returns what forward(ids, targets) returns. Raises InputError where it fails, or changes its inputs."""
        before = ids.clone(), targets.clone()
        try:
            result = module(ids, targets)
        except (Exception, SystemExit) as error:
            raise self.wrong(f"forward(ids, targets) of {tuple(ids.shape)} ids raises {error_text(error)}") from None
        for name, tensor, copy in zip(("ids", "targets"), (ids, targets), before, strict=True):
            if not torch.equal(tensor, copy):
                raise self.wrong(
                    f"forward changes its {name} in place, and they are read again: work on a copy, {name}.clone()"
                )
        return result

    @torch.no_grad()
    def loss(self, module: Any, ids: torch.Tensor, targets: torch.Tensor, seed: int = 0) -> float:
        """Returns the loss of a forward pass from torch's generator at `seed`, in nats per token."""
        torch.manual_seed(seed)
        return float(self.forward(module, ids, targets).double())


def differ(one: float, other: float) -> bool:
    """Returns True if two losses differ by more than rounding, or if one is no number."""
    return not abs(one - other) <= TOLERANCE * max(abs(one), abs(other))


def check_contract(probe: Probe) -> None:
    """Tries all that the contract assumes, on small windows. Raises InputError for the first breach."""
    first, twin = check_seeds(probe)
    ids, targets = probe.windows(2, probe.length)
    try:
        short = probe.windows(2, min(SHORT, probe.length))
        probe.loss(probe.build(1), *short)
        ids, targets = short
    except InputError:  # it takes whole windows only
        pass
    check_draws(probe, first, twin, ids, targets)
    check_evaluation(probe, twin.eval(), ids, targets)
    check_mean(probe, twin, *probe.windows(2, probe.length))
    check_cut(probe, first, ids.size(1))
    check_state(probe, first.train(), ids, targets)


def check_seeds(probe: Probe) -> tuple[Any, Any]:
    """Raises InputError where the seed does not decide the first weights; returns two modules from the same seed."""
    first = probe.build(0)
    after_first = torch.get_rng_state()
    other = probe.build(1)
    if torch.equal(after_first, torch.get_rng_state()):
        raise probe.wrong(
            "it sets torch's random generator when it is built, so that all seeds train the same weights: "
            "leave torch.manual_seed out"
        )
    matrices = [(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True) if a.dim() >= 2]
    drawn = [(a, b) for a, b in matrices if a.numel() and not torch.equal(a, a.flatten()[0].expand_as(a))]
    if drawn and all(torch.equal(a, b) for a, b in drawn):
        raise probe.wrong(
            "its first weights are the same from every seed: draw them from torch's own generator, which the seed sets"
        )
    twin = probe.build(0)
    if not all(torch.equal(a, b) for a, b in zip(first.parameters(), twin.parameters(), strict=True)):
        raise probe.wrong(
            "its first weights differ between two builds from the same seed: draw them from torch's generator, "
            "not from random or numpy, and leave none as torch.empty made it"
        )
    return first, twin


def check_draws(probe: Probe, first: Any, twin: Any, ids: torch.Tensor, targets: torch.Tensor) -> None:
    """Raises InputError where training sets torch's generator, or draws numbers that the seed does not decide."""
    one, other = (probe.loss(module, ids, targets, seed=1) for module in (first, twin))
    if differ(one, other):
        raise probe.wrong(
            f"two trainings from the same seed begin with the losses {one:.6g} and {other:.6g}: forward draws numbers that "
            "the seed does not decide; draw them from torch's generator, not from random or numpy"
        )
    states = []
    for seed in (1, 2):
        probe.loss(first, ids, targets, seed)
        states.append(torch.get_rng_state())
    if torch.equal(*states):
        raise probe.wrong(
            "forward sets torch's random generator, so that each step draws the same numbers: leave torch.manual_seed out"
        )


def check_evaluation(probe: Probe, module: Any, ids: torch.Tensor, targets: torch.Tensor) -> None:
    """Raises InputError where a module in eval mode gives a window another loss the second time."""
    one, other = (probe.loss(module, ids, targets, seed) for seed in (1, 2))
    if differ(one, other):
        raise probe.wrong(
            f"in eval mode the same windows have the losses {one:.6g} and {other:.6g}: dropout must follow self.training, "
            "and nothing may be kept from one call to the next"
        )


def check_mean(probe: Probe, module: Any, ids: torch.Tensor, targets: torch.Tensor) -> None:
    """Raises InputError where a window given twice has another loss than the window alone."""
    once, twice = (probe.loss(module, ids[:1].repeat(n, 1), targets[:1].repeat(n, 1)) for n in (1, 2))
    if abs(twice - once) > 0.01 * abs(once):
        raise probe.wrong(
            f"its loss is {once:.4g} on a window and {twice:.4g} on the same one twice; it must be the mean over tokens"
        )


def check_cut(probe: Probe, module: Any, length: int) -> None:
    """Raises InputError where the loss of a batch is not the mean of the losses of its windows.

    Each window but the first consists of one id of SUSPECTS and another last target. So a loss that leaves such an id
    out, or weighs it, counts this window's other tokens differently in the batch and alone.
    """
    vocab_size = probe.config.vocab_size
    suspects = sorted({id_ % vocab_size for id_ in SUSPECTS})
    ids, targets = probe.windows(len(suspects) + 1, length)
    for row, suspect in enumerate(suspects, 1):
        ids[row], targets[row, :-1] = suspect, suspect
    targets[:, -1] = torch.arange(len(targets)) + vocab_size // 2  # none of the suspects, in a vocabulary of some size
    targets[:, -1] %= vocab_size
    for mode in (module.eval(), module.train()):
        whole = probe.loss(mode, ids, targets)
        untouched = torch.equal(torch.get_rng_state(), torch.manual_seed(0).get_state())
        parts = [probe.loss(mode, ids[i : i + 1], targets[i : i + 1]) for i in range(len(ids))]
        mean = sum(parts) / len(parts)
        if untouched and differ(whole, mean):  # dropout draws other numbers for each piece
            raise probe.wrong(
                f"its loss is {whole:.6g} on {len(ids)} windows at once and {mean:.6g} on average one by one; batches are "
                "cut as memory demands, so each token must count the same: no ignore_index, no weights of ids, no "
                "batch norm"
            )


def check_state(probe: Probe, module: Any, ids: torch.Tensor, targets: torch.Tensor) -> None:
    """Raises InputError where a checkpoint can't hold the module's state, or does not hold all of it."""
    state, buffer = module.state_dict(), io.BytesIO()
    try:
        torch.save(state, buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
    except Exception:  # pickle's and torch's own, of many kinds
        names = [f"{name} ({type(value).__name__})" for name, value in state.items() if not isinstance(value, torch.Tensor)]
        raise probe.wrong(
            f"a checkpoint can't hold its state {', '.join(names)}: let get_extra_state return tensors, or numbers, texts, "
            "lists and dicts of Python's own (float(x) of a numpy number)"
        ) from None
    copy = probe.build(0)
    try:
        copy.load_state_dict(state)
    except (Exception, SystemExit) as error:
        raise probe.wrong(f"its saved state can't be loaded again: {error_text(error)}") from None
    for seed, training in ((3, True), (4, False)):
        one, other = (probe.loss(m.train(training), ids, targets, seed) for m in (module, copy))
        if differ(one, other):
            raise probe.wrong(
                f"restored from its state_dict() it has the loss {other:.6g} where the loss was {one:.6g}: keep all that "
                "changes in training in parameters, buffers or get_extra_state"
            )
