"""TC filters: ours beside other people's, exchanged without a gap, clsact left to those who use it."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
from bcc import lib
from pyroute2 import IPRoute, IPRSocket
from pyroute2.netlink import rtnl

from reconciler.errors import ForeignProgramError, KernelError
from reconciler.kernel import tc
from reconciler.kernel.identity import TCX_INGRESS, OwnPrograms
from reconciler.kernel.tc import Direction, TcStatus
from tests.kernel.network import GATEWAY, TC_SHOT, add_veth, command, load_tc, own_programs, recorder

pytestmark = pytest.mark.own_namespace
CLASSIFY_ALL = "protocol all u32 match u32 0 0 flowid 1:1"


def query() -> TcStatus:
    return tc.query(socket.if_nametoindex("va"), "va")


def attach(own: OwnPrograms) -> list[tuple[str, str]]:
    """Both directions. Returns the calls that changed the kernel."""
    gateway = recorder()
    assert own.tc_ingress
    assert own.tc_egress
    tc.attach(query(), Direction.INGRESS, own.tc_ingress, own, gateway)
    tc.attach(query(), Direction.EGRESS, own.tc_egress, own, gateway)
    return gateway.calls


def attached(own: OwnPrograms) -> list[tuple[str, int] | None]:
    """Name and id of the program of ours in each direction."""
    found = query()
    filters = (found.own(direction, own) for direction in Direction)
    return [(each.program.name, each.program.id) if each and each.program else None for each in filters]


def ids(own: OwnPrograms) -> list[tuple[str, int] | None]:
    assert own.tc_ingress
    assert own.tc_egress
    return [("tc_ingress", own.tc_ingress.info.id), ("tc_egress", own.tc_egress.info.id)]


def test_attach_makes_clsact_and_detach_removes_it() -> None:
    add_veth()
    own = own_programs()
    assert attach(own) == [("attach tc ingress", "va"), ("attach tc egress", "va")]
    assert attached(own) == ids(own)
    found = query()
    assert found.qdisc == "clsact"
    assert all(each.direct_action and each.priority == tc.PRIORITY for each in found.filters)
    assert attach(own) == []
    tc.detach(query(), own, GATEWAY)
    assert "clsact" not in command("tc qdisc show dev va")


def test_clsact_is_sent_together_with_the_filter_that_tells_whose_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed between the two would leave a clsact that nobody knows."""
    add_veth()
    own = own_programs()
    sent: list[bytes] = []
    for name in ("send", "sendto"):
        monkeypatch.setattr(socket.socket, name, _recording(getattr(socket.socket, name), sent))
    attach(own)
    (with_clsact,) = [data for data in sent if struct.pack("=HH", 11, 1) + b"clsact\0" in data]  # TCA_KIND
    assert f"revproxy:{own.instance},clsact".encode() in with_clsact


def _recording(send: Callable[..., int], sent: list[bytes]) -> Callable[..., int]:
    def record(self: socket.socket, data: bytes, *arguments: object) -> int:
        if self.family == socket.AF_NETLINK:
            sent.append(bytes(data))
        return send(self, data, *arguments)

    return record


def test_clsact_that_was_there_stays() -> None:
    add_veth()
    own = own_programs()
    command("tc qdisc add dev va clsact")
    attach(own)
    assert attached(own) == ids(own)
    tc.detach(query(), own, GATEWAY)
    assert query() == TcStatus(query().ifindex, "va", "clsact")


def test_clsact_stays_for_a_filter_that_came_later() -> None:
    add_veth()
    own = own_programs()
    attach(own)
    command(f"tc filter add dev va egress pref 10 {CLASSIFY_ALL}")
    tc.detach(query(), own, GATEWAY)
    found = query()
    assert found.qdisc == "clsact"
    assert {(each.kind, each.priority) for each in found.filters} == {("u32", 10)}


