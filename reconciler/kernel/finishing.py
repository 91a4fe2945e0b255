"""What comes after the switch, and housekeeping: giving back what nothing uses any more. Each step may be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, Final

import numpy as np

from reconciler.errors import KernelError
from reconciler.kernel import groups, layout, store
from reconciler.kernel.busy import Busy, busy
from reconciler.kernel.codec import change_sources, pack_share, pack_sysctl_key
from reconciler.kernel.context import Context
from reconciler.kernel.counters import retire_proxies, retire_targets
from reconciler.kernel.writes import erase, write
from reconciler.state.operations import (
    ClosePort,
    Detach,
    FreeBlob,
    FreeGroup,
    FreeProxyName,
    FreeTarget,
    Operation,
    PutDevice,
    RestoreSysctl,
    SetShare,
    SetSource,
    SwapTable,
)

Run = Sequence[Any]  # operations of the one type that the handler is for


def carry_out(operations: Iterable[Operation], context: Context) -> None:
    """Carry out a plan's ``finish`` or what ``housekeeping`` found. Raises :class:`KernelError` at the first that
    fails; the rest can be done later.

    Whether connections use a target, proxy or port is looked at again here, once: they may have come up since the
    plan. What they use stays.
    """
    finishing = _Finish(context)
    for kind, run in groupby(operations, key=type):
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise KernelError("finish", kind.__name__, detail="not an operation that comes after the switch")
        handler(finishing, list(run))


class _Finish:
    def __init__(self, context: Context) -> None:
        self.context, self.maps = context, context.maps
        self._busy: Busy | None = None

    @property
    def busy(self) -> Busy:
        if self._busy is None:
            self._busy = busy(self.maps)
        return self._busy

    def detach(self, operations: Run) -> None:
        """One that a connection has come to need stays, with the programs that are in force now."""
        busy = self.context.host.busy_interfaces() if operations else frozenset()
        for each in operations:
            change = self.context.host.attach if each.before.ifindex in busy else self.context.host.detach
            change(each.before)

    def restore_sysctls(self, operations: Run) -> None:
        for each in operations:
            if each.before != each.after:
                self.context.host.write_sysctl(each.name, each.after)
            self.maps["sysctl"].delete(pack_sysctl_key(each.name))

    def devices(self, operations: Run) -> None:
        for each in operations:
            key = np.asarray([each.ifindex], layout.u32)
            if each.after is None:
                erase(self.maps["device"], key)
            else:
                write(self.maps["device"], key, np.asarray([each.after], layout.u32))

    def sources(self, operations: Run) -> None:
        keys = np.asarray([each.id for each in operations], layout.u32)
        _, values = self.maps["target"].get_many(keys)
        for each in change_sources(values, [each.after for each in operations]):
            write(self.maps["target"], keys, each)

    def shares(self, operations: Run) -> None:
        keys = np.asarray([each.id for each in operations], layout.u32)
        _, values = self.maps["target"].get_many(keys)
        values["flags"] = [pack_share(each.after) for each in operations]
        write(self.maps["target"], keys, values)

    def tables(self, operations: Run) -> None:
        made = [groups.make(each) for each in operations]
        groups.put_groups(
            self.maps, [each.id for each in operations], [table for table, _ in made], [recipe for _, recipe in made]
        )

    def groups(self, operations: Run) -> None:
        groups.free_groups(self.maps, [each.id for each in operations])
        pairs = [(each.id, target) for each in operations for target in each.members]
        keys = np.zeros(len(pairs), layout.group_member_key)
        keys["group"], keys["target"] = [group for group, _ in pairs], [target for _, target in pairs]
        erase(self.maps["group_member"], keys)

    def targets(self, operations: Run) -> None:
        idle = [each.id for each in operations if each.id not in self.busy.targets]
        keys = np.asarray(idle, layout.u32)
        retire_targets(self.maps, keys)
        erase(self.maps["target_stats"], keys)  # the next target of that id counts from zero
        erase(self.maps["target"], keys)

    def names(self, operations: Run) -> None:
        _, targets = self.maps["target"].items()
        needed = self.busy.proxies.union(targets["proxy"][targets["family"] != 0].tolist())
        keys = np.asarray([each.id for each in operations if each.id not in needed], layout.u32)
        retire_proxies(self.maps, keys)
        erase(self.maps["proxy_name"], keys)

    def ports(self, operations: Run) -> None:
        keys = np.asarray([each.port for each in operations], layout.u32)
        _, there = self.maps["port"].get_many(keys)
        needed = [each.after | self.busy.ports.get(each.port, 0) for each in operations]
        write(self.maps["port"], keys, there & np.asarray(needed, layout.u8))

    def blobs(self, operations: Run) -> None:
        for each in operations:
            found, first = self.maps["blob"].get_many(store.blob_keys(each.digest, 1))
            if found[0]:
                erase(self.maps["blob"], store.blob_keys(each.digest, int(first[0]["chunks"])))


_HANDLERS: Final[dict[type[Operation], Callable[[_Finish, Run], None]]] = {
    Detach: _Finish.detach,
    RestoreSysctl: _Finish.restore_sysctls,
    PutDevice: _Finish.devices,
    SetSource: _Finish.sources,
    SetShare: _Finish.shares,
    SwapTable: _Finish.tables,
    FreeGroup: _Finish.groups,
    FreeTarget: _Finish.targets,
    FreeProxyName: _Finish.names,
    ClosePort: _Finish.ports,
    FreeBlob: _Finish.blobs,
}
