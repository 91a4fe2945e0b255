"""Durations on the command line."""

from __future__ import annotations

import pytest

from reconciler.cli.duration import parse


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("1h30m", 5400), ("2d", 172800), ("1d2h3m4s", 93784), ("90", 90), ("0.5s", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "s", "-3", "30x", "1m1h", "30 s s", "soon", "1e3", "٣s"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="30s, 5m or 1h30m"):
        parse(text)
