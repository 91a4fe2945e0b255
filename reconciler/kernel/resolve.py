"""What the maps hold, put into words: ids resolved to names, endpoints, destinations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import repeat
from typing import Any, Final

import numpy as np

from reconciler.kernel import codec
from reconciler.kernel.arrays import Array
from reconciler.kernel.codec import ID_MASK, C
from reconciler.kernel.lastlook import RouteMemory, Words
from reconciler.kernel.snapshot import Snapshot
from reconciler.state.objects import (
    DENY,
    FULL,
    Allocation,
    Balance,
    Destination,
    Endpoint,
    IPAddress,
    ListenerKey,
    Mode,
    ProxyState,
    RouteKey,
    Share,
)
from reconciler.state.routes import Routes
from reconciler.state.share import recipe, weigh

_MODES = {number: mode for mode, number in codec.MODES.items()}
_BALANCES = {number: balance for balance, number in codec.BALANCES.items()}
_LOST = Destination()

UNKNOWN_SEC: Final = 0xFFFFFFFF
"""136 years: no file asks for it."""


class Resolver:
    """Turns ids into names and endpoints. Equal destinations of a proxy are one object."""

    def __init__(self, taken: Snapshot) -> None:
        self.taken = taken
        self.names = _names(taken)
        self.endpoints: dict[int, tuple[int, Endpoint]] = {}  # target id -> proxy id, endpoint
        for number in np.flatnonzero(taken.targets["family"]).tolist():
            endpoint = codec.unpack_endpoint(taken.targets[number])
            if number and endpoint is not None:
                self.endpoints[number] = (int(taken.targets[number]["proxy"]), endpoint)
        self.members: dict[int, list[tuple[int, int]]] = {}  # group id -> target id, weight
        keys, weights = taken.members
        for group, target, weight in zip(
            keys["group"].tolist(), keys["target"].tolist(), weights.tolist(), strict=True
        ):
            self.members.setdefault(group, []).append((target, weight))
        self.tables = frozenset(taken.tables.tolist())
        self._known: dict[tuple[int, int], Destination | None] = {}

    # -- destinations ----------------------------------------------------------------------------------------

    def destination(self, proxy: int, word: int) -> Destination | None:
        """What a destination word of a proxy means; None for DEST_NONE."""
        if (proxy, word) not in self._known:
            self._known[proxy, word] = self._destination(proxy, word >> C["DEST_KIND_SHIFT"], word & ID_MASK)
        return self._known[proxy, word]

    def _destination(self, proxy: int, kind: int, number: int) -> Destination | None:
        if kind == C["DEST_NONE"]:
            return None
        if kind == C["DEST_DENY"]:
            return DENY
        if kind == C["DEST_TARGET"]:
            owner, endpoint = self.endpoints.get(number, (0, None))
            return Destination(((endpoint, 1),)) if endpoint is not None and owner == proxy else _LOST
        if kind == C["DEST_GROUP"]:
            found = self.group(number)
            return found[1] if found is not None and found[0] == proxy else _LOST
        return _LOST

    def group(self, number: int) -> tuple[int, Destination] | None:
        """Proxy id and destination of a group; None if a member is lost, or its table is."""
        members = self.members.get(number, [])
        targets = [self.endpoints.get(target) for target, _ in members]
        owners = {target[0] for target in targets if target is not None}
        usable = any(weight for _, weight in members)
        if None in targets or len(owners) != 1 or usable != (number in self.tables):
            return None
        weighted = {
            target[1]: weight for target, (_, weight) in zip(targets, members, strict=True) if target is not None
        }
        return owners.pop(), Destination(tuple(sorted(weighted.items())))

    # -- the state -------------------------------------------------------------------------------------------

    def name(self, proxy: int) -> str:
        return self.names.get(proxy, f"?{proxy}")

    def proxies(self) -> dict[str, ProxyState]:
        taken = self.taken
        slots = taken.proxies["slot"][:, taken.active]
        return {self.name(n): self._proxy(n, slots[n]) for n in np.flatnonzero(taken.present_proxies).tolist()}

    def _proxy(self, number: int, value: Any) -> ProxyState:
        mode, balance = _MODES.get(int(value["mode"])), _BALANCES.get(int(value["balance"]))
        known = mode is not None and balance is not None
        return ProxyState(
            name=self.name(number),
            mode=mode or Mode.DNAT,
            balance=balance or Balance.MAGLEV,
            idle_sec=int(value["idle_sec"]) if known else UNKNOWN_SEC,
            default4=self.destination(number, int(value["dest4"])),
            default6=self.destination(number, int(value["dest6"])),
        )

    def listeners(self) -> dict[ListenerKey, str]:
        found: dict[ListenerKey, str] = {}
        for version, (keys, values) in self.taken.listeners.items():
            chosen = self.taken.present_listeners(version)
            rows = keys[chosen]
            columns = (rows[field].tolist() for field in ("ifindex", "protocol", "port_be"))
            proxies = values["proxy"][chosen, self.taken.active].tolist()
            for (ifindex, protocol, port), ip, proxy in zip(
                zip(*columns, strict=True), rows["addr_be"], proxies, strict=True
            ):
                key = ListenerKey(ifindex, codec.unpack_address(ip.tobytes()), codec.PROTOCOLS[protocol], port)
                found[key] = self.name(proxy)
        return found

    def routes(self, memory: RouteMemory) -> Routes:
        """Those of ``memory`` with what has changed since, where that is known."""
        mirrors = self.taken.mirrors
        words = self._words()
        changed = {version: mirror.changed for version, mirror in mirrors.items()}
        names = {proxy: name for (proxy, _), (name, _) in memory.words.items()}
        same = all(
            memory.words.get(pair, meaning) == meaning and names.get(pair[0], meaning[0]) == meaning[0]
            for pair, meaning in words.items()
        )
        present = frozenset(np.flatnonzero(self.taken.present_proxies).tolist())
        if memory.routes is None or not same or None in changed.values():
            found: dict[RouteKey, Destination] = {}
            for version, (keys, values) in self.taken.routes.items():
                chosen = self.taken.present_routes(version)
                found.update(self._routes(version, keys[chosen], values[chosen], words))
            memory.routes = Routes(found)
        else:
            written = {version: keys or [] for version, keys in changed.items()}
            self._follow(memory, written, present ^ memory.present, words, names)
        memory.words, memory.present, memory.active = words, present, self.taken.active
        return memory.routes

    def _follow(
        self,
        memory: RouteMemory,
        written: Mapping[int, list[bytes]],
        turned: frozenset[int],
        words: Words,
        names: Mapping[int, str],
    ) -> None:
        """``turned``: the proxies that are there now and were not then, or the other way round. ``names``: of the
        proxies then, which may have gone since together with their names."""
        removed: dict[RouteKey, None] = {}
        put: dict[RouteKey, Destination] = {}
        for version, (keys, values) in self.taken.routes.items():
            wanted = np.frombuffer(b"".join(dict.fromkeys(written[version])), keys.dtype)
            concerned = np.zeros(len(keys), np.bool_)
            if len(wanted):
                concerned |= np.isin(_whole(keys), _whole(wanted))
            if turned:
                concerned |= np.isin(keys["proxy"], list(turned))
            if memory.active != self.taken.active:
                concerned |= values["slot"][:, 0] != values["slot"][:, 1]
            chosen = self.taken.present_routes(version) & concerned
            put.update(self._routes(version, keys[chosen], values[chosen], words))
            for each in (wanted, keys[concerned]):
                removed.update(dict.fromkeys(self._keys(version, each, names)))
        known = memory.routes or Routes()
        gone = [key for key in removed if key not in put and key in known]
        if gone or put:
            memory.routes = known.patched(gone, put)

    def _words(self) -> Words:
        """A few destinations and proxies stand for many routes: each is resolved once."""
        found: Words = {}
        for version, (keys, values) in self.taken.routes.items():
            chosen = self.taken.present_routes(version)
            if chosen.any():
                words = keys["proxy"][chosen].astype(np.uint64) << 32
                words |= values["slot"]["dest"][chosen, self.taken.active]
                for word in np.unique(words).tolist():
                    pair = (word >> 32, word & 0xFFFFFFFF)
                    found[pair] = self.name(pair[0]), self.destination(*pair) or _LOST
        return found

    def _keys(self, version: int, keys: Array, names: Mapping[int, str]) -> Iterator[RouteKey]:
        named = (names.get(proxy, f"?{proxy}") for proxy in keys["proxy"].tolist())
        lengths = (keys["prefixlen"].astype(np.int64) - 32).tolist()
        return map(RouteKey.of_numbers, named, repeat(version), _networks(keys, version), lengths)

    def _routes(self, version: int, keys: Array, values: Array, words: Words) -> Iterator[tuple[RouteKey, Destination]]:
        active = values["slot"]["dest"][:, self.taken.active].tolist()
        pairs = zip(keys["proxy"].tolist(), active, strict=True)
        return zip(self._keys(version, keys, self.names), (words[pair][1] for pair in pairs), strict=True)

    def sources(self, used_only: bool) -> dict[tuple[str, Endpoint], IPAddress]:
        """Of every target's entry that has one and counts."""
        targets = self.taken.targets
        found: dict[tuple[str, Endpoint], IPAddress] = {}
        for number in np.flatnonzero(targets["source_be"].any(axis=(1, 2))).tolist():
            source = codec.unpack_source(targets[number])
            if source is not None and self._counts(number, used_only):
                owner, endpoint = self.endpoints[number]
                found[self.name(owner), endpoint] = source
        return found

    def shares(self, used_only: bool) -> dict[tuple[str, Endpoint], Share]:
        """Of every target that has not all of its own, and counts."""
        found: dict[tuple[str, Endpoint], Share] = {}
        for number in np.flatnonzero(self.taken.targets["flags"]).tolist():
            if self._counts(number, used_only):
                owner, endpoint = self.endpoints[number]
                found[self.name(owner), endpoint] = self.share(number)
        return {key: share for key, share in found.items() if share != FULL}

    def _counts(self, number: int, used_only: bool) -> bool:
        """It is the number that a proxy's target goes by: not a second one of the same, which connections may keep."""
        if number not in self.endpoints or (used_only and not self.taken.used_targets[number]):
            return False
        owner, endpoint = self.endpoints[number]
        return self.numbers[self.name(owner), endpoint] == number

    @cached_property
    def numbers(self) -> dict[tuple[str, Endpoint], int]:
        """Every target's number; of two for one thing one that is in use, and the lowest."""
        found: dict[tuple[str, Endpoint], int] = {}
        used = self.taken.used_targets
        for number in sorted(self.endpoints, key=lambda each: (not used[each], each)):
            owner, endpoint = self.endpoints[number]
            _put(found, self.name(owner), endpoint, number)
        return found

    def share(self, number: int) -> Share:
        return codec.unpack_share(int(self.taken.targets["flags"][number]))

    def wrong_tables(self) -> frozenset[tuple[str, Destination]]:
        """Groups in use whose table is not what follows from their members' weights and shares."""
        found = set()
        for number in self.taken.used_groups.tolist():
            group, there = self.group(number), self.taken.recipes.get(number)
            if group is None or there is None:  # lost: that is another difference
                continue
            ids = [target for target, _ in self.members.get(number, [])]
            weights = [weight for _, weight in self.members.get(number, [])]
            if there != recipe(ids, weigh(weights, [self.share(each) for each in ids])):
                found.add((self.name(group[0]), group[1]))
        return frozenset(found)

    # -- the numbers -----------------------------------------------------------------------------------------

    def allocation(self) -> Allocation:
        taken = self.taken
        present = frozenset(np.flatnonzero(taken.present_proxies).tolist())
        # One that only a retired target knows, its name being lost, is taken as well.
        owners = {owner for owner, _ in self.endpoints.values()}
        proxies = {self.name(number): number for number in {*self.names, *present, *owners}}
        used = taken.used_targets
        groups: dict[tuple[str, Destination], int] = {}
        used_groups = frozenset(taken.used_groups.tolist())
        for number in sorted({*self.members, *self.tables}, key=lambda each: (each not in used_groups, each)):
            owner, destination = self.group(number) or (0, _LOST)
            _put(groups, self.name(owner), destination, number)
        return Allocation(
            proxies=proxies,
            targets=self.numbers,
            groups=groups,
            retired_targets=frozenset(number for number in self.endpoints if not used[number]),
            retired_proxies=frozenset(proxies.values()) - present,
            sources=self.sources(used_only=False),
            shares=self.shares(used_only=False),
        )


