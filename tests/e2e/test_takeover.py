"""``settings.takeover``: somebody else's XDP program gives way to ours and comes back, whatever happens in between."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from netlab import HTTP_PORT, Lab, wait_for
from reconciler.config.files import parse_sources
from reconciler.errors import TransactionError
from reconciler.kernel import bpf
from reconciler.kernel.gateway import KILLED_STATUS, FaultGateway, Gateway
from tests.e2e.attempts import in_child
from tests.e2e.instance import Instance, web
from tests.e2e.proxyhost import ProxyHost
from tests.e2e.test_coexistence import XDP_PASS, interface, pinned
from tests.e2e.watching import Requests
from tests.thorough import part

KINDS = {"native": "xdpdrv", "generic": "xdpgeneric"}
NUMBERS = {1: "native", 2: "generic"}  # of `ip -json`


def put(lab: Lab, mode: str, name: str = "somebody") -> int:
    """Somebody else's program on eth0, whatever is there; its id. Once it is off the interface nothing of its owner
    keeps it in the kernel."""
    with pinned(bpf.PROG_TYPE_XDP, XDP_PASS, name) as (path, number):
        lab.proxy.run("ip", "-force", "link", "set", "dev", "eth0", KINDS[mode], "pinned", path)
    return number


def there(lab: Lab, name: str = "eth0") -> tuple[str, int] | None:
    """Mode and id of the XDP program on an interface."""
    (link,) = lab.proxy.ip_json("-details", "link", "show", "dev", name)
    found = link.get("xdp")
    return (NUMBERS[found["mode"]], found["prog"]["id"]) if found else None


def settings(mode: str, takeover: bool = True) -> str:
    return f"{{xdp_mode: {mode}, takeover: {str(takeover).lower()}}}"


@pytest.fixture
def emptied(lab: Lab, instance: Instance) -> Iterator[None]:
    """What is on eth0 at the end is somebody else's: it goes, before ours looks whether all is clean."""
    yield
    if instance.daemon and instance.daemon.status is None:
        instance.stop_daemon()
    instance.ctl("down")
    for kind in KINDS.values():
        lab.proxy.run("ip", "link", "set", "dev", "eth0", kind, "off")


@pytest.mark.parametrize(
    ("theirs", "asked", "ours"),
    [
        ("native", "native", "native"),
        ("generic", "generic", "generic"),
        ("generic", "native", "native"),
        ("native", "generic", "generic"),
        ("native", "auto", "native"),  # on a veth, where auto alone would choose TC
    ],
)
@pytest.mark.usefixtures("emptied")
def test_it_gives_way_and_comes_back_on_down(lab: Lab, instance: Instance, theirs: str, asked: str, ours: str) -> None:
    number = put(lab, theirs)
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}", settings=settings(asked)))
    named = f"{theirs} program {number} (somebody, tag "
    assert f"taken_over: {named}" in instance.ctl("plan")
    assert f"+taken_over: {named}" in instance.ctl("diff", status=1)
    (before,) = (each for each in instance.json("interfaces") if each["name"] == "eth0")
    (conflict,) = before["conflicts"]
    assert (conflict["program"]["id"], conflict["gives_way"]) == (number, True)
    instance.ctl("apply", "--yes")
    found = there(lab)
    assert found
    assert found[0] == ours
    assert found[1] != number
    assert Requests(lab).ask() == "backend1"
    status = interface(instance, "eth0")
    assert (status["mode"], status["attached"]) == (ours, True)
    assert f"taken over from {named}" in status["note"]
    (shown,) = (each for each in instance.json("interfaces") if each["name"] == "eth0")
    assert (shown["taken_over"]["id"], shown["taken_over"]["name"]) == (number, "somebody")
    assert len(shown["taken_over"]["tag"]) == 16
    assert shown["conflicts"] == []
    instance.ctl("diff")  # nothing
    assert f"put {named}" in instance.ctl("down")
    assert there(lab) == (theirs, number)
    assert not instance.bpffs_dir.exists()


