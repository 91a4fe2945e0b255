"""``connections``: filtered, counted, printed as they come."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from reconciler import answers
from tests.unit.cli.fakeclient import LINE, FakeClient, run


def test_connections_are_filtered_and_counted(client: FakeClient) -> None:
    client.answer = {"connection_lines": iter([LINE]), "connection_count": 12}
    listed = run("connections", "--proxy", "web", "--target", "10.0.0.1:8080")
    assert client.asked == [("connection_lines", {"proxy": "web", "target": "10.0.0.1:8080"})]
    assert "198.51.100.1:1" in listed.stdout
    assert "4.0 KiB" in listed.stdout
    assert run("connections", "--count").stdout == "12\n"
    assert json.loads(run("connections", "--count", "-o", "json").stdout) == {"count": 12}
    client.answer["connection_lines"] = iter([LINE])
    rows = json.loads(run("connections", "-o", "json").stdout)
    assert list(rows[0]) == [
        *("proxy", "protocol", "client", "listen", "target", "state"),
        *("packets_forward", "bytes_forward", "packets_reverse", "bytes_reverse", "age_sec", "idle_sec"),
    ]


def test_many_connections_are_printed_as_they_come(client: FakeClient) -> None:
    """More than are taken at once, in each format; a later cell may be wider than the column."""
    lines = [LINE.replace(':1"', f':{number}"', 1) for number in range(1, 2502)]
    lines[-1] = lines[-1].replace("web", "a-much-longer-name")
    client.answer = {"connection_lines": iter(())}

    def printed(*words: str, count: int) -> str:
        client.answer["connection_lines"] = iter(lines[:count])
        return run("connections", *words).stdout

    for count in (0, 1, 999, 1000, 1001, 2501):
        expected = list(map(json.loads, lines[:count]))
        assert json.loads(printed("-o", "json", count=count)) == expected
    for count in (0, 1, 1001):
        assert YAML(typ="safe").load(printed("-o", "yaml", count=count)) == list(map(json.loads, lines[:count]))
    rows = [each.split() for each in printed(count=2501).splitlines()]
    assert rows[0][0] == "PROXY"
    assert [row[2] for row in rows[1:]] == [f"198.51.100.1:{number}" for number in range(1, 2502)]
    assert rows[-1][0] == "a-much-longer-name"
    assert rows[1] == [*rows[1500][:2], "198.51.100.1:1", *rows[1500][3:]]


def test_no_connections_of_a_proxy_that_there_is_not(client: FakeClient) -> None:
    client.answer = {
        "connection_lines": iter(()),
        "connection_count": 0,
        "flush_connections": 0,
        "stats": answers.Stats(proxies={"web": answers.ProxyStats(), "dns": answers.ProxyStats()}),
    }
    for words in (["connections"], ["connections", "--count"], ["connections", "flush"]):
        result = run(*words, "--proxy", "wbe", "-o", "json")
        assert result.exit_code == 0
        assert "no live proxy is called 'wbe' (did you mean 'web'?); there are dns, web" in result.stderr
        assert "no live proxy" not in run(*words, "--proxy", "dns").stderr
    assert json.loads(run("connections", "--proxy", "wbe", "-o", "json").stdout) == []


@pytest.mark.parametrize(
    "words",
    [
        ["connections", "--client", "nobody"],
        ["connections", "--client", "10.0.0.0/33"],
        ["connections", "--client", "10.0.0.1:"],
        ["connections", "--target", "nowhere"],
        ["connections", "--count", "--target", "10.0.0.1:0"],
        ["connections", "--sort", "luck"],
        ["connections", "--limit", "-1"],
        ["connections", "--state", "liquid"],
        ["connections", "flush", "--client", "nobody"],
        ["connections", "flush", "--target", ""],
        ["events", "--kind", "BOGUS"],
        ["drain", "nowhere"],
        ["undrain", "10.0.0.1:x"],
    ],
    ids=" ".join,
)
def test_what_can_not_be_meant_is_a_wrong_command_line_with_a_daemon_or_without(
    words: list[str], tmp_path: Path
) -> None:
    result = run("--run-dir", str(tmp_path), *words)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    if "BOGUS" in words:
        assert all(kind in result.stderr for kind in answers.KINDS)
