"""All maps of one instance, as pinned. Every write goes through the :class:`Gateway`; reads do not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.errors import KernelError
from reconciler.kernel import bpf, layout, layoutpin
from reconciler.kernel.bpfmap import CHUNK, UNSUPPORTED, Map
from reconciler.kernel.contable import ConnectionTable
from reconciler.kernel.gateway import Gateway
from reconciler.kernel.layout import MapSpec, MapType
from reconciler.kernel.mirror import Mirror
from reconciler.kernel.newmaps import check, create_map

__all__ = ["CHUNK", "UNSUPPORTED", "InterruptedReading", "Map", "Maps", "map_of", "opened"]


class InterruptedReading(Exception):  # no error: somebody else's turn has come
    """What was being read is not to be had now."""


def map_of(spec: MapSpec, fd: int, gateway: Gateway, mirror: Mirror | None = None) -> Map:
    """The map with this descriptor, as what it is."""
    if spec.per_connection:
        return ConnectionTable(spec, fd, gateway)
    return Map(spec, fd, gateway, mirror)


class Maps:
    """All maps of one instance: made, opened, checked and removed as a set.

    They are pinned at ``<bpffs_dir>/<layout fingerprint>/maps/<name>``. A set of which one is missing counts as none:
    its making was interrupted, or programs that hold the lost one can't be told anything any more.
    """

    def __init__(self, bpffs_dir: Path, gateway: Gateway | None = None) -> None:
        self.root = bpffs_dir / layout.fingerprint()
        self.directory = self.root / "maps"
        self.gateway = gateway or Gateway()
        self._maps: dict[str, Map] = {}
        self.wanted: Callable[[], bool] | None = None
        """Whether somebody waits who should not wait until very many connections are read."""
        self.mirrors = {spec.name: Mirror() for spec in layout.MAPS.values() if spec.type is MapType.LPM_TRIE}

    def __getitem__(self, name: str) -> Map:
        if not self._maps:
            raise KernelError("open", f"map {name}", errno.ENOENT, "the maps are not open")
        return self._maps[name]

    @property
    def exists(self) -> bool:
        """A whole set is pinned."""
        return all((self.directory / name).exists() for name in layout.MAPS)

    @property
    def is_open(self) -> bool:
        """The maps can be read and written."""
        return bool(self._maps)

    def let_others(self) -> None:
        """Between two pieces of a large table. Raises :class:`InterruptedReading` if somebody waits."""
        if self.wanted is not None and self.wanted():
            raise InterruptedReading

    @property
    def max_connections(self) -> int:
        """What the connection tables were made for."""
        return self.connections(4).max_entries // 2

    def connections(self, version: int) -> ConnectionTable:
        """One family's connection table."""
        table = self[f"connection{version}"]
        assert isinstance(table, ConnectionTable)
        return table

    def open(self) -> None:
        """Open a whole set. Raises :class:`KernelError`: ENOENT if there is none, EINVAL if a pinned map is not
        what the layout says."""
        self.close()
        opened: dict[str, Map] = {}
        try:
            for spec in layout.MAPS.values():
                opened[spec.name] = self._open_one(spec)
        except KernelError:
            for each in opened.values():
                each.close()
            raise
        self._maps = opened

    def create(self, max_connections: int) -> None:
        """Make a whole set and open it. What an interrupted making left is removed first; a whole set is an error
        (EEXIST). Killed anywhere, it can be called again."""
        if self.exists:
            raise KernelError("create", str(self.directory), errno.EEXIST)
        self.remove()
        self.gateway.call(
            "make directory", str(self.directory), lambda: self.directory.mkdir(parents=True, exist_ok=True)
        )
        layoutpin.pin(self.root, self.gateway)
        for spec in layout.MAPS.values():
            fd = create_map(spec, max_connections)
            try:
                path = str(self.directory / spec.name)
                self.gateway.call("pin", f"map {spec.name}", lambda fd=fd, path=path: bpf.obj_pin(fd, path))  # type: ignore[misc]
            finally:
                os.close(fd)
        self.open()

    def remove(self) -> None:
        """Unpin the maps and remove their directory. The kernel frees them once no program and
        no descriptor is left. Nothing pinned is fine."""
        self.close()
        if self.directory.is_dir():
            for path in sorted(self.directory.iterdir()):
                self.gateway.call("unpin", f"map {path.name}", lambda path=path: path.unlink(missing_ok=True))  # type: ignore[misc]
        layoutpin.unpin(self.root, self.gateway)
        for directory in (self.directory, self.root):
            if directory.is_dir() and not any(directory.iterdir()):
                self.gateway.call("remove directory", str(directory), directory.rmdir)

    def close(self) -> None:
        """Close all descriptors."""
        for each in self._maps.values():
            each.close()
        self._maps = {}

    def _open_one(self, spec: MapSpec) -> Map:
        fd = bpf.obj_get(str(self.directory / spec.name))
        try:
            check(spec, bpf.map_info(fd))
        except KernelError:
            os.close(fd)
            raise
        return map_of(spec, fd, self.gateway, self.mirrors.get(spec.name))


@contextmanager
def opened(bpffs_dir: Path) -> Iterator[Maps | None]:
    """The maps of the instance that is pinned there; None where nothing is loaded. Raises :class:`KernelError`."""
    found = Maps(bpffs_dir)
    try:
        found.open()
    except KernelError as error:
        if error.errno != errno.ENOENT:
            raise
        yield None
        return
    try:
        yield found
    finally:
        found.close()