@pytest.mark.usefixtures("emptied")
def test_it_comes_back_when_the_setting_is_false_again(lab: Lab, instance: Instance) -> None:
    number, target = put(lab, "native"), f"{lab.backends[0].ip4}:{HTTP_PORT}"
    instance.apply(web(target, settings=settings("native")))
    taken = there(lab)
    instance.write(web(target, settings=settings("native", takeover=False)))
    refused = instance.run("apply", "--yes")
    assert refused.returncode == 1
    assert f"eth0 gets native program {number} (somebody" in refused.stderr
    assert there(lab) == taken, "still ours: the files are refused"
    instance.write(web(target, settings=settings("auto", takeover=False)))
    with Requests(lab):
        instance.ctl("apply", "--yes")
    assert there(lab) == ("native", number)
    assert not (instance.bpffs_dir / "foreign").exists()
    assert Requests(lab).ask() == "backend1"


@pytest.mark.usefixtures("emptied")
def test_it_comes_back_when_the_interface_is_no_longer_ours(lab: Lab, instance: Instance) -> None:
    number, text = put(lab, "native"), web(f"{lab.backends[0].ip4}:{HTTP_PORT}", settings=settings("native"))
    instance.apply(text)
    assert there(lab) != ("native", number)
    instance.apply(text.replace("[eth0]", "[eth1]"))
    assert there(lab) == ("native", number)
    assert there(lab, "eth1")


@pytest.mark.usefixtures("emptied")
def test_one_that_takes_our_place_is_taken_over_too(lab: Lab, instance: Instance) -> None:
    first = put(lab, "native")
    instance.write(web(f"{lab.backends[0].ip4}:{HTTP_PORT}", settings=settings("native")))
    instance.start_daemon()
    ours = there(lab)
    with Requests(lab):
        second = put(lab, "native", "another")
        wait_for(lambda: there(lab) == ours, "ours is back")
        instance.wait_synced()
    assert instance.json("status")["drift_repaired"] == 1
    assert f"program {second} (another" in interface(instance, "eth0")["note"]
    lab.proxy.run("ip", "link", "set", "dev", "eth0", "xdpdrv", "off")
    wait_for(lambda: there(lab) == ours, "ours is back")
    instance.wait_synced()
    assert f"program {second} (another" in interface(instance, "eth0")["note"], "it is not forgotten"
    instance.ctl("down")
    assert there(lab) == ("native", second)
    assert first != second


@pytest.mark.usefixtures("emptied")
def test_what_has_our_place_meanwhile_stays(lab: Lab, instance: Instance) -> None:
    first = put(lab, "native")
    instance.apply(web(f"{lab.backends[0].ip4}:{HTTP_PORT}", settings=settings("native")))
    second = put(lab, "native", "another")
    said = instance.ctl("down")
    assert f"native program {first} (somebody, tag " in said
    assert f" is not put back, native program {second} (another, tag " in said
    assert there(lab) == ("native", second)
    assert not instance.bpffs_dir.exists()


# -- whatever happens in between -----------------------------------------------------------------------------------

TEXT = """\
apiVersion: revproxy/v1
settings: {{xdp_mode: {mode}, takeover: {takeover}, max_connections: 1000}}
proxies:
  - name: web
    listen: {{interfaces: [cli], port: 80, protocol: tcp}}
    default_target: {{ip: 10.9.0.1, port: 8080}}
"""
TAKEN, LEFT = TEXT.format(mode="native", takeover="true"), TEXT.format(mode="auto", takeover="false")


