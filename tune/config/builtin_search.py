"""The specification of a search that trains with the built-in training."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from myllm.config import TIMED_REPORTS, TrainConfig, from_dict
from myllm.datasets.data_paths import Source
from myllm.models.custom_model import CustomModelConfig, ModelConfig, described, settings_of, with_settings
from myllm.text.durations import duration
from myllm.training.run_artifacts import DATA_KEYS
from tune.config.search_base import SearchSpec


@dataclass(frozen=True)
class Data:
    """The training and validation data of every trial."""

    train_file: Source  # as the user named it, absolute; or 'builtin'
    val_file: Source
    tokenizer: str
    tokenizer_sha256: str  # SHA-256 of the tokenizer's contents
    fingerprint: dict[str, Any]  # fingerprint of the content of train and val, as TokenFile.fingerprint returns it
    prepared: dict[str, Any]  # specification of train and val that TokenFile opens
    bytes_per_token: float  # UTF-8 bytes per target token of the validation windows
    token_dtype: str | None = None
    text_column: str | None = None


@dataclass(frozen=True, kw_only=True)
class BuiltinSearch(SearchSpec):
    """A search of the built-in training: GPT-2's decoder or a custom model, on token files."""

    model: ModelConfig
    training: TrainConfig
    """the preset's baseline settings and the user's fixed values; a trial's hyper-parameters replace some"""
    data: Data

    @property
    def budget_tokens(self) -> int:
        """Tokens of one full training; with --budget_seconds milliseconds, the unit of all positions then."""
        if self.training.budget_seconds:
            return TIMED_REPORTS * self.report_tokens
        assert self.training.budget_tokens is not None, "a search has a budget in tokens, not in epochs"
        return self.training.budget_tokens

    @property
    def budget_seconds(self) -> float | None:
        """Seconds of steps of one full training, with --budget_seconds."""
        return self.training.budget_seconds

    @property
    def budget_text(self) -> str:
        """The length of one full training as people read it."""
        seconds = self.training.budget_seconds
        return f"{duration(seconds)} of steps" if seconds else super().budget_text

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The batch sizes that trials may have, in windows."""
        return self.values_of("batch_size", self.training.batch_size)

    def step_tokens(self, hyper_parameters: dict[str, Any]) -> int:
        """Tokens of one optimizer step."""
        return int(hyper_parameters.get("batch_size", self.training.batch_size) * self.training.max_len)

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """Tokens of one optimizer step, for each batch size."""
        return tuple(batch * self.training.max_len for batch in self.batch_sizes)

    def model_config(self, hyper_parameters: dict[str, Any]) -> ModelConfig:
        """The model of one trial. Raises InputError for an impossible shape."""
        names = settings_of(self.model)
        return with_settings(self.model, {name: value for name, value in hyper_parameters.items() if name in names})

    def train_config(self, hyper_parameters: dict[str, Any]) -> TrainConfig:
        """The TrainConfig of one trial. Raises InputError for an unknown key, or a step that misses report points."""
        names = settings_of(self.model)
        values = dataclasses.asdict(self.training)
        values |= {name: value for name, value in hyper_parameters.items() if name not in names}
        if values["budget_tokens"]:
            apart = self.report_tokens * values["budget_tokens"] // self.budget_tokens  # a ladder's trials differ in length
            values["eval_freq"] = max(1, apart // (values["batch_size"] * values["max_len"]))
        if values["micro_batch_size"] is not None:
            values["micro_batch_size"] = min(values["micro_batch_size"], values["batch_size"])
        return from_dict(TrainConfig, values, "trial")

    def all_settings(self, hyper_parameters: dict[str, Any]) -> dict[str, Any]:
        """The settings of training and model, and a trial's hyper-parameters in their place."""
        return vars(self.training) | settings_of(self.model) | hyper_parameters

    def described(self) -> dict[str, dict[str, Any]]:
        """Model, training and data, for the page."""
        data = {name: getattr(self.data, name) for name in ("train_file", "val_file", "tokenizer", "tokenizer_sha256")}
        data |= {f"fingerprint of {split}": value for split, value in self.data.fingerprint.items()}
        return {"model": described(self.model), "training": vars(self.training), "data": data}

    def compared_by(self) -> dict[str, Any]:
        """Preset, model, tokenizer and data."""
        model = self.model
        own = f"{model.class_name} ({model.sha256[:8]})" if isinstance(model, CustomModelConfig) else "GPT-2's"
        fingerprint = {split: self.data.fingerprint.get(split) for split in ("train", "val")}
        return {
            "preset": self.options.preset,
            "model": own,
            "tokenizer's content": self.data.tokenizer_sha256,
            "training data": fingerprint["train"],
            "validation data": fingerprint["val"],
        }

    def best_config(self, hyper_parameters: dict[str, Any]) -> dict[str, Any]:
        """Settings with which myllm/training/trainer.py trains a trial."""
        return {
            "preset": self.options.preset,
            "model": vars(self.model_config(hyper_parameters)),
            "train": vars(self.train_config(hyper_parameters)),
            "data": {name: getattr(self.data, name) for name in DATA_KEYS},
        }
