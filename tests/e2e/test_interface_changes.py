"""Interfaces that are renamed, go down and come up, and change their addresses: each is followed, and waiting for one
is no error for the proxies on the others."""

from __future__ import annotations

import pytest

from netlab import HTTP_PORT, Lab, wait_for
from netlab.clients import http_connection
from tests.e2e.instance import Instance
from tests.e2e.watching import Requests, attached


def config(lab: Lab) -> str:
    """A proxy on eth0, and one on an interface that is not there yet."""
    one = lab.backends[0].ip4
    return f"""\
apiVersion: revproxy/v1
proxies:
  - name: web
    listen: {{interfaces: [eth0], port: 80}}
    default_target: {{ip: {one}, port: {HTTP_PORT}}}
  - name: other
    listen: {{interfaces: [other0], port: 81}}
    default_target: {{ip: {one}, port: {HTTP_PORT}}}
"""


def answers(lab: Lab) -> bool:
    return Requests(lab).ask() == "backend1"


def listening(instance: Instance) -> set[str]:
    """The proxies that listen on anything."""
    return {each["name"] for each in instance.json("status")["proxies"] if each["listen"]}


def test_renamed_it_is_waited_for_and_taken_up_under_its_name(lab: Lab, instance: Instance) -> None:
    instance.write(config(lab))
    instance.start_daemon()
    status = instance.json("status", status=0)
    assert {each["name"]: each["attached"] for each in status["interfaces"]}["other0"] is False
    assert "waiting for other0" in status["conditions"][0]["message"]
    # As udev does: down, renamed, up again.
    lab.proxy.ip("link set eth0 down", "link set eth0 name renamed0", "link set renamed0 up")
    wait_for(lambda: listening(instance) == set(), "nothing to listen on", timeout_sec=10)
    wait_for(lambda: attached(lab)["renamed0"] == (None, "", ""), "left", timeout_sec=5)
    assert "eth0" in instance.json("status")["conditions"][0]["message"]
    lab.proxy.ip("link set renamed0 name other0")
    wait_for(lambda: listening(instance) == {"other"}, "taken up as other0", timeout_sec=10)
    lab.proxy.ip("link set other0 name eth0")
    wait_for(lambda: answers(lab), "back under its name", timeout_sec=10)
    instance.wait_synced()
    found = {each["name"]: each["attached"] for each in instance.json("status", status=0)["interfaces"]}
    assert found["eth0"], found
    assert not found["other0"], found


def test_back_from_another_namespace_with_a_program_that_was_exchanged_meanwhile(lab: Lab, instance: Instance) -> None:
    """XDP programs go along, and nobody can exchange them there."""

    def ours() -> int | None:
        found = attached(lab)["other0"][0]
        return found["prog"]["id"] if found else None

    lab.proxy.ip("link add other0 type veth peer name far0", "link set other0 up", "link set far0 up")
    text = config(lab).replace("proxies:", "settings: {xdp_mode: generic}\nproxies:")
    instance.write(text)
    instance.start_daemon()
    before = ours()
    there = lab.backends[0].namespace
    lab.proxy.ip(f"link set other0 netns {there.name}")
    instance.write(text.replace("generic", "generic, max_connections: 5000"))
    instance.wait_synced()
    there.ip(f"link set other0 netns {lab.proxy.name}")
    lab.proxy.ip("link set other0 up")
    wait_for(lambda: ours() not in (None, before), "exchanged", timeout_sec=10)
    instance.wait_synced()
    lab.proxy.ip("link delete other0")


def test_back_from_another_namespace_where_it_was_when_all_was_taken_down(lab: Lab, instance: Instance) -> None:
    """Our program is still on it, and neither in the way of the next one nor left by the next `down`."""

    def program() -> int | None:
        found = attached(lab)["other0"][0]
        return found["prog"]["id"] if found else None

    lab.proxy.ip("link add other0 type veth peer name far0", "link set other0 up", "link set far0 up")
    text = config(lab).replace("proxies:", "settings: {xdp_mode: generic}\nproxies:")
    there = lab.backends[0].namespace

    def away_and_back() -> int | None:
        instance.apply(text)
        lab.proxy.ip(f"link set other0 netns {there.name}")
        instance.ctl("down")
        there.ip(f"link set other0 netns {lab.proxy.name}")
        lab.proxy.ip("link set other0 up")
        return program()

    former = away_and_back()
    assert former is not None
    (told,) = [each for each in instance.json("interfaces") if each["name"] == "other0"]
    assert told["conflicts"] == [], told
    instance.apply(text)
    assert program() not in (None, former)
    instance.ctl("status")
    assert away_and_back() is not None
    instance.ctl("down")
    assert program() is None
    lab.proxy.ip("link delete other0")


@pytest.mark.parametrize("interface", ["eth0", "eth1"])
def test_down_and_up_again_connections_go_on(lab: Lab, instance: Instance, interface: str) -> None:
    instance.write(config(lab))
    instance.start_daemon()
    connection = http_connection(lab.client, (lab.proxy4, 80))
    connection.request("GET", "/")
    assert connection.getresponse().read().startswith(b"backend1")
    addresses = [
        f"{each['local']}/{each['prefixlen']}"
        for link in lab.proxy.ip_json("address", "show", "dev", interface)
        for each in link["addr_info"]
        if each["family"] == "inet6" and each["scope"] == "global"
    ]
    lab.proxy.ip(f"link set {interface} down")
    wait_for(lambda: instance.json("status")["errors"] == [], "no error")
    lab.proxy.ip(f"link set {interface} up", *(f"address replace {each} dev {interface}" for each in addresses))
    wait_for(lambda: answers(lab), "served again", timeout_sec=15)
    connection.request("GET", "/")
    assert connection.getresponse().read().startswith(b"backend1")
    connection.close()
    instance.wait_synced()