class Both:
    """A host with somebody else's program on ``cli``, and commits to and fro between taking it over and not."""

    def __init__(self, host: ProxyHost, mode: str) -> None:
        self.host, self.mode = host, mode
        with pinned(bpf.PROG_TYPE_XDP, XDP_PASS, "somebody") as (path, self.number):
            host.ip(f"link set dev cli {KINDS[mode]} pinned {path}")

    def commit(self, text: str, gateway: Gateway | None = None) -> None:
        with self.host.engine(gateway) as engine:
            engine.commit(engine.view(parse_sources({"all.yaml": text.encode()})))
            assert not engine.observe().unfinished

    def calls(self, text: str) -> list[int]:
        """Numbers of the calls that have to do with somebody else's program, from 1; the commit is carried out."""
        gateway = FaultGateway()
        self.commit(text, gateway)
        words = (
            "attach xdp",
            "detach xdp",
            "put back xdp",
            f"pin program {self.number}",
            f"rename program {self.number}",
            "foreign",
        )
        return [n for n, call in enumerate(gateway.calls, 1) if any(word in " ".join(call) for word in words)]

    def there(self) -> tuple[str, int] | None:
        shown = subprocess.run(["ip", "-details", "link", "show", "cli"], capture_output=True, text=True, check=True)
        words = shown.stdout.split()
        if "prog/xdp" not in words:
            return None
        mode = next(mode for mode, kind in (("native", "xdp"), ("generic", "xdpgeneric")) if kind in words)
        return mode, int(words[words.index("prog/xdp") + 2])

    def pins(self) -> list[Path]:
        return sorted((self.host.places.bpffs_dir / "foreign").glob("*"))


@pytest.fixture(params=["native", "generic"])
def both(request: pytest.FixtureRequest) -> Iterator[Both]:
    with ProxyHost() as host:
        found = Both(host, request.param)
        found.commit(LEFT)
        yield found
        with host.engine() as engine:
            engine.down()


@pytest.mark.parametrize("text", [TAKEN, LEFT], ids=["taken", "put back"])
def test_failing_at_any_call_leaves_it_as_it_was(both: Both, text: str) -> None:
    other = LEFT if text == TAKEN else TAKEN
    both.commit(other)
    calls = both.calls(text)
    assert len(calls) >= 3
    both.commit(other)
    before, pins = both.there(), both.pins()
    for number in calls:
        gateway = FaultGateway(fail_at=number)
        with pytest.raises(TransactionError) as error:
            both.commit(text, gateway)
        where = f"call {number}: {gateway.calls[number - 1]}: {error.value}"
        assert error.value.rolled_back, where
        assert (both.there(), both.pins()) == (before, pins), where


@pytest.mark.parametrize("text", [TAKEN, LEFT], ids=["taken", "put back"])
def test_killed_at_any_call_the_next_start_is_fine(both: Both, text: str) -> None:
    other = LEFT if text == TAKEN else TAKEN
    both.commit(other)
    calls = part(both.calls(text), 2)
    theirs = (both.mode, both.number)
    for number in calls:
        for go_on in (text, other):
            both.commit(other)
            assert in_child(lambda n=number: both.commit(text, FaultGateway(kill_after=n))) == KILLED_STATUS  # type: ignore[misc]
            both.commit(go_on)
            where = f"call {number}, then {go_on}"
            if go_on == LEFT:
                assert (both.there(), both.pins()) == (theirs, []), where
            else:
                found = both.there()
                assert found, where
                assert found[0] == "native", where
                assert found[1] != both.number, where
                assert len(both.pins()) == 1, where
    both.commit(LEFT)
    assert both.there() == theirs


def test_down_after_a_kill_puts_it_back(both: Both) -> None:
    for number in part(both.calls(TAKEN), 2):
        both.commit(LEFT)
        assert in_child(lambda n=number: both.commit(TAKEN, FaultGateway(kill_after=n))) == KILLED_STATUS  # type: ignore[misc]
        with both.host.engine() as engine:
            engine.down()
        assert both.there() == (both.mode, both.number), number
        assert not both.host.places.bpffs_dir.exists(), number
        both.commit(LEFT)