def _put(numbers: dict[tuple[str, Any], int], proxy: str, thing: Any, number: int) -> None:
    """A second number for the same thing goes under a name that no proxy has, so that it counts as taken."""
    numbers[(proxy, thing) if (proxy, thing) not in numbers else (f"?{number}", thing)] = number


def _names(taken: Snapshot) -> dict[int, str]:
    """Proxy id -> name. Of two ids with one name the present one keeps it; an empty name is none."""
    keys, values = taken.names
    found: dict[int, str] = {}
    given: set[str] = set()
    rows = sorted(zip(keys.tolist(), values["name"].tolist(), strict=True))
    present = taken.present_proxies
    for number, raw in sorted(rows, key=lambda row: row[0] >= len(present) or not present[row[0]]):
        name = raw.decode(errors="replace")
        found[number] = name if name and name not in given else f"?{number}"
        given.add(name)
    return found


def _whole(keys: Array) -> Array:
    """Each key's bytes as one value, to be compared as a whole."""
    return np.ascontiguousarray(keys).view(np.dtype((np.void, keys.dtype.itemsize))).reshape(-1)


def _networks(keys: Any, version: int) -> list[int]:
    """Network addresses as numbers, host bits cleared: the trie ignores them."""
    lengths = keys["prefixlen"].astype(np.int64) - 32
    if version == 4:
        addresses = np.ascontiguousarray(keys["addr_be"]).view(">u4").reshape(-1).astype(np.int64)
        rest = 32 - lengths
        return np.asarray(addresses >> rest << rest).tolist()  # type: ignore[no-any-return]
    return [
        int.from_bytes(address.tobytes(), "big") >> (128 - length) << (128 - length)
        for address, length in zip(keys["addr_be"], lengths.tolist(), strict=True)
    ]
