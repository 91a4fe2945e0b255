"""Edit after edit in a large file, and in a small one: what is parsed in parts is what parsing all of it gives, places
included."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from reconciler.config import files, patch
from reconciler.config.model import Config
from reconciler.errors import ConfigError
from tests.thorough import examples

ROUTES = 700


def item(chance: random.Random, number: int) -> str:
    source = f"20.{number >> 8 & 255}.{number & 255}.0/24"
    target = f"10.0.0.{chance.randint(1, 5)}"
    return chance.choice(
        (
            f"      - source: {source}\n        target: {{ip: {target}, port: 8080}}\n",
            f"      - source: {source}\n        target: {{ip: {target}}}\n",
            f"      # why\n      - {{source: {source}, target: {{ip: {target}, port: {chance.randint(1, 99)}}}}}\n",
            f"      - source: {source}\n        action: deny\n",
            f"      - source: {source}\n        target:\n        - {{ip: {target}}}\n        - {{ip: 10.0.0.9}}\n\n",
        )
    )


def head(name: str, port: int, more: str = "") -> str:
    return (
        f"  - name: {name}\n    listen: {{interfaces: [eth0], port: {port}}}\n{more}"
        "    default_target: {ip: 10.0.0.1, port: 80}\n    source_routes:\n"
    )


class Writer:
    """Two proxies with so many routes each, and edits of these."""

    def __init__(self, chance: random.Random, routes: int) -> None:
        self.chance, self._next, self._least = chance, 2 * routes, routes // 2
        self.items = [[item(chance, number) for number in range(first, first + routes)] for first in (0, routes)]
        self.end = ""

    def text(self) -> bytes:
        one, two = ("".join(items) for items in self.items)
        return f"apiVersion: revproxy/v1\nproxies:\n{head('a', 80)}{one}{head('b', 81)}{two}{self.end}".encode()

    def edit(self) -> None:
        items = self.chance.choice(self.items)
        place = self.chance.choice((0, self.chance.randrange(len(items)), len(items)))
        self._next += 1
        match self.chance.randrange(4):
            case 0:
                items.insert(place, item(self.chance, self._next))
            case 1 if len(items) > self._least:
                del items[place - 1 : place + self.chance.randrange(2)]
            case 2:
                items[place - 1 : place + 1] = [item(self.chance, self._next)]
            case _:
                items[place - 1] = items[place - 1].replace("10.0.0.", "10.0.1.")


def everything(config: Config) -> str:
    """Also what comparing leaves out."""
    counted = [sorted((str(each), count) for each, count in proxy.endpoints.items()) for proxy in config.proxies]
    return f"{config!r} {counted}"


@pytest.mark.parametrize("routes", [20, ROUTES])
@pytest.mark.parametrize("seed", range(examples(4)))
def test_edits_give_what_a_fresh_reading_gives(
    tmp_path: Path, seed: int, routes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[bool] = []
    whole = patch.patched

    def counted(*arguments: object) -> object:
        found = whole(*arguments)  # type: ignore[arg-type]
        parts.append(found is not None)
        return found

    monkeypatch.setattr(patch, "patched", counted)
    cache, writer = files.Cache(), Writer(random.Random(seed), routes)
    for _ in range(25):
        (tmp_path / "a.yaml").write_bytes(writer.text())
        found, fresh = files.load(tmp_path, cache), files.load(tmp_path)
        assert everything(found) == everything(fresh)
        for _ in range(writer.chance.choice((1, 1, 1, 3))):
            writer.edit()
    assert sum(parts) > len(parts) // 2, parts  # the edits at both ends of the file are not the only ones left


def large(*items: str, more: str = "", end: str = "") -> bytes:
    filler = "".join(item(random.Random(1), number) for number in range(ROUTES))
    return f"apiVersion: revproxy/v1\nproxies:\n{head('a', 80, more)}{filler}{''.join(items)}{end}".encode()


def listening(*items: str) -> bytes:
    return large(*items).replace(b"port: 80}", b"port: 80, addresses: [192.0.2.1]}", 1)


LAST = "      - source: 30.0.0.0/8\n        target: {ip: 10.0.0.1}\n"
OTHER = LAST.replace("30", "31")
LAST6 = "      - source: fd30::/16\n        target: {ip: fd00::1}\n"
BEHIND = (
    "  - name: b\n    listen: {interfaces: [eth1], port: 80, addresses: [10.0.0.7]}\n"
    "    default_target: {ip: 10.0.0.1, port: 80}\n"
)
TESTS = "tests:\n  - {from: 30.1.2.3, to: '192.0.2.1:80', expect: {target: 10.0.0.1}}\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(large(LAST), large(LAST.replace("30.", "20.0.0.0/24 #")), id="the same source twice"),
        pytest.param(large(LAST), large(LAST.replace("ip:", "pi:")), id="unknown key"),
        pytest.param(large(LAST), large(LAST.replace("}", "")), id="open bracket"),
        pytest.param(large(LAST), large(LAST.replace("/8", "/7")), id="host bits"),
        pytest.param(large(LAST), large(LAST.replace("10.0.0.1", "fd00::1")), id="other family"),
        pytest.param(large(LAST), large(LAST.replace("{ip", "&a {ip")), id="anchor"),
        pytest.param(large(LAST), large(LAST + "    mode: dnat\n"), id="a key behind"),
        pytest.param(large(LAST), large(LAST + "tests:\n  - 1\n"), id="tests behind"),
        pytest.param(
            large(LAST, end="tests: []\n"), large(LAST, LAST.replace("30", "31"), end="tests: []\n"), id="tests"
        ),
        pytest.param(large(LAST), large(LAST + "---\n"), id="a second document"),
        pytest.param(large(LAST), large(LAST.replace("10.0.0.1", "'10.0.0.1")), id="open quote"),
        pytest.param(
            large(LAST, more="    health_check: {type: tcp, port: 1}\n"),
            large(LAST.replace("0.0.1", "0.0.8"), more="    health_check: {type: tcp, port: 1}\n"),
            id="checked targets",
        ),
        pytest.param(
            large(LAST, end="    mode: dnat\n"),
            large(LAST + LAST.replace("30", "31"), end="    mode: dnat\n"),
            id="own key",
        ),
        pytest.param(
            large(LAST, LAST6), large(LAST.replace("10.0.0.1", "fd00::1"), LAST6), id="other family, of others' targets"
        ),
        pytest.param(listening(LAST), listening(LAST, LAST6), id="a family that nothing listens in"),
        pytest.param(listening(LAST), listening(LAST.replace("10.0.0.1", "192.0.2.1")), id="its own listener"),
        pytest.param(
            large(LAST, end=BEHIND), large(LAST.replace("10.0.0.1", "10.0.0.7"), end=BEHIND), id="another's listener"
        ),
        pytest.param(
            large(LAST, OTHER, end=BEHIND + TESTS),
            large(LAST.replace("8\n", "8\n\n"), OTHER, end=BEHIND + TESTS),
            id="tests, further down",
        ),
        pytest.param(
            large(LAST),
            large(LAST.replace("0.1}", "0.1, port: 1, health_check: {type: tcp}}")),
            id="a target with a check",
        ),
        pytest.param(large(LAST), large(), id="the last one gone"),
        pytest.param(large(), large(LAST), id="one more"),
        pytest.param(large(LAST), large(LAST.replace("8\n", "8\n\n\n")), id="blank lines"),
        pytest.param(large(LAST), large(LAST.rstrip()), id="no line's end"),
    ],
)
def test_edit_is_judged_as_by_a_fresh_reading(tmp_path: Path, before: bytes, after: bytes) -> None:
    def outcome(cache: files.Cache | None) -> str:
        try:
            return everything(files.load(tmp_path, cache))
        except ConfigError as error:
            return str(error)

    cache = files.Cache()
    (tmp_path / "a.yaml").write_bytes(before)
    outcome(cache)
    (tmp_path / "a.yaml").write_bytes(after)
    assert outcome(cache) == outcome(None)


def test_an_anchor_that_came_by_an_edit_is_missed_when_it_goes(tmp_path: Path) -> None:
    cache = files.Cache()
    anchor = LAST.replace("{", "&it {")
    rest = (LAST.replace("30.", "31."), "      - source: 32.0.0.0/8\n        target: *it\n")
    for items in ((LAST, rest[0]), (anchor, *rest)):
        (tmp_path / "a.yaml").write_bytes(large(*items))
        files.load(tmp_path, cache)
    (tmp_path / "a.yaml").write_bytes(large(*rest))
    with pytest.raises(ConfigError, match=r"the alias '\*it' has no anchor"):
        files.load(tmp_path, cache)


def test_an_edit_keeps_what_it_does_not_touch(tmp_path: Path) -> None:
    """What follows need not look at them."""
    cache = files.Cache()
    (tmp_path / "a.yaml").write_bytes(large(LAST))
    before = files.load(tmp_path, cache).proxies[0].source_routes
    (tmp_path / "a.yaml").write_bytes(large(LAST.replace("0.0.1", "0.0.2")))
    after = files.load(tmp_path, cache).proxies[0].source_routes
    assert before.common_ends(after) == (len(before) - 1, 0)
    assert [*after.leads()][:-1] == [*before.leads()][:-1]
    assert before[-1] != after[-1]
