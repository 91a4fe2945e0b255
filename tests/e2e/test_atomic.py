"""A packet sees one configuration: a million of them, while commits change many proxies at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from netlab import Lab
from reconciler.engine import Engine
from reconciler.kernel import layout
from reconciler.places import Places

if TYPE_CHECKING:
    from netlab.namespace import Namespace
    from reconciler.kernel.maps import Map

PROXIES, PACKETS, COMMITS = 32, 1_000_000, 12


def configuration(number: int) -> str:
    """Configuration 0, 1 or 2: 0 and 1 have the same proxies with other targets, 2 has others."""
    lines = ["apiVersion: revproxy/v1", "settings: {xdp_mode: native, max_connections: 20000}", "proxies:"]
    for index in range(PROXIES):
        lines += [
            f"  - name: {'other' if number == 2 else 'proxy'}-{index}",
            f"    listen: {{interfaces: [eth0], port: {9000 + index}, protocol: udp}}",
            f"    default_target: {{ip: 10.9.{2 * number + 1}.{index + 1}, port: 53}}",
            "    source_routes:",
            f"      - {{source: 20.0.0.0/9, target: {{ip: 10.9.{2 * number + 2}.{index + 1}, port: 53}}}}",
        ]
        if number:  # comes and goes, and says what its covering prefix says
            target = f"{{ip: 10.9.{2 * number + 2}.{index + 1}, port: 53}}"
            lines.append(f"      - {{source: 20.{index}.0.0/16, target: {target}}}")
    return "\n".join(lines) + "\n"


def start_runner(namespace: Namespace, pin: Path, ifindex: int, mac: str) -> subprocess.Popen[str]:
    frame = Ether(src="02:00:00:00:00:01", dst=mac) / IP(src="20.0.0.0", dst="10.90.1.1") / UDP(sport=5, chksum=0)
    words = [namespace.name, str(pin), str(ifindex), bytes(frame / b"0123456789").hex(), str(PROXIES), str(PACKETS)]
    runner = subprocess.Popen(
        ["taskset", "-c", "1", sys.executable, "-m", "tests.e2e.packet_runner", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert runner.stdout is not None
    assert runner.stdout.readline() == "ready\n"
    return runner


def leave_nothing_to_tc(way: Map) -> None:
    """The kernel need not see any packet to know that the gateway is in use: where only XDP runs, TC has none."""
    head = way.get(0)
    assert head is not None
    head.view(layout.way_head)["show_after"][0] = 0
    way.put(0, head)


def test_a_million_packets_and_not_one_saw_half_a_commit() -> None:
    with Lab(servers=False, xdp_peers=True) as lab:
        gateway = lab.backends[0].ip4
        lab.proxy.ip(
            f"route add 10.9.0.0/16 via {gateway}",
            f"neigh replace {gateway} lladdr 02:00:00:00:00:09 dev eth1 nud permanent",
        )
        link = lab.proxy.ip_json("link", "show", "dev", "eth0")[0]
        base = lab.directory
        bpffs = Path("/sys/fs/bpf") / lab.name
        (base / "config.d").mkdir()
        places = Places(base / "config.d", base / "run", base / "state", bpffs)

        def commits() -> dict[str, Any]:
            engine = Engine(places)
            try:
                file = base / "config.d" / "all.yaml"
                file.write_text(configuration(0))
                engine.apply()
                leave_nothing_to_tc(engine.live.maps["way"])
                (pin,) = bpffs.glob("*/progs/current/xdp_ingress")
                runner = start_runner(lab.proxy, pin, link["ifindex"], link["address"])
                assert runner.stdin is not None
                assert runner.stdout is not None
                runner.stdin.write("go\n")
                runner.stdin.flush()
                for number in range(1, COMMITS + 1):
                    file.write_text(configuration(number % 3))
                    engine.apply()
                runner.stdin.write("stop\n")
                runner.stdin.flush()
                result: dict[str, Any] = json.loads(runner.stdout.read())
                assert runner.wait() == 0
                result["drops"] = {reason: count for reason, count in engine.stats().drops.items() if count}
                return result
            finally:
                engine.down()
                engine.close()

        result = lab.proxy.call(commits)
        lab.assert_clean(bpffs)
    # So many new connections fill the table now and then: those drops are counted as such, and there are no others.
    full = result["drops"].pop("table_full", 0)
    assert result["drops"] == {}
    assert result["wrong"] == ([["verdict 1", full]] if full else [])
    assert result["packets"] >= PACKETS
    # Each commit is one change for the packets, whichever proxy they go to: no packet saw an earlier configuration
    # after another had seen the later one.
    assert [seen for _, seen in result["changes"]] == [number % 3 for number in range(COMMITS + 1)]
