"""Health: what results make of a target's condition, what a check sends and reads, and when checks are made."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from reconciler.config import parse_sources
from reconciler.config.healthcheck import CheckType, HealthCheck
from reconciler.runtime.health.checker import Checker
from reconciler.runtime.health.condition import UNCHECKED, Condition, Health, after, remembered
from reconciler.runtime.health.probe import judge, request
from reconciler.state.objects import Endpoint, IPAddress

CHECK = HealthCheck(CheckType.HTTP, 80, 1000, 500, 2, 3, "/", ((200, 399),), None, True)
ONE, TWO = (Endpoint(ip_address(f"10.0.0.{n}"), 80) for n in (1, 2))


def run(results: str, condition: Condition = UNCHECKED, check: HealthCheck = CHECK) -> list[str]:
    """Conditions after each result: ``+`` went well, ``-`` failed; as a letter of the health and the quarters."""
    found = []
    for result in results:
        condition = after(condition, check, None if result == "+" else "down")
        found.append(f"{condition.health.value[0]}{condition.quarters}")
    return found


@pytest.mark.parametrize(
    ("results", "conditions"),
    [
        ("+", "h4"),
        ("--+", "u4 u4 h4"),  # unchecked until it is decided
        ("---", "u4 u4 u0"),
        ("+--+--", "h4 h4 h4 h4 h4 h4"),
        ("+---", "h4 h4 h4 u0"),
        ("---+-++", "u4 u4 u0 u0 u0 u0 r1"),
        ("---+++++", "u4 u4 u0 u0 r1 r2 r3 h4"),
        ("---+++-++", "u4 u4 u0 u0 r1 r2 u0 u0 r1"),
    ],
)
def test_thresholds_and_quarters(results: str, conditions: str) -> None:
    assert run(results) == conditions.split()


def test_thresholds_of_one() -> None:
    check = replace(CHECK, healthy_threshold=1, unhealthy_threshold=1)
    assert run("-++++", check=check) == ["u0", "r1", "r2", "r3", "h4"]


def test_what_is_remembered_of_a_former_process() -> None:
    assert remembered(4).health is Health.UNCHECKED
    assert run("++", remembered(0)) == ["u0", "r1"]
    assert run("++", remembered(2)) == ["r3", "h4"]
    assert run("-", remembered(2)) == ["u0"]


def test_the_reason_of_the_last_failure() -> None:
    condition = after(UNCHECKED, CHECK, "connection refused")
    assert condition.reason == "connection refused"
    assert after(condition, CHECK, None).reason == ""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\n", None),
        (b"HTTP/1.0 204\r\nServer: x\r\n", None),
        (b"HTTP/1.1 399 \n", None),
        (b"HTTP/1.1 503 Service Unavailable\r\n", "HTTP status 503"),
        (b"HTTP/1.1 400 Bad Request\r\n", "HTTP status 400"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is no HTTP"),
        (b"HTTP/1.1 20", "the answer is no HTTP"),
        (b"HTTP/2 200\r\n", "the answer is no HTTP"),
        (b"", "connection closed without an answer"),
    ],
)
def test_answers(answer: bytes, reason: str | None) -> None:
    assert judge(answer, CHECK) == reason


@pytest.mark.parametrize(
    ("ip", "port", "check", "host"),
    [
        ("10.0.0.1", 80, CHECK, "10.0.0.1"),
        ("10.0.0.1", 8080, CHECK, "10.0.0.1:8080"),
        ("fd00::1", 8080, CHECK, "[fd00::1]:8080"),
        ("10.0.0.1", 443, replace(CHECK, type=CheckType.HTTPS), "10.0.0.1"),
        ("10.0.0.1", 8080, replace(CHECK, host="www.example.org"), "www.example.org"),
    ],
)
def test_requests(ip: str, port: int, check: HealthCheck, host: str) -> None:
    first, *headers = request(ip_address(ip), port, replace(check, path="/up?x=1")).decode().split("\r\n")
    assert first == "GET /up?x=1 HTTP/1.1"
    assert f"Host: {host}" in headers
    assert "Connection: close" in headers


# -- which target is checked how -------------------------------------------------------------------------------


def checks(text: str) -> dict[str, HealthCheck]:
    (proxy,) = parse_sources({"web.yaml": text.encode()}).proxies
    return {str(endpoint): check for endpoint, check in proxy.checks}


FILE = """\
apiVersion: revproxy/v1
proxies:
  - name: web
    listen: {interfaces: [eth0], port: 81}
    health_check: {type: http, path: /up, expected_codes: [200, 301-302]}
    default_target:
      - {ip: 10.0.0.1, port: 80}
      - {ip: 10.0.0.2}
      - {ip: 10.0.0.3, port: 80, health_check: {type: tcp, port: 9000, interval_ms: 100, on_unhealthy: reset}}
      - {ip: 10.0.0.4, port: 80, health_check: {type: none}}
      - {ip: 10.0.0.5, port: 80, health_check: {type: https, verify: /ca.pem}}
    source_routes:
      - source: 192.0.2.0/24
        target: [{ip: 10.0.0.3, port: 80}, {ip: 10.0.0.6, port: 80}]
