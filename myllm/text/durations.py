"""Reads and formats durations."""

import itertools
import re

from myllm.system.errors import InputError

UNITS = {"d": 86400, "h": 3600, "min": 60, "s": 1}


def parse_duration(text: str) -> float:
    """Seconds of `7200`, `2h`, `90m` or `1h30m`. Raises InputError for another text."""
    said = text.replace(" ", "")
    said += "s" if re.fullmatch(r"[\d.]+", said) else ""  # a bare number is seconds only where it stands alone
    parts = re.fullmatch(r"(?:([\d.]+)d)?(?:([\d.]+)h)?(?:([\d.]+)m(?:in)?)?(?:([\d.]+)s)?", said)
    try:
        if parts is None or not any(parts.groups()):
            raise ValueError
        return sum(float(count) * unit for count, unit in zip(parts.groups(), UNITS.values(), strict=True) if count)
    except ValueError:
        raise InputError(f"{text!r} is no time; it must be seconds, or like 90m, 1h30m, 2h") from None


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`, `4 d 7 h`: two units at most."""
    whole = max(0, round(seconds))
    for (large, unit), (small, part) in itertools.pairwise(UNITS.items()):
        if whole >= unit:
            count, rest = divmod(round(whole / part), unit // part)
            return f"{count} {large} {rest} {small}" if rest else f"{count} {large}"
    return f"{whole} s"
