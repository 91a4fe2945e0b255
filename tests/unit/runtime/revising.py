"""What tests of revisions start from: another process's engine, files and losses, with a kernel that is a value."""

from __future__ import annotations

from dataclasses import replace

from reconciler.engine import Engine
from reconciler.places import Places
from tests.unit.runtime.fakelive import TEXT, FakeLive

MANUAL = "settings: {sync: manual}\n"
FILES = frozenset({"files"})


def again(places: Places, live: FakeLive) -> Engine:
    """The engine of another process."""
    return Engine(places, live=live)  # type: ignore[arg-type]


def port(live: FakeLive) -> int:
    """The port of the one target that is live."""
    (proxy,) = live.state.state.proxies.values()
    assert proxy.default4 is not None
    return proxy.default4.members[0][0].port


def manual(places: Places, number: int) -> None:
    (places.config_dir / "a.yaml").write_text(TEXT.format(port=number) + MANUAL)


def lose_listeners(live: FakeLive) -> None:
    """As somebody with bpftool would."""
    live.state = replace(live.state, state=replace(live.state.state, listeners={}))