"""


def test_a_targets_check_takes_the_place_of_its_proxys() -> None:
    found = checks(FILE)
    assert sorted(found) == ["10.0.0.1:80", "10.0.0.2", "10.0.0.3:80", "10.0.0.5:80", "10.0.0.6:80"]
    assert found["10.0.0.1:80"] == replace(
        CHECK, interval_ms=2000, timeout_ms=1000, path="/up", expected_codes=((200, 200), (301, 302))
    )
    assert found["10.0.0.2"].port == 81, "the only one the proxy listens on"
    three = found["10.0.0.3:80"]
    assert (three.type, three.port, three.interval_ms, three.on_unhealthy) == ("tcp", 9000, 100, "reset")
    assert (found["10.0.0.5:80"].verify, found["10.0.0.5:80"].ca_file) == (True, "/ca.pem")
    assert found["10.0.0.6:80"] == found["10.0.0.1:80"]


# -- when checks are made --------------------------------------------------------------------------------------


class FakeLoop(asyncio.SelectorEventLoop):
    """Its time moves to the next thing that is due whenever there is nothing to do."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        scheduled = self._scheduled  # type: ignore[attr-defined]
        if not self._ready and scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, scheduled[0].when())
        super()._run_once()  # type: ignore[misc]


class Field:
    """Targets that are well or not, a checker, and what it did."""

    def __init__(self) -> None:
        self.loop = FakeLoop()
        self.ill: dict[str, str] = {}
        self.made: list[tuple[float, str, int]] = []
        self.told: list[str] = []
        self.woken: list[float] = []
        self.took_sec = 0.0
        self.checker = Checker(lambda: self.woken.append(self.loop.now), self.change, probe=self.probe, loop=self.loop)

    async def probe(self, ip: IPAddress, port: int, _check: HealthCheck) -> str | None:
        self.made.append((self.loop.now, str(ip), port))
        await asyncio.sleep(self.took_sec)
        if self.ill.get(str(ip)) == "mistake":
            raise ZeroDivisionError
        return self.ill.get(str(ip))

    def change(self, target: Any, _before: Condition, now: Condition) -> None:
        self.told.append(f"{target[0]}/{target[1].ip} {now.health} {now.quarters}")

    def follow(self, *targets: tuple[str, Endpoint], check: HealthCheck = CHECK, known: int = 4) -> None:
        """``known``: the quarters that ONE has in the proxy web, from before."""
        self.checker.follow(dict.fromkeys(targets, check), {("web", ONE): known})

    def pass_time(self, seconds: float) -> list[tuple[float, str, int]]:
        """What was checked meanwhile."""
        before = len(self.made)
        self.loop.run_until_complete(asyncio.sleep(seconds))
        return self.made[before:]


@pytest.fixture
def field() -> Any:
    made = Field()
    yield made
    for task in asyncio.all_tasks(made.loop):
        task.cancel()
    made.loop.run_until_complete(asyncio.sleep(0))
    made.loop.close()


def test_a_target_in_many_proxies_is_checked_once(field: Field) -> None:
    field.ill["10.0.0.1"] = "refused"
    field.follow(("web", ONE), ("api", ONE), ("web", TWO))
    assert len(field.pass_time(3.0)) == 6
    assert field.told[0] == "web/10.0.0.2 healthy 4"
    assert field.told[1:] == ["api/10.0.0.1 unhealthy 0", "web/10.0.0.1 unhealthy 0"]
    found = field.checker.conditions()
    assert {key[0] for key, each in found.items() if each.health is Health.UNHEALTHY} == {"web", "api"}
    # Another way of checking is another check.
    field.checker.follow({("web", ONE): CHECK, ("api", ONE): replace(CHECK, path="/other")}, {})
    assert len(field.pass_time(1.0)) == 2
    assert len(field.pass_time(5.0)) == 10


