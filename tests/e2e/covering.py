"""Few cases in place of all combinations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product


def covering(factors: Mapping[str, Sequence[str]], strength: int) -> list[dict[str, str]]:
    """Cases such that every combination of the values of any ``strength`` factors is in one of them; the same ones at
    each call. Found greedily: always the case with the most combinations that are not there yet."""
    everything = [dict(zip(factors, values, strict=True)) for values in product(*factors.values())]
    left = {part for case in everything for part in parts(case, strength)}
    chosen = []
    while left:
        best = max(everything, key=lambda case: len(left & parts(case, strength)))
        chosen.append(best)
        left -= parts(best, strength)
    return chosen


def parts(case: Mapping[str, str], strength: int) -> set[tuple[tuple[str, str], ...]]:
    """The combinations of ``strength`` values that a case has."""
    return set(combinations(sorted(case.items()), strength))
