"""Sysctls: those of the calling thread's network namespace, and nothing outside net/."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest

from reconciler.errors import KernelError
from reconciler.kernel import sysctls
from reconciler.kernel.gateway import Gateway
from tests.kernel.network import GATEWAY, add_veth, command, enter_new_namespace, recorder

pytestmark = pytest.mark.own_namespace
FORWARDING = "net/ipv4/conf/lo/forwarding"


def test_written_value_is_read_back() -> None:
    gateway = recorder()
    sysctls.write(FORWARDING, "1", gateway)
    assert sysctls.read(FORWARDING) == "1"
    sysctls.write(FORWARDING, "0", gateway)
    assert sysctls.read(FORWARDING) == "0"
    assert gateway.calls == [("set sysctl", f"{FORWARDING} to 1"), ("set sysctl", f"{FORWARDING} to 0")]


def test_each_thread_sees_its_own_namespace() -> None:
    sysctls.write(FORWARDING, "1", GATEWAY)
    seen: list[str | None] = []

    def elsewhere() -> None:
        seen.append(sysctls.read(FORWARDING))
        enter_new_namespace()
        sysctls.write(FORWARDING, "0", GATEWAY)
        seen.append(sysctls.read(FORWARDING))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == ["1", "0"]
    assert sysctls.read(FORWARDING) == "1"


def test_missing_one_reads_as_none_and_is_left_out() -> None:
    missing = "net/ipv4/conf/nosuch0/forwarding"
    assert sysctls.read(missing) is None
    assert sysctls.read_all([FORWARDING, missing]).keys() == {FORWARDING}
    with pytest.raises(KernelError) as refused:
        sysctls.write(missing, "1", GATEWAY)
    assert refused.value.errno == errno.ENOENT


def test_value_the_kernel_refuses_is_an_error() -> None:
    with pytest.raises(KernelError) as refused:
        sysctls.write(FORWARDING, "many", GATEWAY)
    assert refused.value.errno == errno.EINVAL
    assert FORWARDING in str(refused.value)


def test_ipv6_forwarding_for_all_changes_no_other_one() -> None:
    """The kernel sets every interface's and the default along with it."""
    add_veth("va", "vb")
    names = [f"net/ipv6/conf/{name}/forwarding" for name in ("all", "default", "lo", "va", "vb")]
    sysctls.write("net/ipv6/conf/va/forwarding", "1", GATEWAY)
    for value in ("1", "0"):
        sysctls.write("net/ipv6/conf/all/forwarding", value, GATEWAY)
        assert sysctls.read_all(names) == dict(zip(names, (value, "0", "0", "1", "0"), strict=True))


def test_end_of_ipv6_forwarding_for_all_gives_lo_back_its_own_first() -> None:
    """As from there new connections' ways are looked up."""
    add_veth("ea", "eb")
    own = ("net/ipv6/conf/ea/forwarding", "net/ipv6/conf/lo/forwarding")
    for name in (sysctls.ALL_FORWARDING6, *own):
        sysctls.write(name, "1", GATEWAY)
    gateway = recorder()
    sysctls.write(sysctls.ALL_FORWARDING6, "0", gateway)
    order = [name for _, name in gateway.calls if "/forwarding " in name]
    assert order == [f"{name} to {value}" for name, value in ((sysctls.ALL_FORWARDING6, 0), (own[1], 1), (own[0], 1))]


def test_an_interface_that_goes_meanwhile_is_not_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it had need not be put back."""
    add_veth("va", "vb")
    set_all = sysctls._set

    def set_and_lose(name: str, value: str, gateway: Gateway) -> None:
        set_all(name, value, gateway)
        if name == sysctls.ALL_FORWARDING6:
            command("ip link del va")

    monkeypatch.setattr(sysctls, "_set", set_and_lose)
    sysctls.write(sysctls.ALL_FORWARDING6, "1", GATEWAY)
    assert sysctls.read_all(f"net/ipv6/conf/{name}/forwarding" for name in ("all", "lo", "va")) == {
        "net/ipv6/conf/all/forwarding": "1",
        "net/ipv6/conf/lo/forwarding": "0",
    }


def test_end_of_ipv6_forwarding_for_all_leaves_what_is_forced() -> None:
    """The kernel ends that along with it."""
    add_veth("aa", "vb")
    names = [f"net/ipv6/conf/{name}/force_forwarding" for name in ("all", "default", "lo", "aa", "vb")]
    if sysctls.read(names[0]) is None:
        pytest.skip("this kernel knows no force_forwarding (Linux 6.17)")
    sysctls.write(names[2], "1", GATEWAY)
    before = sysctls.read_all(names)
    for value in ("1", "0"):
        sysctls.write("net/ipv6/conf/all/forwarding", value, GATEWAY)
        assert sysctls.read_all(names) == before


def test_interface_name_with_a_dot() -> None:
    add_veth("va.7", "vb")
    sysctls.write("net/ipv4/conf/va.7/forwarding", "1", GATEWAY)
    assert command("sysctl --values net/ipv4/conf/va.7/forwarding").strip() == "1"


@pytest.mark.parametrize("name", ["kernel/hostname", "net/../kernel/hostname", "/net/ipv4/ip_forward", "net//x", "net"])
def test_nothing_outside_net(name: str) -> None:
    before = Path("/proc/sys/kernel/hostname").read_text()
    for attempt in (lambda: sysctls.read(name), lambda: sysctls.write(name, "x", GATEWAY)):
        with pytest.raises(KernelError, match="EINVAL"):
            attempt()
    assert Path("/proc/sys/kernel/hostname").read_text() == before
