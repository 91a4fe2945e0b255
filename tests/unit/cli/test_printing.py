"""What people read of diff, plan, status, history and events."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from ruamel.yaml import YAML

from reconciler import answers
from reconciler.answers import Sync
from reconciler.cli import output, top
from reconciler.cli.rates import rates
from tests.unit.cli.fakeclient import CHANGE, ENTRY, PROBLEMS, UNCONFIRMED, FakeClient, run


def test_diff_shows_both_sides_of_an_object(client: FakeClient) -> None:
    client.answer = answers.Difference((CHANGE,), 3)
    assert run("diff").stdout.splitlines() == [
        "# update proxy web",
        "--- live/proxy/web",
        "+++ files/proxy/web",
        "-balance: maglev",
        "+balance: source",
    ]


def test_plan_lists_steps_counts_and_connections(client: FakeClient) -> None:
    client.answer = answers.PlanAnswer(
        (CHANGE,),
        2,
        ("StageProxy a", "Switch 0 -> 1"),
        {"proxy": 1, "control": 1},
        (answers.Touched("web", "10.0.0.1:80", 4, "stay where they are until they end"),),
    )
    output = run("plan").stdout
    assert "~ update proxy web  # a.yaml:3:5" in output
    assert output.index("StageProxy a") < output.index("Switch 0 -> 1")
    assert "1 change, 2 operations: proxy 1, control 1" in output
    assert "live connections of web to 10.0.0.1:80 stay where they are until they end: 4" in output


def test_status_shows_every_error_and_target(client: FakeClient) -> None:
    target = answers.TargetStatus("10.0.0.1:8080", 1, "unchecked", "active", 3)
    client.answer = answers.Status(
        Sync.DEGRADED,
        revision=7,
        interfaces=(
            answers.InterfaceStatus("eth0", "native", True),
            answers.InterfaceStatus("eth9", "off", False, "waiting"),
        ),
        proxies=(answers.ProxyStatus("web", ("192.0.2.1:80/tcp", "192.0.2.1:443/tcp"), ("eth0",), (target,)),),
        errors=PROBLEMS,
    )
    output = run("status").stdout
    for words in (
        "Degraded",
        "a.yaml:3:5: wrong",
        "b.yaml: unreadable",
        "native",
        "waiting",
        "192.0.2.1:443/tcp",
        "10.0.0.1:8080",
    ):
        assert words in output


def test_status_says_what_keeps_the_files_from_being_applied(client: FakeClient) -> None:
    client.answer = answers.Status(
        Sync.OUT_OF_SYNC,
        3,
        differences=2,
        waiting="rolled back to revision 1",
        suspended="2026-01-02",
        unconfirmed=UNCONFIRMED,
        drift_repaired=4,
    )
    text = run("status").stdout
    assert "suspended: since 2026-01-02; `revproxyctl resume`" in text
    assert "confirm:   revision 3 goes back to revision 2 in 29s" in text
    assert "waiting:   rolled back to revision 1" in text
    assert "drift:     4 objects" in text


def test_it_is_told_that_nothing_will_be_rolled_back(client: FakeClient) -> None:
    """Who asked for that may rely on it."""
    client.answer = answers.Applied(3, (), 0, None)
    assert "nothing waits for `revproxyctl confirm`" in run("apply", "--yes", "--confirm-within", "5m").stderr
    assert not run("apply", "--yes").stderr
    client.answer = answers.Applied(3, (CHANGE,), 1, None, unconfirmed=UNCONFIRMED)
    assert "nothing waits" not in run("apply", "--yes", "--confirm-within", "5m").stderr


def test_one_is_told_of_as_one(client: FakeClient) -> None:
    client.answer = answers.Status(Sync.OUT_OF_SYNC, 3, differences=1, drift_repaired=1)
    text = run("status").stdout
    assert "(1 object differs from the files)" in text
    assert "1 object put right" in text
    client.answer = answers.Applied(3, (CHANGE,), 1, None)
    assert run("apply", "--yes").stdout == "applied revision 3: 1 change, 1 operation\n"
    client.answer = {"flush_connections": 1}
    assert run("connections", "flush", "--all").stdout == "1 connection flushed\n"


def test_history_marks_what_is_applied_and_says_why_what_was_refused(client: FakeClient) -> None:
    refused = answers.HistoryEntry(4, "2026-01-03T03:04:05+00:00", "refused", "files", error="a.yaml:1:2: wrong\nmore")
    client.answer = (ENTRY, refused)
    lines = run("history").stdout.splitlines()
    assert [" ".join(line.split()) for line in lines[1:]] == [
        "3* 2026-01-02T03:04:05+00:00 applied rollback to 1 aaaaaaaaaaaa A. U. Thor why a.yaml",
        "4 2026-01-03T03:04:05+00:00 refused files a.yaml:1:2: wrong",
    ]
    assert len(run("history", "-n", "1").stdout.splitlines()) == 2
    assert [each["number"] for each in json.loads(run("history", "-o", "json").stdout)] == [3, 4]


def test_an_apply_to_be_confirmed_says_when_it_goes_back(client: FakeClient) -> None:
    client.answer = answers.Applied(3, (CHANGE,), 2, unconfirmed=UNCONFIRMED)
    result = run("apply", "--confirm-within", "1h30m")
    assert client.asked == [("apply", {"plan": None, "allow_empty": False, "confirm_within_sec": 5400.0})]
    assert "revision 3 goes back to revision 2 at 2026-01-02T03:04:35+00:00" in result.stderr
    assert "goes back" not in result.stdout


def test_a_plan_is_saved_where_it_is_told(client: FakeClient, tmp_path: Path) -> None:
    client.answer = answers.PlanAnswer((CHANGE,), 3)
    out = tmp_path / "plan"
    result = run("plan", "--out", str(out))
    assert client.asked == [("save_plan", {"path": out})]
    assert str(out) in result.stderr
    assert "balance: maglev -> source" in result.stdout


def test_history_fits_a_terminal_of_eighty_columns(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(ENTRY, author="A. U. Thor", message="Move the shop to the new servers", files=("10-shop.yaml",) * 3)
    client.answer = (replace(entry, number=1234, commit="0123456789abcdef" * 2 + "01234567"),)
    monkeypatch.setattr(output, "width", lambda: 80)
    lines = run("history").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 6
    text = " ".join(" ".join(lines).split())
    for word in ("1234", "applied", "git 0123456789ab", "A. U. Thor:", "new servers"):
        assert word in text


def test_events_say_why_they_end(client: FakeClient) -> None:
    ended = "revproxyctl: revproxyd has ended, and its events with it\n"
    for options, said in ((("--follow",), ended), ((), "")):
        client.answer = iter([answers.Event(1, "2026-01-02T03:04:05", "config_applied")])
        result = run("events", *options)
        assert result.exit_code == 0
        assert result.stdout == "2026-01-02T03:04:05 config_applied\n"
        assert result.stderr == said


@pytest.mark.parametrize(
    ("width", "shown"), [(80, "CONNS OPEN/s PKT/s IN/s OUT/s STATE"), (40, "CONNS IN/s STATE"), (24, "CONNS"), (8, "")]
)
def test_top_leaves_columns_out_where_names_would_have_no_room(width: int, shown: str) -> None:
    traffic = {"10.0.0.11:8080": answers.Traffic(connections=12)}
    stats = answers.Stats(proxies={"web": answers.ProxyStats(targets=traffic)})
    target = answers.TargetStatus("10.0.0.11:8080", 1, "unchecked", "active", 12)
    status = answers.Status(Sync.SYNCED, 1, proxies=(answers.ProxyStatus("web", (), (), (target,)),))
    console = Console(width=width, height=24, file=io.StringIO())
    with console.capture() as captured:
        console.print(top.view(console, status, stats, rates(stats, stats, 1.0), top.Wish()))
    _, _, _, heading, _, row, _ = captured.get().splitlines()
    assert heading.removeprefix("PROXY / TARGET").split() == (shown.split() if width > 8 else ["PROXY", "/…"])
    if width > 8:
        assert row.split()[:2] == ["10.0.0.11:8080", *["12"] * ("CONNS" in shown)][:2]


def test_each_time_of_watching_is_a_yaml_document(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that reads the stream has to tell where one ends."""
    times = iter((answers.Stats(connections=1), answers.Stats(connections=2), KeyboardInterrupt()))

    def stats() -> answers.Stats:
        found = next(times)
        if isinstance(found, KeyboardInterrupt):
            raise found
        return found

    monkeypatch.setattr(client, "stats", stats, raising=False)
    ended = run("stats", "--watch", "--interval", "0.1", "--output", "yaml")
    assert ended.exit_code == 130
    assert [each["connections"] for each in YAML(typ="safe", pure=True).load_all(ended.stdout)] == [1, 2]
