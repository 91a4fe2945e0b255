"""Consistent-hash tables: which member of a group serves which hash value.

The tables are those of Maglev (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
NSDI 2016, section 3.4): every member has its own pseudo-random order of all slots, and the members take turns, each
turn taking the member's first slot that is still free. The table's size is prime, so that each order visits every
slot.

Weights decide how often a member's turn comes, the way Katran and Cilium skip turns, but without their rounds: the
k-th turn (k from 0) of a member of weight w comes at time k / w. So each member of a weight above 0 has its first
turn at time 0 and at least one slot; with n slots per member on average, none has more than its exact share and one
slot, or less than its share but one part in n (a hundredth, see :func:`table_size`). Equal weights give the table
of the paper, whatever their common value.

What is promised: the same members and weights give the same table, in whatever order they are listed, on every
host and in every version (the hash is BLAKE2b, the arithmetic exact or IEEE 754); taking one member away moves its
own slots and, on average, fewer than 3 % of the others. Tables of different sizes have nothing in common, and the
default size grows with the number of members.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIZES: Final = (251, 1021, 4093, 16381, 65521)
"""Table sizes: the largest primes below 2^8, 2^10, 2^12, 2^14 and 2^16."""

_TAIL: Final = 512  # with so few slots left, looking through these is cheaper than walking along a member's order


def table_size(members: int) -> int:
    """The default size for so many members: the smallest of :data:`SIZES` with a hundred slots each, or the largest."""
    return next((size for size in SIZES if size >= 100 * members), SIZES[-1])


def table(keys: Sequence[str], weights: Sequence[int], size: int | None = None) -> NDArray[np.uint32]:
    """The table: for every slot the index (into ``keys``) of the member that serves it.

    ``keys`` are the members' names (endpoint texts), each once; ``weights`` their weights, 0 for a member that gets
    no slot. ``size`` is a prime number of slots, :func:`table_size` of the members with a weight if left out. Empty
    if no member has a weight. Raises ValueError on unequal lengths, a repeated key, a negative weight or a size that
    is not prime.
    """
    if len(keys) != len(weights):
        raise ValueError(f"{len(keys)} keys, {len(weights)} weights")
    if len(set(keys)) != len(keys):
        raise ValueError("a key is repeated")
    if any(weight < 0 for weight in weights):
        raise ValueError("a weight is negative")
    ranked = sorted((key, index) for index, key in enumerate(keys) if weights[index])
    if not ranked:
        return np.empty(0, np.uint32)
    slots = table_size(len(ranked)) if size is None else size
    if not _is_prime(slots):
        raise ValueError(f"size {slots} is not prime")
    members = np.array([index for _, index in ranked], np.uint32)
    if len(ranked) == 1:
        return np.full(slots, members[0], np.uint32)
    order = _turns(np.array([weights[index] for _, index in ranked], np.float64), slots)
    offsets, skips = zip(*(_permutation(key, slots) for key, _ in ranked), strict=True)
    return members[_fill(order, offsets, skips, slots)]


def _permutation(key: str, size: int) -> tuple[int, int]:
    """Where a member's order of the slots starts and by how much it steps: offset and skip of the paper."""
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little") % size, int.from_bytes(digest[8:], "little") % (size - 1) + 1


def _turns(weights: NDArray[np.float64], size: int) -> NDArray[np.intp]:
    """Whose turn it is, ``size`` times: turn k of a member comes at k / weight, equal times in the members' order."""
    # By the time all but one slot per member are shared out exactly, nobody can have had more turns than this.
    most = np.minimum(np.floor(size * weights / weights.sum()).astype(np.int64) + 2, size)
    members = np.repeat(np.arange(len(weights)), most)
    counts = np.arange(len(members)) - np.repeat(np.cumsum(most) - most, most)
    order = np.lexsort((members, counts / weights[members]))
    return members[order[:size]]


def _fill(order: NDArray[np.intp], offsets: Sequence[int], skips: Sequence[int], size: int) -> NDArray[np.intp]:
    """Let the members take their turns; the rank of the member that took each slot."""
    taken: list[int] = [-1] * size
    following = list(offsets)
    turns: list[int] = order.tolist()
    tail = max(size - _TAIL, 0)
    for member in turns[:tail]:
        slot, skip = following[member], skips[member]
        while taken[slot] >= 0:
            slot += skip
            if slot >= size:
                slot -= size
        taken[slot] = member
        following[member] = slot
    result = np.array(taken, np.intp)
    free = np.flatnonzero(result < 0)
    for member in turns[tail:]:
        # The place of each free slot in the member's order; what it has passed was taken, so the first is its next.
        places = (free - offsets[member]) * pow(skips[member], -1, size) % size
        first = int(places.argmin())
        result[free[first]] = member
        free = np.delete(free, first)
    return result


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))
