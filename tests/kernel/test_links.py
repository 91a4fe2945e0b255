"""Attachments of an interface as a whole: from any state to the wanted one, and off again, with failures on the way."""

from __future__ import annotations

import errno
import socket
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
from bcc import lib

from reconciler.errors import ForeignProgramError, KernelError
from reconciler.kernel import links, tc, xdp
from reconciler.kernel.foreign import Kept
from reconciler.kernel.gateway import FaultGateway
from reconciler.kernel.identity import OwnPrograms
from reconciler.state.objects import Attachment, XdpMode
from tests.kernel.network import GATEWAY, TC_OK, add_veth, command, load_xdp, own_programs, recorder

pytestmark = pytest.mark.own_namespace
MODES = tuple(XdpMode)


def wanted(mode: XdpMode = XdpMode.NATIVE, name: str = "va") -> Attachment:
    return Attachment(socket.if_nametoindex(name), name, mode)


def observed(own: OwnPrograms) -> dict[int, Attachment]:
    return links.observe_attachments(own).attachments


def put_foreign_xdp(name: str = "va", mode: XdpMode = XdpMode.NATIVE) -> int:
    """Somebody else's program on the interface. Returns its id."""
    program = load_xdp("somebody")
    xdp.attach(xdp.XdpStatus(socket.if_nametoindex(name), name, {}), mode, program, None, GATEWAY)
    return program.info.id


def nothing_left(name: str = "va") -> bool:
    listed = command(f"ip -details link show {name}") + command(f"tc qdisc show dev {name}")
    return "prog/xdp" not in listed and "clsact" not in listed


@pytest.mark.parametrize(("first", "second"), list(permutations(MODES, 2)))
def test_from_each_mode_to_each_other(first: XdpMode, second: XdpMode) -> None:
    ifindex, own = add_veth(), own_programs()
    for mode in (first, second):
        links.attach(wanted(mode), own, GATEWAY)
        assert observed(own) == {ifindex: Attachment(ifindex, "va", mode, tc=True)}
    links.detach(wanted(second), own, GATEWAY)
    assert observed(own) == {}
    assert nothing_left()


def test_repeating_changes_nothing() -> None:
    add_veth()
    own, gateway = own_programs(), recorder()
    links.attach(wanted(), own, gateway)
    assert gateway.calls == [("attach tc ingress", "va"), ("attach tc egress", "va"), ("attach xdp native", "va")]
    links.attach(wanted(), own, gateway)
    assert len(gateway.calls) == 3
    links.detach(wanted(), own, gateway)
    links.detach(wanted(), own, gateway)
    assert gateway.calls[3:] == [("detach xdp native", "va"), ("detach tc with clsact", "va")]


@pytest.mark.parametrize("before", [None, XdpMode.GENERIC, XdpMode.OFF])
def test_each_step_that_fails_can_be_taken_up_or_back(before: XdpMode | None) -> None:
    ifindex, own = add_veth(), own_programs()
    step, finished = 0, False
    while not finished:
        step += 1
        if before:
            links.attach(wanted(before), own, GATEWAY)
        faulty = FaultGateway(fail_at=step)
        try:
            links.attach(wanted(XdpMode.NATIVE), own, faulty)
            finished = True
        except KernelError:
            if before:
                links.attach(wanted(before), own, GATEWAY)
                assert observed(own) == {ifindex: wanted(before)}
            else:
                links.detach(wanted(), own, GATEWAY)
                assert nothing_left()
            with pytest.raises(KernelError):
                links.attach(wanted(XdpMode.NATIVE), own, FaultGateway(fail_at=step))
        links.attach(wanted(XdpMode.NATIVE), own, GATEWAY)
        assert observed(own) == {ifindex: wanted(XdpMode.NATIVE)}
        links.detach(wanted(), own, GATEWAY)
        assert nothing_left()
    assert step > 1


def test_detach_taken_up_after_each_step_that_failed() -> None:
    add_veth()
    own = own_programs()
    for step in (1, 2):
        links.attach(wanted(), own, GATEWAY)
        with pytest.raises(KernelError, match="made to fail"):
            links.detach(wanted(), own, FaultGateway(fail_at=step))
        assert not nothing_left()
        links.detach(wanted(), own, GATEWAY)
        assert nothing_left()


@pytest.mark.parametrize("mode", MODES)
def test_programs_of_an_earlier_load_are_exchanged_in_place(mode: XdpMode) -> None:
    ifindex, old = add_veth(), own_programs()
    links.attach(wanted(mode), old, GATEWAY)
    new, gateway = own_programs(former=old.ids), recorder()
    assert observed(new) == {ifindex: Attachment(ifindex, "va", XdpMode.OFF, tc=False)}
    links.attach(wanted(mode), new, gateway)
    assert observed(new) == {ifindex: wanted(mode)}
    assert not [operation for operation, _ in gateway.calls if operation.startswith("detach")]
    links.detach(wanted(mode), new, GATEWAY)
    assert nothing_left()


def test_earlier_load_can_be_detached_with_nothing_loaded() -> None:
    add_veth()
    old = own_programs()
    links.attach(wanted(), old, GATEWAY)
    links.detach(wanted(), OwnPrograms(old.instance, former=old.ids), GATEWAY)
    assert nothing_left()


