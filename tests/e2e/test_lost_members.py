"""An edit at the moment when part of the kernel's own record of a group is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import TypeVar

import numpy as np
import pytest

from reconciler.kernel import layout
from reconciler.kernel.gateway import FaultGateway
from reconciler.runtime import probing
from reconciler.state.objects import Endpoint
from tests.e2e.attempts import SWITCH, parse
from tests.e2e.proxyhost import Decision, Packet, ProxyHost, address
from tests.kernel.kernelmaps import small_arrays

T = TypeVar("T")
FILE = """\
apiVersion: revproxy/v1
settings: {{xdp_mode: native, max_connections: 1000}}
proxies:
  - name: web
    listen: {{interfaces: [cli], port: 80, protocol: tcp}}
    mode: {mode}
    default_target: [{targets}]
"""
TWO = "{ip: 10.9.0.1, port: 8080}, {ip: 10.9.0.2, port: 8080}"
THREE = TWO + ", {ip: 10.9.0.3, port: 8080}"
THIRD = Endpoint(ip_address("10.9.0.3"), 8080)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyHost]:
    monkeypatch.setattr(probing, "FIRST_PORT", 4000)  # the small port map ends at 10000
    with small_arrays(), ProxyHost() as made:
        yield made


@pytest.mark.parametrize("mode", ["dnat", "fullnat"])
def test_an_edit_to_the_members_that_are_left_takes_none_else(host: ProxyHost, mode: str) -> None:
    """The group then looks like the one that is wanted, but for its table."""
    with host.engine() as engine:
        engine.commit(engine.view(parse(FILE.format(mode="dnat", targets=THREE))))
        (group,) = set(engine.observe().allocation.groups.values())
        key = np.zeros(1, layout.group_member_key)
        key["group"], key["target"] = group, engine.observe().allocation.targets["web", THIRD]
        engine.live.maps["group_member"].delete(key)
    first = Packet("cli", ip_address("30.0.0.1"), address("cli", 4), 2000, 80)
    gateway = _JustSwitched(lambda: host.decisions([replace(first, sport=2000 + n) for n in range(60)]))
    with host.engine(gateway) as engine:
        engine.commit(engine.view(parse(FILE.format(mode=mode, targets=TWO))))
        assert engine.view(parse(FILE.format(mode=mode, targets=TWO))).changes == ()
    assert len(gateway.decisions) == 60
    assert {each.kind for each in gateway.decisions} == {"forward"}
    assert {each.target for each in gateway.decisions} == {Endpoint(ip_address(f"10.9.0.{n}"), 8080) for n in (1, 2)}


class _JustSwitched(FaultGateway):
    """Has packets decided at the first call behind the switch."""

    def __init__(self, decide: Callable[[], list[Decision]]) -> None:
        super().__init__()
        self._decide, self.decisions = decide, []

    def call(self, operation: str, subject: str, function: Callable[[], T]) -> T:
        if self.calls and self.calls[-1] == SWITCH and not self.decisions:
            self.decisions = list(self._decide())
        return super().call(operation, subject, function)
