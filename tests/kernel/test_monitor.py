"""The netlink monitor: what it tells, and that it can be ended."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from reconciler.kernel.monitor import Event, Monitor, Subject
from tests.kernel.network import add_veth, command, enter_new_namespace

pytestmark = pytest.mark.own_namespace
PATIENCE_SEC = 10.0


def wait_for(monitor: Monitor, wanted: Event) -> None:
    """Read until it comes."""
    end = time.monotonic() + PATIENCE_SEC
    while time.monotonic() < end:
        if wanted in (monitor.read(end - time.monotonic()) or ()):
            return
    pytest.fail(f"{wanted} did not come")


@pytest.mark.parametrize(
    ("change", "subject", "of_interface"),
    [
        ("ip link set va mtu 1400", Subject.LINK, True),
        ("ip addr add 192.0.2.9/24 dev va", Subject.ADDRESS, True),
        ("ip addr add 2001:db8::9/64 dev va", Subject.ADDRESS, True),
        ("ip route add 198.51.100.0/24 via 192.0.2.254", Subject.ROUTE, False),
        ("ip route add 2001:db8:9::/48 dev va", Subject.ROUTE, False),
        ("ip rule add from 10.0.0.0/8 lookup 7", Subject.ROUTE, False),
        ("ip neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 dev va", Subject.NEIGHBOUR, True),
        ("tc qdisc add dev va clsact", Subject.TC, True),
        ("sysctl --write net/ipv4/conf/va/forwarding=1", Subject.SYSCTL, False),
        ("sysctl --write net/ipv6/conf/va/forwarding=1", Subject.SYSCTL, False),
    ],
)
def test_tells(change: str, subject: Subject, of_interface: bool) -> None:
    ifindex = add_veth()
    command("ip addr add 192.0.2.1/24 dev va")
    with Monitor() as monitor:
        command(change)
        wait_for(monitor, Event(subject, ifindex if of_interface else None))


def test_of_neighbours_what_matters_to_packets() -> None:
    """Their hardware addresses, and whether they have one that may be used; not how sure the kernel is of it."""
    ifindex = add_veth()
    wanted = Event(Subject.NEIGHBOUR, ifindex)
    command("ip link set va up")
    neighbour, mac, other = "192.0.2.7 dev va", "lladdr 02:00:00:00:00:07", "lladdr 02:00:00:00:00:08"
    with Monitor() as monitor:

        def told(change: str) -> bool:
            while monitor.read(0.05):
                pass
            command(change)
            return wanted in (monitor.read(0.3) or ())

        for how, expected in (
            (f"replace {neighbour} {mac} nud reachable", True),
            (f"replace {neighbour} {mac} nud stale", False),
            (f"replace {neighbour} {mac} nud reachable", False),
            (f"replace {neighbour} {other} nud reachable", True),
            (f"replace {neighbour} {other} nud stale", False),
            (f"replace {neighbour} nud failed", True),
            (f"replace {neighbour} {other} nud permanent", True),
            (f"replace 2001:db8::7 dev va {other} nud permanent", True),
            (f"replace {neighbour} {other} nud stale", False),
            (f"del {neighbour}", True),
            (f"replace {neighbour} {other} nud stale", True),
        ):
            assert told(f"ip neigh {how}") == expected, how


def test_interface_that_comes_and_goes() -> None:
    with Monitor() as monitor:
        ifindex = add_veth()
        wait_for(monitor, Event(Subject.LINK, ifindex))
        command("ip link del va")
        wait_for(monitor, Event(Subject.LINK, ifindex))


def test_deleted_clsact_is_told() -> None:
    ifindex = add_veth()
    command("tc qdisc add dev va clsact")
    with Monitor() as monitor:
        command("tc qdisc del dev va clsact")
        wait_for(monitor, Event(Subject.TC, ifindex))


def test_all_that_waits_comes_at_once_and_each_once() -> None:
    ifindex = add_veth()
    with Monitor() as monitor:
        while monitor.read(0.05):
            pass
        for number in range(20):
            command(f"ip link set va mtu {1300 + number}")
        events = monitor.read(PATIENCE_SEC)
        assert events
        assert events.count(Event(Subject.LINK, ifindex)) == 1
        assert monitor.read(0.05) == ()


def test_reader_in_another_namespace_is_told_of_the_makers() -> None:
    with Monitor() as monitor:
        moved, told = threading.Event(), threading.Event()

        def read() -> None:
            enter_new_namespace()
            moved.set()
            while not told.is_set():
                if Subject.ADDRESS in {event.subject for event in monitor.read() or ()}:
                    told.set()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        assert moved.wait(PATIENCE_SEC)
        command("ip addr add 192.0.2.1/32 dev lo")
        assert told.wait(PATIENCE_SEC)
        reader.join()


def test_nothing_within_the_timeout() -> None:
    with Monitor() as monitor:
        while monitor.read(0.05):
            pass
        assert monitor.read(0.05) == ()


def test_lost_messages_mean_that_everything_may_have_changed() -> None:
    add_veth()
    with Monitor() as monitor:
        monitor.set_receive_buffer(4096)
        for number in range(50):
            command(f"ip link set va mtu {1300 + number}")
        events: set[Event] = set()
        while found := monitor.read(0.2):
            events |= set(found)
        assert Event(Subject.EVERYTHING) in events
        command("ip link set va mtu 1299")
        wait_for(monitor, Event(Subject.LINK, socket.if_nametoindex("va")))


def test_close_wakes_a_reader_to_whom_nothing_happens() -> None:
    with Monitor() as monitor:
        while monitor.read(0.1):
            pass
        results: list[object] = []
        reader = threading.Thread(target=lambda: results.append(monitor.read()), daemon=True)
        reader.start()
        monitor.close()
        reader.join(PATIENCE_SEC)
        assert results == [None]


def test_close_from_another_thread_ends_run() -> None:
    monitor = Monitor()
    seen: list[Event] = []
    arrived = threading.Event()

    def changed(events: tuple[Event, ...]) -> None:
        seen.extend(events)
        arrived.set()

    reader = threading.Thread(target=monitor.run, args=(changed,))
    reader.start()
    add_veth()
    assert arrived.wait(PATIENCE_SEC)
    monitor.close()
    reader.join(PATIENCE_SEC)
    assert not reader.is_alive()
    assert Subject.LINK in {event.subject for event in seen}
    monitor.close()
    assert monitor.fileno() == -1