def test_beginnings_are_spread_over_the_interval(field: Field) -> None:
    targets = [("web", Endpoint(ip_address(f"10.1.{n >> 8}.{n & 255}"), 80)) for n in range(1000)]
    field.follow(*targets)
    made = field.pass_time(1.0)
    assert len({ip for _, ip, _ in made}) == 1000
    tenths = [len(list(group)) for _, group in itertools.groupby(made, lambda each: int(each[0] * 10))]
    assert max(tenths) <= 110
    again = field.pass_time(1.0)
    assert len(again) == 1000
    assert [round(at - 1, 6) for at, _, _ in again] == [round(at, 6) for at, _, _ in made], "each at its own time"


def test_one_check_at_a_time(field: Field) -> None:
    """One that takes longer than the interval puts the next off, and keeps to the rhythm."""
    field.took_sec = 1.5
    field.follow(("web", ONE))
    first, *others = [at for at, _, _ in field.pass_time(9.0)]
    assert [round(at - first, 6) for at in others] == [2.0, 4.0, 6.0, 8.0]


def test_who_acts_on_it_is_told_once_for_many(field: Field) -> None:
    targets = [("web", Endpoint(ip_address(f"10.1.0.{n}"), 80)) for n in range(100)]
    field.ill = {str(endpoint.ip): "refused" for _, endpoint in targets}
    field.follow(*targets)
    field.pass_time(4.0)
    assert len(field.told) == 100
    assert 1 <= len(field.woken) <= 11


def test_what_is_no_longer_wanted_is_not_checked(field: Field) -> None:
    field.follow(("web", ONE), ("web", TWO))
    field.pass_time(2.0)
    field.follow(("web", TWO))
    assert {ip for _, ip, _ in field.pass_time(3.0)} == {"10.0.0.2"}
    assert field.checker.conditions().keys() == {("web", TWO)}
    field.follow()
    assert field.pass_time(3.0) == []


def test_who_is_gone_is_told_of_no_more_though_another_has_the_same_target(field: Field) -> None:
    field.follow(("web", ONE), ("api", ONE))
    field.pass_time(1.0)
    field.follow(("web", ONE))
    field.ill["10.0.0.1"] = "refused"
    field.told.clear()
    field.pass_time(4.0)
    assert field.told == ["web/10.0.0.1 unhealthy 0"]


def test_a_check_that_is_on_its_way_ends_with_its_target(field: Field) -> None:
    field.took_sec = 100
    field.follow(("web", ONE))
    field.pass_time(1.0)
    field.follow()
    field.pass_time(0.0)
    assert len(asyncio.all_tasks(field.loop)) == 0


def test_a_condition_outlives_its_check_and_its_process(field: Field) -> None:
    field.follow(("web", ONE), known=0)
    field.pass_time(1.0)
    assert field.checker.conditions()["web", ONE].health is Health.UNHEALTHY
    field.follow(("web", ONE), check=replace(CHECK, path="/other", interval_ms=100000), known=4)
    field.pass_time(0.0)
    assert field.checker.conditions()["web", ONE] == Condition(Health.UNHEALTHY, 0, 1)


def test_a_mistake_of_ours_takes_nobody_out(field: Field) -> None:
    field.ill["10.0.0.1"] = "mistake"
    field.follow(("web", ONE))
    assert len(field.pass_time(5.0)) == 5
    assert field.checker.conditions()["web", ONE].quarters == 4


def test_an_observer_sees_every_check(field: Field) -> None:
    seen: list[Any] = []
    field.checker.observer = lambda *what: seen.append(what)
    field.ill["10.0.0.1"] = "refused"
    field.follow(("web", ONE), ("api", ONE))
    field.pass_time(3.0)
    assert len(seen) == 3
    endpoint, check, went_well, seconds = seen[0]
    assert (endpoint, check, went_well) == (ONE, CHECK, False)
    assert seconds >= 0
