"""What a plan says of live connections that only a part of a target's are."""

from __future__ import annotations

from netlab import TCP_PORT, Lab
from netlab.clients import connect
from tests.e2e.instance import Instance, web


def test_plan_counts_connections_of_one_of_two_listeners_and_of_clients_that_are_denied(
    lab: Lab, instance: Instance
) -> None:
    """Others go to the same target, and are not touched."""
    target = f"{lab.backends[0].ip4}:{TCP_PORT}"
    instance.apply(web(target).replace("port: 80", "port: [80, 81]"))

    def touched(text: str) -> list[tuple[str, int, str]]:
        instance.write(text)
        found = instance.json("plan", status=0)["connections"]
        return [(each["target"], each["connections"], each["fate"]) for each in found]

    kept = [connect(lab.client, (lab.proxy4, port)) for port in (80, 80, 81)]
    fate = "stay where they are until they end"
    assert touched(web(target)) == [(target, 1, fate)]
    deny = "source_routes: [{source: %s/32, action: deny}]\n"
    assert touched(web(target, extra=deny % lab.client4).replace("port: 80", "port: [80, 81]")) == [(target, 3, fate)]
    assert touched(web(target, extra=deny % "192.0.2.66").replace("port: 80", "port: [80, 81]")) == []
    for each in kept:
        each.close()