def test_made_clsact_is_remembered_when_one_filter_is_lost() -> None:
    add_veth()
    own = own_programs()
    attach(own)
    command(f"tc filter del dev va ingress pref {tc.PRIORITY}")
    assert attached(own)[0] is None
    assert attach(own) == [("attach tc ingress", "va")]
    command(f"tc filter del dev va egress pref {tc.PRIORITY}")
    tc.detach(query(), own, GATEWAY)
    assert "clsact" not in command("tc qdisc show dev va")


def test_refused_first_filter_leaves_no_clsact() -> None:
    add_veth()
    own = own_programs()
    assert own.xdp
    with pytest.raises(KernelError, match="attach tc ingress va: EINVAL"):
        tc.attach(query(), Direction.INGRESS, own.xdp, own, GATEWAY)  # not a program for TC
    assert query().qdisc == ""


def test_clsact_that_came_after_the_look_is_not_claimed() -> None:
    add_veth()
    own = own_programs()
    assert own.tc_ingress
    before = query()
    command("tc qdisc add dev va clsact")
    with pytest.raises(KernelError, match="EEXIST"):
        tc.attach(before, Direction.INGRESS, own.tc_ingress, own, GATEWAY)
    assert query() == TcStatus(before.ifindex, "va", "clsact")
    attach(own)
    tc.detach(query(), own, GATEWAY)
    assert query().qdisc == "clsact"


def test_foreign_filters_stay_untouched() -> None:
    add_veth()
    own = own_programs()
    command("tc qdisc add dev va clsact")
    command(f"tc filter add dev va ingress pref 10 {CLASSIFY_ALL}")
    command(f"tc filter add dev va ingress pref 60000 {CLASSIFY_ALL}")
    before = query().filters
    attach(own)
    found = query()
    ingress = [each.priority for each in found.filters if each.direction is Direction.INGRESS]
    assert sorted(set(ingress)) == [10, tc.PRIORITY, 60000]
    assert {each.priority for each in found.ahead(Direction.INGRESS, own)} == {10}
    assert found.ahead(Direction.EGRESS, own) == ()
    tc.detach(query(), own, GATEWAY)
    assert query().filters == before


def test_tcx_program_ahead_is_named() -> None:
    ifindex, own, foreign = add_veth(), own_programs(), load_tc("somebody")
    attach(own)
    link = lib.bpf_link_create(foreign.fd, ifindex, TCX_INGRESS, None)
    if link < 0:
        pytest.skip("no tcx before Linux 6.6")
    (ahead,) = query().ahead(Direction.INGRESS, own)
    assert (ahead.kind, ahead.program) == ("tcx", foreign.info)
    assert "somebody" in str(ahead)
    tc.detach(query(), own, GATEWAY)
    assert query().qdisc == ""


def test_ingress_qdisc_is_left_alone_and_named() -> None:
    add_veth()
    own = own_programs()
    command("tc qdisc add dev va ingress")
    with pytest.raises(ForeignProgramError, match="tc qdisc del dev va ingress"):
        attach(own)
    assert query() == TcStatus(query().ifindex, "va", "ingress")


def test_shared_block_is_left_alone_and_named() -> None:
    add_veth()
    own = own_programs()
    command("tc qdisc add dev va ingress_block 22 clsact")
    with pytest.raises(ForeignProgramError, match="shared"):
        attach(own)
    assert query().shared


def test_another_instance_on_the_same_interface_is_named() -> None:
    add_veth()
    own, other = own_programs("/sys/fs/bpf/one"), own_programs("/sys/fs/bpf/two")
    attach(other)
    with pytest.raises(ForeignProgramError, match=r"another revproxy \(/sys/fs/bpf/two\)"):
        attach(own)
    tc.detach(query(), own, GATEWAY)
    assert attached(other) == ids(other)
    assert attached(own) == [None, None]


def test_filter_of_another_kind_at_our_preference_is_named() -> None:
    add_veth()
    own = own_programs()
    command("tc qdisc add dev va clsact")
    command(f"tc filter add dev va ingress pref {tc.PRIORITY} {CLASSIFY_ALL}")
    with pytest.raises(ForeignProgramError, match="ingress u32 filter"):
        attach(own)


