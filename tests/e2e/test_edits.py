"""Changing the files under traffic: what is open stays where it is, what is new goes where the files say."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import pytest

from netlab import HTTP_PORT, TCP_PORT, UDP_PORT, Lab, wait_for
from netlab.clients import ask_udp, connect, http_connection
from tests.e2e.instance import Instance, web

WAYS = {"native": "{xdp_mode: native}", "tc": "{}", "stack": "{fast_path: false}"}
ways = pytest.mark.parametrize("way", WAYS)


def backend_of(connection_target: tuple[object, int], lab: Lab) -> str:
    """Which backend answers a new connection."""
    connection = http_connection(lab.client, connection_target)  # type: ignore[arg-type]
    try:
        connection.request("GET", "/")
        return connection.getresponse().read().decode().split()[0]
    finally:
        connection.close()


def answers(connection_target: tuple[object, int], lab: Lab) -> bool:
    """Whether a backend answers a new connection."""
    try:
        return bool(backend_of(connection_target, lab))
    except OSError:
        return False


@dataclass
class Download:
    """A long download in a thread; ``body`` and ``error`` once it is done."""

    lab: Lab
    path: str
    body: bytes = b""
    error: list[str] = field(default_factory=list)

    def start(self) -> threading.Thread:
        def run() -> None:
            try:
                connection = http_connection(self.lab.client, (self.lab.proxy4, 80), timeout_sec=20)
                connection.request("GET", self.path)
                self.body = connection.getresponse().read()
                connection.close()
            except OSError as error:
                self.error.append(str(error))

        thread = threading.Thread(target=run)
        thread.start()
        return thread


@ways
@pytest.mark.parametrize("daemon", [True, False], ids=["daemon", "direct"])
def test_edit_moves_new_connections_and_no_old_one(lab: Lab, instance: Instance, way: str, daemon: bool) -> None:
    one, two, _ = lab.backends
    instance.write(web(f"{one.ip4}:{HTTP_PORT}", settings=WAYS[way]))
    if daemon:
        instance.start_daemon()
    else:
        instance.apply()
    listen = (lab.proxy4, 80)
    held = [http_connection(lab.client, listen) for _ in range(20)]
    for connection in held:
        connection.request("GET", "/before")
        assert connection.getresponse().read().startswith(one.name.encode())
    download = Download(lab, "/slow/2000000/3")
    thread = download.start()
    wait_for(lambda: instance.json("connections")[20:], "the download has begun")

    instance.write(web(f"{two.ip4}:{HTTP_PORT}", settings=WAYS[way]))
    if daemon:
        wait_for(lambda: backend_of(listen, lab) == two.name, "the edit is live")
        instance.wait_synced()
    else:
        instance.apply()
    for _ in range(20):
        assert backend_of(listen, lab) == two.name
    for connection in held:
        connection.request("GET", "/after")
        assert connection.getresponse().read().startswith(one.name.encode())
        connection.close()
    thread.join()
    assert download.error == []
    assert len(download.body) == 2_000_000
    assert set(download.body.split()[:-1]) == {one.name.encode()}
    assert lab.checksum_errors() == {}


@ways
def test_no_connection_fails_while_targets_change_all_the_time(lab: Lab, instance: Instance, way: str) -> None:
    names = {f"{backend.ip4}:{HTTP_PORT}": backend.name for backend in lab.backends}
    targets = list(names)
    instance.apply(web(targets[0], settings=WAYS[way]))
    failures: list[str] = []
    seen: set[str] = set()
    done = threading.Event()

    def client() -> None:
        while not done.is_set():
            try:
                seen.add(backend_of((lab.proxy4, 80), lab))
            except Exception as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=client) for _ in range(2)]
    for thread in threads:
        thread.start()
    for change in range(9):
        instance.apply(web(targets[change % 3], settings=WAYS[way]))
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert seen == set(names.values())


def test_proxy_removed_and_added_again(lab: Lab, instance: Instance) -> None:
    one = lab.backends[0]
    keep = web(f"{one.ip4}:{UDP_PORT}", name="keep", port=9999, protocol="udp")
    instance.write(keep, "keep.yaml")
    instance.apply(web(f"{one.ip4}:{TCP_PORT}", port=7))
    held = connect(lab.client, (lab.proxy4, 7))
    held.sendall(b"one")
    assert held.recv(10) == b"one"
    (instance.config_dir / "web.yaml").unlink()
    instance.apply()
    held.sendall(b"still there")
    assert held.recv(100) == b"still there"
    with pytest.raises(ConnectionRefusedError):
        connect(lab.client, (lab.proxy4, 7))
    rows = instance.json("connections", "--proxy", "web")
    assert [row["target"] for row in rows] == [f"{one.ip4}:{TCP_PORT}"]
    instance.apply(web(f"{lab.backends[1].ip4}:{TCP_PORT}", port=7))
    connect(lab.client, (lab.proxy4, 7)).close()
    held.sendall(b"and still")
    assert held.recv(100) == b"and still"
    held.close()


def test_source_routes_on_the_wire(lab: Lab, instance: Instance) -> None:
    one, two, three = lab.backends
    for address in ("192.0.2.1", "192.0.2.200", "198.51.100.7", "2001:db8:7::1"):
        lab.add_client_address(address)
    instance.apply(
        f"""\