def test_attaching_needs_loaded_programs() -> None:
    add_veth()
    with pytest.raises(KernelError, match="not loaded"):
        links.attach(wanted(), OwnPrograms("/sys/fs/bpf/test"), GATEWAY)
    assert nothing_left()


@pytest.mark.parametrize("mode", [XdpMode.NATIVE, XdpMode.GENERIC])
def test_foreign_xdp_program_is_an_error_before_anything_is_done(mode: XdpMode) -> None:
    ifindex, own, gateway = add_veth(), own_programs(), recorder()
    foreign = put_foreign_xdp()
    with pytest.raises(ForeignProgramError, match=f"va: native program {foreign} .somebody"):
        links.attach(wanted(mode), own, gateway)
    assert gateway.calls == []
    assert links.observe_attachments(own).foreign_xdp[ifindex].program.id == foreign


def test_tc_serves_beside_a_foreign_xdp_program() -> None:
    ifindex, own = add_veth(), own_programs()
    foreign = put_foreign_xdp(mode=XdpMode.GENERIC)
    links.attach(wanted(XdpMode.OFF), own, GATEWAY)
    assert observed(own) == {ifindex: wanted(XdpMode.OFF)}
    links.detach(wanted(XdpMode.OFF), own, GATEWAY)
    assert links.observe_attachments(own).foreign_xdp[ifindex].program.id == foreign


def test_a_program_held_by_a_link_is_not_taken_over(tmp_path: Path) -> None:
    ifindex, own, foreign = add_veth(), own_programs(), load_xdp("somebody")
    assert lib.bpf_link_create(foreign.fd, ifindex, 37, None) >= 0  # BPF_XDP
    found = links.observe_attachments(own).foreign_xdp[ifindex]
    asked = replace(wanted(), taken_over=found.taken_over())
    with pytest.raises(ForeignProgramError, match=f"va: native program {foreign.info.id} .somebody.*bpf_link can't be"):
        links.attach(asked, own, GATEWAY, Kept(tmp_path, GATEWAY))
    assert observed(own) == {}
    assert not list(tmp_path.iterdir())


def test_foreign_program_in_place_of_ours_is_drift() -> None:
    ifindex, own = add_veth(), own_programs()
    links.attach(wanted(), own, GATEWAY)
    command("ip link set dev va xdp off")
    foreign = put_foreign_xdp()
    assert observed(own) == {ifindex: Attachment(ifindex, "va", XdpMode.OFF, tc=True)}
    links.detach(wanted(), own, GATEWAY)
    assert links.observe_attachments(own).foreign_xdp[ifindex].program.id == foreign
    assert observed(own) == {}


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_lost_filter_is_drift_and_is_repaired(direction: str) -> None:
    ifindex, own = add_veth(), own_programs()
    links.attach(wanted(), own, GATEWAY)
    command(f"tc filter del dev va {direction} pref {tc.PRIORITY}")
    assert observed(own) == {ifindex: Attachment(ifindex, "va", XdpMode.NATIVE, tc=False)}
    gateway = recorder()
    links.attach(wanted(), own, gateway)
    assert gateway.calls == [(f"attach tc {direction}", "va")]
    assert observed(own) == {ifindex: wanted()}


def test_without_tc_the_filters_go() -> None:
    ifindex, own = add_veth(), own_programs()
    links.attach(wanted(), own, GATEWAY)
    only_xdp = replace(wanted(), tc=False)
    links.attach(only_xdp, own, GATEWAY)
    assert observed(own) == {ifindex: only_xdp}
    assert "clsact" not in command("tc qdisc show dev va")


def test_interface_that_is_gone() -> None:
    add_veth()
    own, attachment = own_programs(), wanted()
    links.attach(attachment, own, GATEWAY)
    command("ip link del va")
    links.detach(attachment, own, GATEWAY)
    assert observed(own) == {}
    with pytest.raises(KernelError) as refused:
        links.attach(attachment, own, GATEWAY)
    assert refused.value.errno == errno.ENODEV


def test_details_of_every_interface() -> None:
    ifindex, own = add_veth(), own_programs()
    other = own_programs("/sys/fs/bpf/other", result=TC_OK)
    links.attach(wanted(), own, GATEWAY)
    links.attach(wanted(XdpMode.OFF, "vb"), other, GATEWAY)
    command("tc filter add dev va egress pref 10 protocol all u32 match u32 0 0 flowid 1:1")
    found = links.observe_attachments(own).interfaces
    assert set(found) >= {ifindex, socket.if_nametoindex("lo"), socket.if_nametoindex("vb")}
    details = found[ifindex]
    assert own.tc_ingress
    assert details.tc_ingress
    assert details.tc_ingress.program == own.tc_ingress.info
    assert details.xdp_mode is XdpMode.NATIVE
    assert details.complete_tc
    assert [each.priority for each in details.ahead_egress] == [10]
    assert details.ahead_ingress == ()
    (in_the_way,) = found[socket.if_nametoindex("vb")].ahead_ingress
    assert in_the_way.program
    assert in_the_way.program.name == "tc_ingress"
    assert found[socket.if_nametoindex("vb")].attachment is None


def test_loopback_is_served_through_tc() -> None:
    own, loopback = own_programs(), wanted(XdpMode.OFF, "lo")
    links.attach(loopback, own, GATEWAY)
    assert observed(own) == {loopback.ifindex: loopback}
    links.detach(loopback, own, GATEWAY)
    assert nothing_left("lo")
