"""The map writes of a commit before its switch, and the levelling of the slots after it.

Neighbouring operations of one type are one run, written together. Values in two slots: the standby slot is written;
the active one stays as it is, or is made "as if absent" in an entry that is new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import codec, groups, layout, store
from reconciler.kernel.arrays import Array
from reconciler.kernel.maps import Maps
from reconciler.kernel.writes import Journal, erase, write
from reconciler.state.operations import (
    OpenPort,
    Operation,
    PutBlob,
    PutDevice,
    PutGroup,
    PutProxyName,
    PutTarget,
    SetShare,
    SetSource,
    StageListener,
    StageProxy,
    StageRevision,
    StageRoute,
    StageSettings,
    SwapTable,
    Switch,
)

Run = Sequence[Any]  # operations of the one type that the handler is for


@dataclass(frozen=True)
class _Level:
    """What entries are after the commit: ``values`` with both slots equal, or gone."""

    map: str
    keys: Array
    values: Array
    gone: Array


class Stage:
    """Writes one commit's values, noting them in ``journal``. Without a ``switch`` no slots can be staged."""

    def __init__(self, maps: Maps, journal: Journal, switch: Switch | None, packer: store.Packer | None = None) -> None:
        self.maps, self.journal, self.switch, self.packer = maps, journal, switch, packer
        self._levels: list[_Level] = []

    def run(self, kind: type[Operation], operations: Sequence[Operation]) -> None:
        """Write a run of operations of type ``kind``. Raises :class:`KernelError`."""
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise KernelError("stage", kind.__name__, detail="not an operation that comes before the switch")
        handler(self, operations)

    def level(self) -> None:
        """After the switch, and once no packet reads the old slot: bring it level, delete what is gone."""
        for each in self._levels:
            target = self.maps[each.map]
            write(target, each.keys[~each.gone], each.values[~each.gone])
            erase(target, each.keys[each.gone])

    # -- values that are not in slots ------------------------------------------------------------------------

    def _names(self, operations: Run) -> None:
        values = np.zeros(len(operations), layout.proxy_name)
        values["name"] = [codec.pack_text(each.name, layout.proxy_name["name"]) for each in operations]
        self._put("proxy_name", [each.id for each in operations], values)

    def _targets(self, operations: Run) -> None:
        values = np.zeros(len(operations), layout.target)
        for index, each in enumerate(operations):
            values[index : index + 1] = codec.pack_target(each.endpoint, each.proxy_id, each.source, each.share)
        self._put("target", [each.id for each in operations], values)

    def _sources(self, operations: Run) -> None:
        keys = np.asarray([each.id for each in operations], layout.u32)
        _, values = self.maps["target"].get_many(keys)
        for each in codec.change_sources(values, [each.after for each in operations]):
            self._put("target", keys, each)

    def _shares(self, operations: Run) -> None:
        keys = np.asarray([each.id for each in operations], layout.u32)
        _, values = self.maps["target"].get_many(keys)
        values["flags"] = [codec.pack_share(each.after) for each in operations]
        self._put("target", keys, values)

    def _groups(self, operations: Run) -> None:
        """Members first: as long as they are there, a group is known."""
        members = [(each.id, target, weight) for each in operations for target, weight in each.members]
        keys = np.zeros(len(members), layout.group_member_key)
        keys["group"], keys["target"] = [group for group, _, _ in members], [target for _, target, _ in members]
        self._put("group_member", keys, np.asarray([weight for _, _, weight in members], layout.u32))
        self._tables(operations)

    def _tables(self, operations: Run) -> None:
        made = [groups.make(each) for each in operations]
        self.journal.put_groups(
            self.maps, [each.id for each in operations], [table for table, _ in made], [recipe for _, recipe in made]
        )

    def _ports(self, operations: Run) -> None:
        """Bits are only ever added here, whatever the plan thought stood there."""
        keys = np.asarray([each.port for each in operations], layout.u32)
        _, there = self.maps["port"].get_many(keys)
        self._put("port", keys, there | np.asarray([each.after for each in operations], layout.u8))

    def _devices(self, operations: Run) -> None:
        for each in operations:
            if each.after is None:
                self.journal.erase(self.maps["device"], np.asarray([each.ifindex], layout.u32))
            else:
                self._put("device", [each.ifindex], np.asarray([each.after], layout.u32))

    def _blobs(self, operations: Run) -> None:
        encoded = [store.encode_blob(each.digest, each.content, self.packer) for each in operations]
        stored = store.stored_digests(self.maps)
        for keys, _ in encoded:  # of one that was damaged there may be chunks that it does not have
            there = stored.get(keys[0]["digest"].tobytes(), keys[:0])
            surplus = there[there["chunk"] >= len(keys)]
            if len(surplus):
                self.journal.erase(self.maps["blob"], surplus)
        self._put("blob", np.concatenate([k for k, _ in encoded]), np.concatenate([v for _, v in encoded]))

    def _put(self, name: str, keys: Any, values: Array) -> None:
        self.journal.put(self.maps[name], self.maps[name].keys_array(keys), values)

    # -- values in slots -------------------------------------------------------------------------------------

    def _settings(self, operations: Run) -> None:
        before, after = (codec.pack_settings(each) for each in (operations[-1].before, operations[-1].after))
        self._slots("settings", np.zeros(1, layout.u32), before, after)

    def _revision(self, operations: Run) -> None:
        before, after = (store.encode_revision(each) for each in (operations[-1].before, operations[-1].after))
        self._slots("revision", np.zeros(1, layout.u32), before, after)

    def _proxies(self, operations: Run) -> None:
        keys = np.asarray([each.id for each in operations], layout.u32)
        before, after = (codec.pack_proxies([getattr(each, side) for each in operations]) for side in _SIDES)
        self._slots("proxy", keys, before, after)

    def _listeners(self, operations: Run) -> None:
        for version in (4, 6):
            chosen = [each for each in operations if each.key.ip.version == version]
            if chosen:
                keys = codec.pack_listener_keys([each.key for each in chosen], version)
                before, after = (np.asarray([getattr(each, side) for each in chosen], layout.u32) for side in _SIDES)
                self._slots(f"listener{version}", keys, before, after, gone=after == 0)

    def _routes(self, operations: Run) -> None:
        for version in (4, 6):
            chosen = [each for each in operations if each.source.version == version]
            if chosen:
                keys = codec.pack_route_keys([(each.proxy_id, each.source) for each in chosen], version)
                before, after = (codec.pack_routes([getattr(each, side) for each in chosen]) for side in _SIDES)
                there = np.asarray([each.before.present for each in chosen])
                gone = np.asarray([not each.after.present for each in chosen])
                self._slots(f"route{version}", keys, before, after, gone, there)

    def _slots(
        self,
        name: str,
        keys: Array,
        before: Array,
        after: Array,
        gone: Array | None = None,
        there: Array | None = None,
    ) -> None:
        """Write ``after`` into the standby slot; where there is no entry yet, ``before`` into the active one.

        ``gone``: which entries are to be deleted after the switch. ``there``: which exist now, for a trie: a look-up
        in it can't tell, and between commits no entry is in it that is not present.
        """
        if self.switch is None:
            raise KernelError("stage", f"map {name}", detail="the plan has no switch")
        target = self.maps[name]
        slots = cast(tuple[str, ...], target.spec.value.names)[0]
        found, values = target.get_many(keys)
        found = found if there is None else there
        values[slots][~found, self.switch.before] = before[~found]
        values[slots][:, self.switch.after] = after
        self.journal.put(target, keys, values, found)
        level = values.copy()
        level[slots][:, self.switch.before] = after
        self._levels.append(_Level(name, keys, level, np.zeros(len(keys), np.bool_) if gone is None else gone))


_SIDES: Final = ("before", "after")
_HANDLERS: Final[dict[type[Operation], Callable[[Stage, Run], None]]] = {
    PutProxyName: Stage._names,
    PutTarget: Stage._targets,
    SetSource: Stage._sources,
    SetShare: Stage._shares,
    PutGroup: Stage._groups,
    SwapTable: Stage._tables,
    OpenPort: Stage._ports,
    PutDevice: Stage._devices,
    PutBlob: Stage._blobs,
    StageSettings: Stage._settings,
    StageRevision: Stage._revision,
    StageProxy: Stage._proxies,
    StageListener: Stage._listeners,
    StageRoute: Stage._routes,
}
