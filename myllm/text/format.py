"""Formats numbers and configurations for people."""

from typing import Any


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


def share_text(tokens: float, budget: int) -> str:
    """A number of tokens as a share of the budget: `1/8`, `45%`, `end`."""
    if tokens >= budget:
        return "end"
    parts = budget / tokens
    return f"1/{parts:.0f}" if abs(parts - round(parts)) < 1e-6 else f"{tokens / budget:.0%}"
