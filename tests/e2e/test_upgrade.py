"""Another version takes over in place, with other programs or other maps, and the one before takes over again: what is
open goes on, and what was counted stays."""

from __future__ import annotations

import shutil
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from netlab import HTTP_PORT, TCP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import connect
from reconciler.answers import Status, Sync
from reconciler.api.client import DaemonClient, NoDaemonError
from tests.e2e.instance import Instance
from tests.e2e.watching import Requests, attached

ROOT = Path(__file__).resolve().parents[2]

OTHER_PROGRAMS = {"bpf/revproxy.c": [("", "/* Another version. */\n")]}
OTHER_MAPS = {
    # A field in the middle of each connection, and more proxies.
    "bpf/types.h": [
        ("\tu64 packets;\n\tu64 bytes;\n", "\tu64 another;\n\tu64 packets;\n\tu64 bytes;\n"),
    ],
    "reconciler/kernel/layout.py": [
        (
            '("last_ns", u64),\n        ("packets", u64),\n',
            '("last_ns", u64),\n        ("another", u64),\n        ("packets", u64),\n',
        ),
        ("MAX_PROXIES: Final = 16384", "MAX_PROXIES: Final = 16384 + 64"),
    ],
}


def version(directory: Path, changes: dict[str, list[tuple[str, str]]]) -> Path:
    """A copy of the checkout, with these changes to its files."""
    for part in ("reconciler", "bpf", "schema"):
        shutil.copytree(ROOT / part, directory / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, edits in changes.items():
        text = (directory / name).read_text()
        for before, after in edits:
            assert before in text, f"{name} has no {before!r} any more"
            text = text.replace(before, after, 1) if before else after + text
        (directory / name).write_text(text)
    return directory


def config(lab: Lab, *, later: bool = False) -> str:
    """``later``: what is open then is with targets that are in no file any more."""
    one, two, three = lab.backends
    chosen = (three,) if later else (one, two)
    echo = ", ".join(f'{{ip: "{ip}", port: {TCP_PORT}}}' for each in chosen for ip in (each.ip4, each.ip6))
    dns = ", ".join(f"{{ip: {each.ip4}, port: {UDP_PORT}}}" for each in chosen)
    return f"""\
apiVersion: revproxy/v1
settings: {{xdp_mode: native}}
proxies:
  - name: web
    listen: {{interfaces: [eth0], port: 80}}
    default_target: [{{ip: {one.ip4}, port: {HTTP_PORT}}}, {{ip: {two.ip4}, port: {HTTP_PORT}}}]
  - name: echo
    listen: {{interfaces: [eth0], port: 7}}
    balance: random
    default_target: [{echo}]
  - name: dns
    listen: {{interfaces: [eth0], port: 53, protocol: udp}}
    mode: fullnat
    balance: random
    default_target: [{dns}]
"""


class Held:
    """Connections of every kind; each has to go on, and by the same target."""

    def __init__(self, lab: Lab, ending: ExitStack) -> None:
        listens = [(lab.proxy4, 7)] * 4 + [(lab.proxy6, 7)] * 3
        self.streams = [ending.enter_context(connect(lab.client, listen, timeout_sec=8)) for listen in listens]
        self.datagrams = [
            ending.enter_context(connect(lab.client, (lab.proxy4, 53), kind=socket.SOCK_DGRAM, timeout_sec=8))
            for _ in range(4)
        ]

    def go_on(self) -> list[bytes]:
        """Something in each, there and back; which backends the datagrams came from."""
        for stream in self.streams:
            stream.sendall(b"still here")
            heard = b""
            while len(heard) < 10:
                part = stream.recv(100)
                assert part, "a stream has ended"
                heard += part
            assert heard == b"still here"
        answers = []
        for each in self.datagrams:
            each.send(b"?")
            answers.append(each.recv(200).split()[0])
        return answers


@pytest.fixture
def versions(tmp_path: Path) -> dict[str, Path]:
    return {
        "this": ROOT,
        "other programs": version(tmp_path / "programs", OTHER_PROGRAMS),
        "other maps": version(tmp_path / "maps", OTHER_MAPS),
    }


def status(instance: Instance) -> Status:
    return DaemonClient(instance.run_dir / "revproxyd.sock").status()


def start(instance: Instance, version: Path) -> None:
    instance.env["PYTHONPATH"] = str(version)
    instance.run_dir.joinpath("revproxyd.sock").unlink(missing_ok=True)  # of one that was killed
    instance.start_daemon(ready=False)

    def synced() -> bool:
        with suppress(NoDaemonError):  # its socket is there a moment before it listens
            return status(instance).sync is Sync.SYNCED
        return False

    wait_for(synced, "Synced", timeout_sec=60)


def counted(instance: Instance) -> dict[str, int]:
    stats = DaemonClient(instance.run_dir / "revproxyd.sock").stats()
    return {name: stats.proxies[name].packets_forward for name in ("web", "echo", "dns")}


def test_versions_take_over_from_each_other(lab: Lab, instance: Instance, versions: dict[str, Path]) -> None:
    instance.write(config(lab))
    start(instance, versions["this"])
    with ExitStack() as ending:
        held = Held(lab, ending)
        by = held.go_on()
        instance.write(config(lab, later=True))
        wait_for(lambda: status(instance).revision == 2 and status(instance).sync is Sync.SYNCED, "applied")
        first = status(instance)
        layout = [path.name for path in instance.bpffs_dir.iterdir()]
        with Requests(lab, pause_sec=0.05):
            for name, number in (
                ("other programs", signal.SIGTERM),
                ("this", signal.SIGKILL),
                ("other maps", signal.SIGTERM),
                ("this", signal.SIGKILL),
            ):
                before = counted(instance)
                instance.stop_daemon(number)
                start(instance, versions[name])
                assert held.go_on() == by, f"to {name}: by other targets"
                found = status(instance)
                assert found.revision == first.revision, "no new revision"
                assert found.drift_repaired == 0, "nobody else has changed anything"
                assert found.interfaces == first.interfaces
                after = counted(instance)
                assert all(after[each] > before[each] for each in ("echo", "dns")), (name, before, after)
                assert len(list(instance.bpffs_dir.iterdir())) == 1, "what was there before is gone"
                connections = DaemonClient(instance.run_dir / "revproxyd.sock").connection_count(proxy="echo")
                assert connections == len(held.streams)
        assert [path.name for path in instance.bpffs_dir.iterdir()] == layout
    assert lab.checksum_errors() == {}


def test_maps_that_nobody_can_read_are_left_alone(lab: Lab, instance: Instance, versions: dict[str, Path]) -> None:
    """Without the description of their layout, as by a version that was older still."""
    instance.write(config(lab))
    instance.env["PYTHONPATH"] = str(versions["other maps"])
    instance.ctl("apply", "--yes")
    (other,) = instance.bpffs_dir.iterdir()
    (other / "layout").unlink()
    with ExitStack() as ending, Requests(lab):
        held = Held(lab, ending)
        by, programs = held.go_on(), attached(lab)
        pins = sorted(instance.bpffs_dir.rglob("*"))
        instance.env["PYTHONPATH"] = str(versions["this"])
        refused = instance.run("apply", "--yes")
        assert refused.returncode == 1
        assert f"{other}: another version's maps, of which it is not known how they are laid out" in refused.stderr
        assert sorted(instance.bpffs_dir.rglob("*")) == pins
        assert attached(lab) == programs
        assert held.go_on() == by
