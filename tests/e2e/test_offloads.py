"""Every combination of checksum offloads, on the wire: whoever leaves a checksum to the hardware, and whoever verifies
it, no byte arrives changed and no packet with a bad checksum."""

from __future__ import annotations

import socket
import struct
from itertools import groupby

from netlab import TCP_PORT, UDP_PORT, Lab, Namespace
from netlab.clients import connect, echo_tcp
from tests.e2e.covering import covering
from tests.e2e.instance import Instance
from tests.e2e.test_fullnat import seen_peer

MODES = {"dnat": 7, "fullnat": 107}
SWITCH = ("on", "off")
FACTORS = {
    "xdp": ("native", "generic", "off"),
    "client tx": SWITCH,
    "client rx": SWITCH,
    "proxy eth0 tx": SWITCH,
    "proxy eth1 tx": SWITCH,
    "proxy rx": SWITCH,
    "backend tx": SWITCH,
    "backend rx": SWITCH,
}
STRENGTH = 3
STREAM = 400_000
# One byte, an odd one, just not cut, and cut into fragments.
DATAGRAMS = (1, 777, 1400, 4001)
UDP_SEGMENT, SEGMENT, SEGMENTS = 103, 1000, 6


def config(lab: Lab, xdp_mode: str) -> str:
    """TCP and UDP echo in both modes, over both families."""
    targets = [f'{{ip: "{ip}", port: %d}}' for ip in (lab.backends[0].ip4, lab.backends[0].ip6)]
    lines = ["apiVersion: revproxy/v1", f"settings: {{xdp_mode: {xdp_mode}}}", "proxies:"]
    for mode, port in MODES.items():
        for protocol, target in (("tcp", TCP_PORT), ("udp", UDP_PORT)):
            lines += [
                f"  - name: {protocol}-{mode}",
                f"    mode: {mode}",
                f"    listen: {{interfaces: [eth0], port: {port}, protocol: {protocol}}}",
                f"    default_target: [{', '.join(targets) % (target, target)}]",
            ]
    return "\n".join(lines) + "\n"


def set_offloads(lab: Lab, case: dict[str, str]) -> None:
    """As the case says; segmentation offload goes with transmit checksums, as the kernel has it."""
    for namespace, interface, settings in (
        (lab.client, "eth0", {"tx": case["client tx"], "rx": case["client rx"]}),
        (lab.proxy, "eth0", {"tx": case["proxy eth0 tx"], "rx": case["proxy rx"]}),
        (lab.proxy, "eth1", {"tx": case["proxy eth1 tx"], "rx": case["proxy rx"]}),
        (lab.backends[0].namespace, "eth0", {"tx": case["backend tx"], "rx": case["backend rx"]}),
    ):
        words = [word for feature, value in settings.items() for word in (feature, value)]
        namespace.run("ethtool", "-K", interface, *words)
        assert checksumming(namespace, interface) == settings


def checksumming(namespace: Namespace, interface: str) -> dict[str, str]:
    """What ethtool says an interface does."""
    lines = [line.split() for line in namespace.run("ethtool", "-k", interface).stdout.splitlines()]
    said = {words[0]: words[1] for words in lines if len(words) > 1}
    return {"tx": said["tx-checksumming:"], "rx": said["rx-checksumming:"]}


def test_every_combination_of_offloads_leaves_every_byte_as_it_was() -> None:
    cases = covering(FACTORS, STRENGTH)
    cases.sort(key=lambda case: case["xdp"])
    with Lab(backends=1, xdp_peers=True) as lab, Instance(lab) as instance:
        instance.apply(config(lab, "off"))
        instance.start_daemon()
        for xdp_mode, group in groupby(cases, key=lambda case: case["xdp"]):
            instance.apply(config(lab, xdp_mode))
            for case in group:
                set_offloads(lab, case)
                for version in (4, 6):
                    for mode, port in MODES.items():
                        exchange(lab, version, mode, port, str(case))
                assert (lab.checksum_errors(), proxy_errors(lab)) == ({}, {}), case
        stats = instance.json("stats", status=0)
        assert sum(stats["drops"].values()) == 0, stats["drops"]
        assert min(stats["outcomes"][way] for way in ("redirect_xdp", "redirect_tc")) > 500


def exchange(lab: Lab, version: int, mode: str, port: int, case: str) -> None:
    """A stream, datagrams of several sizes, and datagrams cut by whoever does that; each has to come back."""
    listen = lab.proxy4 if version == 4 else lab.proxy6
    client = lab.client4 if version == 4 else lab.client6
    about = f"{mode} IPv{version} {case}"
    try:
        assert echo_tcp(lab.client, (listen, port), STREAM, seed=port + version, timeout_sec=10).intact, about
        with connect(lab.client, (listen, port), kind=socket.SOCK_DGRAM) as asking:
            for size in DATAGRAMS:
                asking.send(payload := bytes(range(1, 256)) * (size // 255) + b"z" * (size % 255))
                answer = asking.recv(65535)
                assert answer.endswith(b" " + payload), about
                assert (seen_peer(answer[:80].decode(errors="replace"))[0] == str(client)) == (mode == "dnat"), about
            pieces = [bytes([number]) * SEGMENT for number in range(SEGMENTS)]
            ask_for_cutting = [(socket.IPPROTO_UDP, UDP_SEGMENT, struct.pack("=H", SEGMENT))]
            asking.sendmsg([b"".join(pieces)], ask_for_cutting)
            answers = sorted(asking.recv(65535)[-SEGMENT:] for _ in pieces)
            assert answers == pieces, about
    except OSError as error:
        raise AssertionError(f"{about}: {error!r}") from error


def proxy_errors(lab: Lab) -> dict[str, int]:
    """Bad checksums that the proxy host's own stack met."""
    return {name: count for name, count in lab.proxy.checksum_errors().items() if count}
