"""Formats numbers and configurations for people."""

import re
from typing import Any

from myllm.system.errors import InputError

AMOUNTS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}


def format_value(value: Any) -> str:
    """A hyper-parameter's value in at most four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def format_settings(config: dict[str, Any]) -> str:
    """A configuration on one line, without a replicate's seed."""
    return "  ".join(f"{name} {format_value(value)}" for name, value in config.items() if name != "seed")


def amount(tokens: float) -> str:
    """`850`, `66k`, `8.5M`, `2.4B` tokens."""
    if tokens < 1e3:
        return f"{tokens:.0f}"
    if tokens < 1e5:
        return f"{tokens / 1e3:.0f}k"
    return f"{tokens / 1e9:,.1f}B" if tokens >= 1e9 else f"{tokens / 1e6:,.1f}M"


def size_text(parameters: int) -> str:
    """`840k`, `85M` parameters."""
    return f"{parameters / 1e3:.0f}k" if parameters < 1e6 else amount(parameters).replace(".0M", "M")


def parse_amount(text: str) -> int:
    """The whole number that `66k`, `2.5B`, `1e6` or `1_000` spells. Raises InputError for another text."""
    parts = re.fullmatch(r"([\d._]+(?:e\+?\d+)?)\s*([kmbt]?)", text.strip().lower())
    try:
        return round(float(parts[1]) * AMOUNTS[parts[2]]) if parts else int(text)
    except (ValueError, OverflowError):
        raise InputError(f"{text!r} is no number of tokens; it must be like 2500000, 66k, 100M or 2.5B") from None


def share_text(tokens: float, budget: int) -> str:
    """A number of tokens as a share of the budget: `1/8`, `45%`, `end`."""
    if tokens >= budget:
        return "end"
    parts = budget / tokens
    return f"1/{parts:.0f}" if abs(parts - round(parts)) < 1e-6 else f"{tokens / budget:.0%}"
