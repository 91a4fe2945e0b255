"""The access log: every connection's end on a line, over rotations and a disk that is full."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netlab import wait_for
from reconciler.daemon import accesslog
from reconciler.daemon.accesslog import AccessLog
from reconciler.errors import RevproxyError
from reconciler.runtime.events import Events


class Ended:
    """A batch of connections that have ended, numbered by their clients' ports."""

    def __init__(self, *ports: int) -> None:
        self._ports = ports

    def __len__(self) -> int:
        return len(self._ports)

    def joined(self, following: Ended) -> Ended:
        return Ended(*self._ports, *following._ports)

    def closed_lines(self, start: int, stop: int) -> list[str]:
        return [
            json.dumps(
                {
                    "time": "2001-09-09T01:46:40.000+00:00",
                    "proxy": "web",
                    "client": f"192.0.2.1:{port}",
                    "reason": "fin",
                }
            )
            + "\n"
            for port in self._ports[start:stop]
        ]


@pytest.fixture
def events() -> Events:
    return Events(batched_memory=2000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def log(file: Path, events: Events) -> Iterator[AccessLog]:
    log = AccessLog(str(file), events)
    log.start()
    yield log
    log.stop()


def lines(file: Path) -> list[dict[str, Any]]:
    """Each whole line; there must be no half one."""
    text = file.read_text() if file.exists() else ""
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def ports(*files: Path) -> list[int]:
    return [int(each["client"].rpartition(":")[2]) for file in files for each in lines(file) if "client" in each]


@pytest.mark.usefixtures("log")
def test_a_line_for_each_end_and_for_nothing_else(file: Path, events: Events) -> None:
    events.publish("config_applied", revision=1)
    events.publish_batch(Ended(1, 2))
    events.publish("events_lost", lost=7, reason="ring_full")
    wait_for(lambda: len(lines(file)) == 3, "three lines")
    assert lines(file)[0] == {
        "time": "2001-09-09T01:46:40.000+00:00",
        "proxy": "web",
        "client": "192.0.2.1:1",
        "reason": "fin",
    }
    assert ports(file) == [1, 2]
    told = lines(file)[2]
    assert (told["lost"], told["reason"]) == (7, "ring_full")
    assert file.stat().st_mode & 0o077 == 0o040 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("how", ["SIGHUP", "renamed", "renamed and made"])
def test_a_rotation_loses_nothing(file: Path, events: Events, log: AccessLog, how: str) -> None:
    before = file.with_suffix(".1")
    for port in range(200):
        events.publish_batch(Ended(port))
        if port == 100:
            file.rename(before)
            if how == "SIGHUP":
                log.reopen()
            if how == "renamed and made":
                file.touch()
                wait_for(lambda: os.path.samestat(os.fstat(log._descriptor), file.stat()), "it to be taken")
            wait_for(file.exists, "a new file")
    wait_for(lambda: len(ports(before, file)) == 200, "all of them")
    assert ports(before, file) == list(range(200))
    assert ports(before)
    assert ports(file)


def test_what_happened_before_it_ended_is_in_it(file: Path, events: Events, log: AccessLog) -> None:
    events.publish_batch(Ended(*range(1000)))
    log.stop()
    assert ports(file) == list(range(1000))


class Disk:
    """Stands between the log and its file: takes so many bytes, then none until there is room."""

    def __init__(self, room: int, write: Callable[[int, bytes], int]) -> None:
        self.room, self._write = room, write

    def write(self, descriptor: int, data: bytes) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = self._write(descriptor, data[: self.room])
        self.room -= taken
        return taken


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("room", [0, 1, 100, 250])
def test_a_full_disk_is_told_of_and_leaves_no_half_line(
    file: Path, events: Events, log: AccessLog, monkeypatch: pytest.MonkeyPatch, room: int, reopened: bool
) -> None:
    """Also where it is opened anew meanwhile, and is the same."""
    disk = Disk(room, os.write)

    class Os:
        write = staticmethod(disk.write)

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

    monkeypatch.setattr(accesslog, "os", Os())
    said: list[str] = []
    monkeypatch.setattr(accesslog._log, "error", lambda event, **_: said.append(event), raising=False)
    for port in range(20):
        events.publish_batch(Ended(port))
        wait_for(lambda: log._number == events.last, "it to be tried")
    if reopened:
        log.reopen()
        wait_for(lambda: not log._reopen.is_set(), "it to be opened anew")
    disk.room = 1 << 20
    events.publish_batch(Ended(20))
    wait_for(lambda: 20 in ports(file), "the last one")
    found = lines(file)
    lost = sum(each.get("lost", 0) for each in found)
    assert len(ports(file)) + lost == 21
    assert {each["reason"] for each in found if "lost" in each} == {"not_written"}
    assert said == ["access_log_not_written"]


def test_a_line_that_an_earlier_daemon_did_not_finish_spoils_no_other(file: Path, events: Events) -> None:
    file.write_text('{"time": "20')
    log = AccessLog(str(file), events)
    log.start()
    events.publish_batch(Ended(1))
    log.stop()
    half, whole = file.read_text().splitlines()
    assert half == '{"time": "20'
    assert json.loads(whole)["client"] == "192.0.2.1:1"


def test_who_is_too_slow_is_told(file: Path, events: Events) -> None:
    log = AccessLog(str(file), events)
    for first in range(0, 5000, 500):
        events.publish_batch(Ended(*range(first, first + 500)))
    log.start()
    log.stop()
    found = lines(file)
    assert found[0]["reason"] == "slow_log"
    assert found[0]["lost"] + len(ports(file)) == 5000


def test_stdout(capfd: pytest.CaptureFixture[str], events: Events) -> None:
    log = AccessLog("-", events)
    log.start()
    events.publish_batch(Ended(5))
    log.stop()
    assert json.loads(capfd.readouterr().out)["client"] == "192.0.2.1:5"


def test_a_file_that_can_not_be_written_is_refused(tmp_path: Path, events: Events) -> None:
    with pytest.raises(RevproxyError, match=r"--access-log .*: Is a directory"):
        AccessLog(str(tmp_path), events).start()
