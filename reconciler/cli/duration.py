"""Durations as people write them: 30s, 5m, 1h30m, 2d; a bare number is seconds."""

from __future__ import annotations

import re
from typing import Final

import click

_UNITS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_FORM: Final = re.compile(r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+(?:[.][0-9]+)?)s)?")


def parse(text: str) -> float:
    """Seconds. Raises :class:`ValueError` for anything that is no duration longer than 0."""
    word = text.strip().lower()
    if re.fullmatch(r"[0-9]+([.][0-9]+)?", word):
        word += "s"
    found = _FORM.fullmatch(word)
    seconds = (
        sum(float(part or 0) * unit for part, unit in zip(found.groups(), _UNITS.values(), strict=True)) if found else 0
    )
    if seconds <= 0:
        raise ValueError(f"{text!r} is no duration like 30s, 5m or 1h30m")
    return seconds


def option(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float | None:
    """Callback of an option: seconds, or the words for a person."""
    try:
        return None if value is None else parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
