"""The reference model itself, on cases worked out by hand."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from reconciler.state.objects import Balance, Protocol
from tests.model import PASS, Verdict, _hash3, decide
from tests.unit.state.build import endpoint, proxy, route, targets, want

WEB = proxy(
    to=targets("10.0.0.1:8080", "10.0.0.2"),
    routes=(
        route("192.168.0.0/16", "10.0.0.9:1"),
        route("192.168.66.0/24"),
        route("192.168.67.0/24", ("10.0.0.3:1", 0), ("10.0.0.4:1", 0)),
    ),
)


def ask(src: str, dst: str = "192.0.2.1", port: int = 80, ifindex: int = 2, **more: int) -> Verdict:
    return decide(want(WEB).state, ifindex, ip_address(src), ip_address(dst), Protocol.TCP, port, **more)


def test_what_no_listener_has_passes() -> None:
    assert ask("10.9.9.9", port=81) == ask("10.9.9.9", dst="192.0.2.2") == ask("10.9.9.9", ifindex=3) == PASS
    other = decide(want(WEB).state, 2, ip_address("10.9.9.9"), ip_address("192.0.2.1"), Protocol.UDP, 80)
    assert other == PASS


def test_the_longest_prefix_decides() -> None:
    assert ask("192.168.1.1") == Verdict(
        "forward", "web", ip_network("192.168.0.0/16"), frozenset({endpoint("10.0.0.9:1")})
    )
    assert ask("192.168.66.1") == Verdict("drop", "web", ip_network("192.168.66.0/24"), reason="denied")
    assert ask("192.168.67.1") == Verdict("drop", "web", ip_network("192.168.67.0/24"), reason="no_target")
    expected = frozenset({endpoint("10.0.0.1:8080"), endpoint("10.0.0.2:80")})
    assert ask("172.16.0.1") == Verdict("forward", "web", None, expected)


def test_one_connection_has_one_target_and_many_have_all() -> None:
    found = {ask("172.16.0.1", sport=port).targets for port in range(1024, 1100)}
    assert found == {frozenset({endpoint("10.0.0.1:8080")}), frozenset({endpoint("10.0.0.2:80")})}
    assert ask("172.16.0.1", sport=5000) == ask("172.16.0.1", sport=5000)


def test_source_affinity_depends_on_the_address_alone() -> None:
    state = want(proxy(to=WEB.default_target, balance=Balance.SOURCE)).state
    to = ip_address("192.0.2.1")
    found = {
        address: {decide(state, 2, ip_address(address), to, Protocol.TCP, 80, port).targets for port in (1, 2, 3)}
        for address in (f"172.16.0.{number}" for number in range(40))
    }
    assert all(len(each) == 1 for each in found.values())
    assert len({target for each in found.values() for target in each}) == 2


def test_the_hash_is_jenkins_lookup3() -> None:
    assert _hash3(0, 0, 0, 0) == lookup3_hashword([0, 0, 0], 0)
    assert _hash3(1, 2, 3, 7) == lookup3_hashword([1, 2, 3], 7)


def lookup3_hashword(words: list[int], seed: int) -> int:
    """hashword() of lookup3.c for three words, transcribed from Bob Jenkins' source."""
    mask = 0xFFFFFFFF

    def rot(x: int, k: int) -> int:
        return ((x << k) & mask) | (x >> (32 - k))

    a = b = c = (0xDEADBEEF + (len(words) << 2) + seed) & mask
    c, b, a = (c + words[2]) & mask, (b + words[1]) & mask, (a + words[0]) & mask
    for step in ((14, "cb"), (11, "ac"), (25, "ba"), (16, "cb"), (4, "ac"), (14, "ba"), (24, "cb")):
        by, (left, right) = step
        values = {"a": a, "b": b, "c": c}
        values[left] = ((values[left] ^ values[right]) - rot(values[right], by)) & mask
        a, b, c = values["a"], values["b"], values["c"]
    return c