def test_our_program_at_another_preference_is_not_our_filter() -> None:
    ifindex, own = add_veth(), own_programs()
    assert own.tc_ingress
    command("tc qdisc add dev va clsact")
    with IPRoute() as iproute:
        program = {"fd": own.tc_ingress.fd, "name": "revproxy:" + own.instance, "direct_action": True}
        iproute.tc("add-filter", "bpf", ifindex, 1, parent=Direction.INGRESS.value, prio=5, **program)
    attach(own)
    assert [each.priority for each in query().ahead(Direction.INGRESS, own)] == [5]
    tc.detach(query(), own, GATEWAY)
    assert [each.priority for each in query().filters] == [5]


def test_two_instances_on_different_interfaces() -> None:
    first, second = add_veth(), add_veth("vc", "vd")
    one, two = own_programs("/sys/fs/bpf/one"), own_programs("/sys/fs/bpf/two")
    for ifindex, name, own in ((first, "va", one), (second, "vc", two)):
        assert own.tc_ingress
        tc.attach(tc.query(ifindex, name), Direction.INGRESS, own.tc_ingress, own, GATEWAY)
    tc.detach(query(), one, GATEWAY)
    assert tc.query(first, "va").filters == ()
    assert tc.query(second, "vc").own(Direction.INGRESS, two)


def test_ours_is_known_by_name_when_its_programs_are_not() -> None:
    add_veth()
    attach(own_programs("/sys/fs/bpf/one"))
    lost = OwnPrograms("/sys/fs/bpf/one")
    assert query().own(Direction.EGRESS, lost)
    tc.detach(query(), lost, GATEWAY)
    assert query().qdisc == ""


def test_ours_is_known_by_whichever_way_its_pins_are_reached() -> None:
    """``ip netns exec`` shows them below another process's root."""
    add_veth()
    attach(own_programs("/proc/4711/root/sys/fs/bpf/one"))
    for own in (OwnPrograms("/sys/fs/bpf/two"), OwnPrograms("")):
        assert query().own(Direction.EGRESS, own) is None
    theirs = replace(query().filters[0], name="theirs", program=None)
    assert theirs.in_our_place
    assert not theirs.owned_by(OwnPrograms("")), "who has no name owns nothing by name"
    tc.detach(query(), OwnPrograms("/sys/fs/bpf/one"), GATEWAY)
    assert query().qdisc == ""


def test_exchange_removes_nothing() -> None:
    add_veth()
    old = own_programs()
    attach(old)
    new = own_programs(former=old.ids)
    with IPRSocket() as monitor:
        monitor.bind(groups=rtnl.RTMGRP_TC)
        assert attach(new) == [("attach tc ingress", "va"), ("attach tc egress", "va")]
        events = [message["event"] for _ in range(2) for message in monitor.get()]
    assert events == ["RTM_NEWTFILTER", "RTM_NEWTFILTER"]  # and no RTM_DELTFILTER
    assert attached(new) == ids(new)
    assert len(query().filters) == 2


def test_no_packet_slips_through_during_exchanges() -> None:
    add_veth()
    command("ip addr add 192.0.2.1/24 dev va")
    command("ip neigh add 192.0.2.2 lladdr 02:00:00:00:00:02 dev va nud permanent")
    first, second = own_programs(result=TC_SHOT), own_programs(result=TC_SHOT)
    sets = [replace(first, former=second.ids), replace(second, former=first.ids)]
    attach(sets[0])
    received_before = _received("vb")
    sent, stop = [0], threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            while not stop.is_set():
                with contextlib.suppress(OSError):  # the filter's drop is told to the sender
                    sender.sendto(b"x", ("192.0.2.2", 9))
                sent[0] += 1

    thread = threading.Thread(target=send)
    thread.start()
    try:
        exchanges = 0
        while exchanges < 200 or sent[0] < 2000:
            assert len(attach(sets[(exchanges + 1) % 2])) == 2
            exchanges += 1
    finally:
        stop.set()
        thread.join()
    assert _received("vb") == received_before


def _received(name: str) -> int:
    (link,) = json.loads(command(f"ip -statistics -json link show {name}"))
    return int(link["stats64"]["rx"]["packets"])
