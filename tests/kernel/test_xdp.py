"""XDP attaching: guarded by the expected program, and refusals in the kernel's own words."""

from __future__ import annotations

import errno
import socket

import pytest
from bcc import lib

from reconciler.errors import ForeignProgramError, KernelError
from reconciler.kernel import xdp
from reconciler.kernel.identity import LoadedProgram, OwnPrograms
from reconciler.kernel.links import list_links
from reconciler.kernel.xdp import XdpStatus
from reconciler.state.objects import XdpMode
from tests.kernel.network import GATEWAY, add_veth, command, load_xdp

pytestmark = pytest.mark.own_namespace
_BPF_XDP = 37


def status(ifindex: int) -> XdpStatus:
    link = list_links(ifindex)[ifindex]
    return XdpStatus(ifindex, link.name, link.xdp)


def attach(ifindex: int, program: LoadedProgram, mode: XdpMode = XdpMode.NATIVE) -> None:
    xdp.attach(status(ifindex), mode, program, None, GATEWAY)


@pytest.mark.parametrize("mode", [XdpMode.NATIVE, XdpMode.GENERIC])
def test_attached_program_is_seen_with_its_mode(mode: XdpMode) -> None:
    ifindex, program = add_veth(), load_xdp()
    attach(ifindex, program, mode)
    assert status(ifindex).programs == {mode.value: program.info.id}
    assert status(ifindex).own(OwnPrograms("i", program)) == (mode, program.info.id)
    xdp.detach(status(ifindex), mode, program.fd, GATEWAY)
    assert status(ifindex).programs == {}


def test_loopback_takes_generic_and_says_why_not_native() -> None:
    loopback, program = socket.if_nametoindex("lo"), load_xdp()
    with pytest.raises(KernelError, match="does not support XDP in native mode") as refused:
        attach(loopback, program)
    assert (refused.value.operation, refused.value.subject) == ("attach xdp native", "lo")
    attach(loopback, program, XdpMode.GENERIC)
    assert status(loopback).programs == {"generic": program.info.id}


def test_too_large_mtu_is_refused_in_the_drivers_words() -> None:
    ifindex = add_veth(mtu=9000)
    with pytest.raises(KernelError, match=r"ERANGE: .*Peer MTU is too large to set XDP"):
        attach(ifindex, load_xdp())
    assert status(ifindex).programs == {}


def test_foreign_program_is_named_and_not_replaced() -> None:
    ifindex, foreign, ours = add_veth(), load_xdp("somebody"), load_xdp()
    attach(ifindex, foreign)
    with pytest.raises(ForeignProgramError) as refused:
        attach(ifindex, ours)
    for detail in ("va", str(foreign.info.id), "somebody", foreign.info.tag):
        assert detail in str(refused.value)
    assert status(ifindex).programs == {"native": foreign.info.id}


def test_program_that_came_after_the_look_is_not_replaced() -> None:
    ifindex, foreign, ours = add_veth(), load_xdp("somebody"), load_xdp()
    before = status(ifindex)
    attach(ifindex, foreign)
    with pytest.raises(KernelError, match="EBUSY: XDP program already attached"):
        xdp.attach(before, XdpMode.NATIVE, ours, None, GATEWAY)
    assert status(ifindex).programs == {"native": foreign.info.id}


def test_native_does_not_go_beside_a_foreign_generic_program() -> None:
    ifindex, foreign, ours = add_veth(), load_xdp("somebody"), load_xdp()
    before = status(ifindex)
    attach(ifindex, foreign, XdpMode.GENERIC)
    with pytest.raises(KernelError, match="EEXIST: Native and generic XDP can't be active at the same time"):
        xdp.attach(before, XdpMode.NATIVE, ours, None, GATEWAY)
    assert status(ifindex).foreign(frozenset()) is not None


def test_our_program_is_exchanged() -> None:
    ifindex, old, new = add_veth(), load_xdp(), load_xdp()
    attach(ifindex, old)
    xdp.attach(status(ifindex), XdpMode.NATIVE, new, old.fd, GATEWAY)
    assert status(ifindex).programs == {"native": new.info.id}


def test_exchange_is_refused_when_another_took_the_place() -> None:
    ifindex, old, new, foreign = add_veth(), load_xdp(), load_xdp(), load_xdp("somebody")
    attach(ifindex, old)
    before = status(ifindex)
    xdp.attach(before, XdpMode.NATIVE, foreign, old.fd, GATEWAY)
    with pytest.raises(KernelError, match="EEXIST: Active program does not match expected"):
        xdp.attach(before, XdpMode.NATIVE, new, old.fd, GATEWAY)
    with pytest.raises(KernelError, match="EEXIST: Active program does not match expected"):
        xdp.detach(before, XdpMode.NATIVE, old.fd, GATEWAY)
    assert status(ifindex).programs == {"native": foreign.info.id}


def test_program_held_by_a_link_is_told_apart() -> None:
    ifindex, foreign, ours = add_veth(), load_xdp("somebody"), load_xdp()
    before = status(ifindex)
    link = lib.bpf_link_create(foreign.fd, ifindex, _BPF_XDP, None)
    assert link >= 0
    found = status(ifindex).foreign(frozenset())
    assert found is not None
    assert found.link is True
    assert "bpf_link" in str(found)
    with pytest.raises(KernelError) as refused:
        xdp.attach(before, XdpMode.NATIVE, ours, None, GATEWAY)
    assert refused.value.errno in (errno.EBUSY, errno.EEXIST)


def test_program_attached_by_netlink_is_not_taken_for_one_held_by_a_link() -> None:
    ifindex, elsewhere, foreign = add_veth(), add_veth("vc", "vd"), load_xdp("somebody")
    assert lib.bpf_link_create(foreign.fd, elsewhere, _BPF_XDP, None) >= 0
    attach(ifindex, foreign)
    found = status(ifindex).foreign(frozenset())
    assert found is not None
    assert found.link is False


def test_ip_link_agrees() -> None:
    ifindex, program = add_veth(), load_xdp()
    attach(ifindex, program)
    assert f"prog/xdp id {program.info.id}" in command("ip -details link show va")
