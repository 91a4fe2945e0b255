"""One reading of all configuration maps, as arrays: what observing and recovering both start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from reconciler.kernel import groups, store
from reconciler.kernel.arrays import Array
from reconciler.kernel.busy import Busy, busy, everything
from reconciler.kernel.codec import ID_MASK, PROTOCOLS, C
from reconciler.kernel.maps import Maps
from reconciler.kernel.mirror import Mirror

Bools = npt.NDArray[np.bool_]
Entries = tuple[Array, Array]

LISTENERS: Final = {4: "listener4", 6: "listener6"}
ROUTES: Final = {4: "route4", 6: "route6"}
_PRESENT: Final = C["PROXY_PRESENT"]


@dataclass(frozen=True)
class Snapshot:
    """Keys and values of every map but the connections and counters. Arrays indexed by id hold values only; those of
    proxies and targets end with the last one that is not zero.

    An entry is *valid* if the reconciler can have written it, and *present* if it is part of the active
    configuration; everything else in a two-slot map is left from a commit that was interrupted, or from a stranger.
    """

    control: int  # control.active as it stands
    generation: int
    settings: Array
    listeners: Mapping[int, Entries]  # by IP version
    proxies: Array
    routes: Mapping[int, Entries]
    targets: Array
    recipes: Mapping[int, int]  # of the table of each group that has one
    members: Entries
    ports: Array
    devices: Entries
    names: Entries
    revision: Array
    sysctls: Entries
    blobs: Mapping[bytes, Array]
    manifest: frozenset[bytes]  # digests that the active revision needs
    busy: Callable[[], Busy]
    mirrors: Mapping[int, Mirror]  # of the routes, by IP version

    @property
    def tables(self) -> npt.NDArray[np.uint32]:
        """Ids of the groups that have a table, in rising order."""
        return np.asarray(sorted(self.recipes), np.uint32)

    @property
    def active(self) -> int:
        """The slot packets read: the programs look at the lowest bit."""
        return self.control & 1

    @cached_property
    def present_proxies(self) -> Bools:
        """By id."""
        found = self.proxies["slot"]["flags"][:, self.active] & _PRESENT != 0
        found[0] = False
        return np.asarray(found)

    def _has_proxy(self, ids: Array) -> Bools:
        return np.asarray((ids < len(self.proxies)) & self.present_proxies[np.minimum(ids, len(self.proxies) - 1)])

    def present_listeners(self, version: int) -> Bools:
        """Valid, with a proxy that is present."""
        keys, values = self.listeners[version]
        valid = np.isin(keys["protocol"], list(PROTOCOLS)) & (keys["zero"] == 0) & (keys["port_be"] != 0)
        return np.asarray(valid & self._has_proxy(values["proxy"][:, self.active]))

    def present_routes(self, version: int) -> Bools:
        """Valid, marked as present, with a proxy that is present."""
        return self._present_routes[version]

    @cached_property
    def _present_routes(self) -> Mapping[int, Bools]:
        found = {version: self._routes_of(version) for version in self.routes}
        for each in found.values():
            each.setflags(write=False)  # everybody is given the same
        return found

    def _routes_of(self, version: int) -> Bools:
        keys, values = self.routes[version]
        marked = values["slot"]["flags"][:, self.active] & C["ROUTE_PRESENT"] != 0
        return np.asarray(marked & (keys["prefixlen"] >= 32) & self._has_proxy(keys["proxy"]))

    @cached_property
    def destinations(self) -> npt.NDArray[np.uint32]:
        """Every destination word of the active configuration, each once."""
        proxies = self.proxies["slot"][self.present_proxies, self.active]
        words = [proxies["dest4"], proxies["dest6"]]
        for version, (_, values) in self.routes.items():
            words.append(values["slot"]["dest"][self.present_routes(version), self.active])
        return np.asarray(np.unique(np.concatenate(words)), np.uint32)

    @cached_property
    def used_groups(self) -> npt.NDArray[np.uint32]:
        """Ids of groups that the active configuration names."""
        return self._ids_of_kind(C["DEST_GROUP"])

    @cached_property
    def used_targets(self) -> Bools:
        """By id: a target that is named by a destination or by a group that one names."""
        used = np.zeros(len(self.targets), np.bool_)
        members = self.members[0]
        for ids in (
            self._ids_of_kind(C["DEST_TARGET"]),
            members["target"][np.isin(members["group"], self.used_groups)],
        ):
            used[ids[ids < len(used)]] = True
        used[0] = False
        return np.asarray(used & np.isin(self.targets["family"], (4, 6)))

    def _ids_of_kind(self, kind: int) -> npt.NDArray[np.uint32]:
        words = self.destinations
        return np.asarray(words[words >> C["DEST_KIND_SHIFT"] == kind] & ID_MASK)


def take(maps: Maps, *, routes_as_known: bool = False, keep_idle: bool = False) -> Snapshot:
    """Read it all. The connection tables are read when ``busy`` is first called, but not with ``keep_idle``: everything
    counts as needed then. ``routes_as_known``: the routes as this process knows them, see
    :mod:`~reconciler.kernel.mirror`."""
    cached: list[Busy] = []

    def busy_once() -> Busy:
        if not cached:
            cached.append(everything() if keep_idle else busy(maps))
        return cached[0]

    switch = maps["control"].items()[1][0]
    control = int(switch["active"])
    revision = maps["revision"].items()[1]
    manifest = store.decode_revision(revision[0]["slot"][control & 1]).manifest
    return Snapshot(
        control=control,
        generation=int(switch["generation"]),
        settings=maps["settings"].items()[1],
        listeners={version: maps[name].items() for version, name in LISTENERS.items()},
        proxies=maps["proxy"].prefix(),
        routes={
            version: maps[name].known() if routes_as_known else maps[name].items() for version, name in ROUTES.items()
        },
        targets=maps["target"].prefix(),
        recipes=groups.read_recipes(maps),
        members=maps["group_member"].items(),
        ports=maps["port"].items()[1],
        devices=maps["device"].items(),
        names=maps["proxy_name"].items(),
        revision=revision,
        sysctls=maps["sysctl"].items(),
        blobs=store.stored_digests(maps),
        manifest=_needed_blobs(maps, manifest),
        busy=busy_once,
        mirrors={version: maps.mirrors[name] for version, name in ROUTES.items()},
    )


def _needed_blobs(maps: Maps, manifest: bytes) -> frozenset[bytes]:
    """The manifest and the files it names. One that can't be read needs nothing: it is of no use to anybody."""
    if not manifest:
        return frozenset()
    try:
        files = store.read_manifest(maps, manifest).files
    except store.StoreError:
        return frozenset()
    return frozenset({manifest, *(each.digest for each in files)})
