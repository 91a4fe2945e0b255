"""``tests:``: what packets should meet. Built from a checked tree, and held against the proxies of all files as far as
that can be done without a kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from collections.abc import Mapping as Names
from typing import Any, Final

from reconciler.config import schema
from reconciler.config.check import problem
from reconciler.config.document import Document, Mapping
from reconciler.config.formats import Formats
from reconciler.config.messages import hint, path_text
from reconciler.config.model import Expectation, Fragment, PacketTest, Proxy
from reconciler.config.notation import line_column
from reconciler.config.place import Place
from reconciler.errors import Problem
from reconciler.state.objects import Endpoint, Protocol

DENY: Final = "deny"
PASS: Final = "pass"
Targets = Names[str, frozenset[Endpoint]]
"""Of every proxy, by its name."""


def build(document: Document, formats: Formats, checker: schema.Checker, trees: Any) -> list[PacketTest]:
    """The tests of one file; one that does not satisfy the schema is left out, and has been told of."""
    holds = [(index, tree) for index, tree in enumerate(trees) if checker.holds("test", tree)]
    return [_build(document, formats, index, tree) for index, tree in holds]


def _build(document: Document, formats: Formats, index: int, tree: Mapping) -> PacketTest:
    def place(at: int) -> Place:
        return Place(document.file, *line_column(at))

    expect: Mapping = tree["expect"]
    key = next(iter(expect))
    test = PacketTest(
        source=Endpoint(formats.address(tree["from"]), tree.get("source_port", schema.default("test", "source_port"))),
        destination=formats.endpoint(tree["to"]),
        protocol=Protocol(tree.get("protocol", schema.default("test", "protocol"))),
        interface=tree.get("interface"),
        expect=Expectation(
            target=formats.endpoint(expect["target"]) if "target" in expect else None,
            proxy=expect.get("proxy"),
            action=expect.get("action"),
        ),
        path=path_text(("tests", index)),
        place=place(tree.at),
        interface_place=place(tree.value_at("interface")) if "interface" in tree else place(tree.at),
        expect_place=place(expect.value_at(key)),
    )
    if test.source.ip.version != test.destination.ip.version:
        text = f"'from' is IPv{test.source.ip.version}, 'to' is IPv{test.destination.ip.version}"
        document.problem(tree.value_at("to"), text, f"{test.path}.to")
    return test


# -- against the proxies of all files -------------------------------------------------------------------------


def across(fragments: Sequence[Fragment]) -> Iterator[Problem]:
    """Tests that name what no file has, or that can't hold whatever the host is like."""
    tests = [test for fragment in fragments for test in fragment.tests]
    if not tests:
        return
    proxies = [proxy for fragment in fragments for proxy in fragment.proxies]
    names = [name for fragment in fragments for name, _, _ in fragment.names]
    if {proxy.name for proxy in proxies} != set(names):
        # A proxy is wrong, and its error is the one to mend first.
        yield from (found for test in tests for found in _unnamed(test, names))
        return
    targets = {proxy.name: frozenset(proxy.endpoints) for proxy in proxies}
    for test in tests:
        yield from _against(test, proxies, names, targets)


def _against(test: PacketTest, proxies: Sequence[Proxy], names: Sequence[str], targets: Targets) -> Iterator[Problem]:
    expect = test.expect
    unnamed = list(_unnamed(test, names))
    if unnamed:
        yield from unnamed
        return
    wanted, port = expect.target, test.destination.port
    if wanted is not None and not any(_has(each, wanted, port) for each in targets.values()):
        known = sorted({str(each) for found in targets.values() for each in found})
        text = f"no proxy has the target {wanted}{hint(str(wanted), known)}"
        yield problem(test.expect_place, f"{test.path}.expect.target", text)
        return
    if expect.action == PASS:
        return
    yield from _unheard(test, proxies, targets)


def _unnamed(test: PacketTest, names: Sequence[str]) -> Iterator[Problem]:
    """It expects a proxy that no file has."""
    wanted = test.expect.proxy
    if wanted is not None and wanted not in names:
        text = f"there is no proxy {wanted!r}{hint(wanted, names)}"
        yield problem(test.expect_place, f"{test.path}.expect.proxy", text)


def _unheard(test: PacketTest, proxies: Sequence[Proxy], targets: Targets) -> Iterator[Problem]:
    """A packet that no proxy takes, or none of those that could do what is expected."""
    interfaces = sorted({name for proxy in proxies for name in proxy.listen.interfaces})
    if test.interface is not None and test.interface not in interfaces:
        text = f"no proxy listens on the interface {test.interface!r}{hint(test.interface, interfaces)}"
        yield problem(test.interface_place, f"{test.path}.interface", text)
        return
    expect, wanted, port = test.expect, test.expect.target, test.destination.port
    heard = [proxy for proxy in proxies if _listens(proxy, test)]
    where = f"{test.destination}/{test.protocol}" + (f" of {test.interface}" if test.interface else "")
    if not heard:
        yield problem(test.place, f"{test.path}.to", f"no proxy listens on {where}")
    elif expect.proxy is not None and all(proxy.name != expect.proxy for proxy in heard):
        others = " and ".join(repr(proxy.name) for proxy in heard)
        text = f"the proxy {expect.proxy!r} does not listen on {where}: {others} may"
        yield problem(test.expect_place, f"{test.path}.expect.proxy", text)
    elif wanted is not None and not any(_has(targets[proxy.name], wanted, port) for proxy in heard):
        others = " and ".join(repr(proxy.name) for proxy in heard)
        text = f"the target {wanted} is none of {others}, which listens on {where}"
        yield problem(test.expect_place, f"{test.path}.expect.target", text)


def _listens(proxy: Proxy, test: PacketTest) -> bool:
    """Whether it may: without addresses, that is the host's to say."""
    listen = proxy.listen
    return (
        listen.protocol is test.protocol
        and test.destination.port in listen.ports
        and (test.interface is None or test.interface in listen.interfaces)
        and (not listen.addresses or test.destination.ip in listen.addresses)
    )


def _has(targets: Set[Endpoint], expected: Endpoint, port: int) -> bool:
    """Whether one of the targets, for a packet to ``port``, is the one expected."""
    if expected.port:
        return expected in targets or (expected.port == port and Endpoint(expected.ip, 0) in targets)
    return any(target.ip == expected.ip for target in targets)