apiVersion: revproxy/v1
proxies:
  - name: dns
    listen: {{interfaces: [eth0], port: 53, protocol: udp}}
    default_target: [{{ip: {one.ip4}, port: {UDP_PORT}}}, {{ip: "{one.ip6}", port: {UDP_PORT}}}]
    source_routes:
      - source: 192.0.2.0/24
        target: {{ip: {two.ip4}, port: {UDP_PORT}}}
      - source: 192.0.2.128/25
        target: {{ip: {three.ip4}, port: {UDP_PORT}}}
      - source: 198.51.100.0/24
        action: deny
      - source: "2001:db8::/32"
        target: {{ip: "{two.ip6}", port: {UDP_PORT}}}
"""
    )

    def answer(source: object, listen: object) -> str:
        return ask_udp(lab.client, (str(listen), 53), b"?", source=(str(source), 0)).split()[0]

    assert answer(lab.client4, lab.proxy4) == one.name
    assert answer("192.0.2.1", lab.proxy4) == two.name
    assert answer("192.0.2.200", lab.proxy4) == three.name
    assert answer(lab.client6, lab.proxy6) == one.name
    assert answer("2001:db8:7::1", lab.proxy6) == two.name
    with pytest.raises(TimeoutError):
        ask_udp(lab.client, (lab.proxy4, 53), b"?", source=("198.51.100.7", 0), timeout_sec=0.5)
    assert instance.json("stats")["drops"]["denied"] == 1


def test_source_affinity_and_weights(lab: Lab, instance: Instance) -> None:
    one, two, three = lab.backends
    clients = [f"192.0.2.{number}" for number in range(1, 41)]
    for address in clients:
        lab.add_client_address(address)
    instance.apply(
        f"""\
apiVersion: revproxy/v1
proxies:
  - name: sticky
    balance: source
    listen: {{interfaces: [eth0], port: 53, protocol: udp}}
    default_target:
      - {{ip: {one.ip4}, port: {UDP_PORT}, weight: 3}}
      - {{ip: {two.ip4}, port: {UDP_PORT}}}
      - {{ip: {three.ip4}, port: {UDP_PORT}, weight: 0}}
"""
    )
    chosen = {
        source: {ask_udp(lab.client, (lab.proxy4, 53), b"?", source=(source, 0)).split()[0] for _ in range(4)}
        for source in clients
    }
    assert all(len(names) == 1 for names in chosen.values()), "one client, one target"
    shares = [names.pop() for names in chosen.values()]
    assert three.name not in shares
    assert shares.count(one.name) > shares.count(two.name) > 0


def test_listen_addresses_are_followed_as_they_change(lab: Lab, instance: Instance) -> None:
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}"))
    instance.start_daemon()
    lab.add_proxy_address("10.90.77.1")
    wait_for(lambda: answers(("10.90.77.1", 80), lab), "the new address is served")
    lab.proxy.ip("address del 10.90.77.1/32 dev eth0")
    wait_for(
        lambda: not any("10.90.77.1" in text for text in instance.json("status")["proxies"][0]["listen"]),
        "the address is no listener any more",
    )
