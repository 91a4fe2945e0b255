"""Talks to the daemon over its unix socket. Imports little: the command line starts with it."""

from __future__ import annotations

import grp
import http.client
import json
import os
import socket
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack
from urllib.parse import urlencode

from reconciler import answers
from reconciler.answers import from_json, to_json
from reconciler.errors import TOLD, ConfigError, DaemonError, LockedError, Problem, RevproxyError
from reconciler.places import READ_SOCKET, SOCKET_PATH_BYTES

if TYPE_CHECKING:
    from reconciler.selection import Filters, Listing

T = TypeVar("T")

_TIMEOUT_SEC = 120.0
_QUICK_SEC = 30.0  # for what needs no work; systemd's watchdog gives a daemon as long
_AGAIN_SEC = 0.02
_HOLD_PAUSE_SEC = 0.1
_CUT = "the list is cut off: is revproxyd ending? ask again"
_BUSY = "it is busy, or hangs: ask again"
_HANGS = "it hangs. Packets go on: kill it, and start it anew"
_UNKNOWN = "whether it did what was asked is not known: see `revproxyctl status`"


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout_sec: float) -> None:
        super().__init__("localhost", timeout=timeout_sec)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        deadline = time.monotonic() + (self.timeout or 0.0)
        while True:
            try:
                self.sock.connect(str(self._path))
            except PermissionError:
                self._read_only()
                return
            except BlockingIOError:  # more than it takes up at once wait already: what a timeout makes of waiting
                if time.monotonic() >= deadline:
                    self.sock.close()
                    raise TimeoutError from None
                time.sleep(_AGAIN_SEC)
            except OSError:
                self.sock.close()
                raise
            else:
                return

    def _read_only(self) -> None:
        """Ask where those may who may only read."""
        try:
            self.sock.connect(str(self._path.with_name(READ_SOCKET)))
        except OSError:
            self.sock.close()
            raise PermissionError from None  # to the one that was meant


class NoDaemonError(DaemonError):
    """Nobody listens on the socket: no daemon runs for this instance."""


class DeniedError(DaemonError):
    """A daemon runs, and this user may not ask it."""


class DaemonClient:
    """The daemon's answers as values. Every method raises :class:`NoDaemonError` if none runs, :class:`ConfigError`
    for wrong files, one of :data:`~reconciler.errors.TOLD` for what that names, and :class:`DaemonError` for everything
    else: all with the daemon's own words."""

    def __init__(self, socket_path: Path, *, timeout_sec: float = _TIMEOUT_SEC) -> None:
        self._path, self._timeout_sec = socket_path, timeout_sec

    def instance(self) -> answers.Instance:
        """Who answers. Quick, whatever the daemon is doing: every command asks this first."""
        quick_sec = min(self._timeout_sec, _QUICK_SEC)
        return self._get(answers.Instance, "/v1/instance", timeout_sec=quick_sec, late=_HANGS)

    def status(self) -> answers.Status:
        """Sync state, interfaces, proxies, errors."""
        return self._get(answers.Status, "/v1/status")

    def diff(self) -> answers.Difference:
        """What differs between the files and the kernel."""
        return self._get(answers.Difference, "/v1/diff")

    def plan(self) -> answers.PlanAnswer:
        """What an apply would do."""
        return self._get(answers.PlanAnswer, "/v1/plan")

    def saved_plan(self) -> answers.SavedPlan:
        """What an apply would do, to be given to :meth:`apply`."""
        return self._get(answers.SavedPlan, "/v1/plan/saved")

    def apply(
        self,
        *,
        allow_empty: bool = False,
        confirm_within_sec: float | None = None,
        plan: answers.SavedPlan | None = None,
    ) -> answers.Applied:
        """Bring the kernel to what the files, or the plan, say, now."""
        body = {
            "allow_empty": allow_empty,
            "confirm_within_sec": confirm_within_sec,
            "plan": plan and to_json(plan),
        }
        return from_json(answers.Applied, self._request("POST", "/v1/apply", body))

    def confirm(self) -> answers.Confirmed:
        """Keep an unconfirmed commit."""
        return from_json(answers.Confirmed, self._request("POST", "/v1/confirm", {}))

    def rollback(self, number: int | None = None) -> answers.Applied:
        """Back to an earlier revision."""
        return from_json(answers.Applied, self._request("POST", "/v1/rollback", {"revision": number}))

    def history(self) -> tuple[answers.HistoryEntry, ...]:
        """Applied and refused revisions, oldest first."""
        return tuple(from_json(answers.HistoryEntry, each) for each in self._request("GET", "/v1/history"))

    def suspend(self) -> answers.Suspension:
        """Stop reconciling."""
        return from_json(answers.Suspension, self._request("POST", "/v1/suspend", {}))

    def resume(self) -> answers.Suspension:
        """Take it up."""
        return from_json(answers.Suspension, self._request("POST", "/v1/resume", {}))

    def connections(self, **how: Unpack[Listing]) -> Iterator[str]:
        """Live connections, each as an object of JSON on one line. The request is made at once."""
        connection, response = self._open("/v1/connections?" + _query(dict(how)))
        return self._array(connection, response)

    def connection_count(self, **filters: Unpack[Filters]) -> int:
        """How many :meth:`connections` would give."""
        return int(self._request("GET", "/v1/connections?" + _query({**filters, "count": True}))["count"])

    def flush(self, **filters: Unpack[Filters]) -> int:
        """Forget connections; how many."""
        return int(self._request("POST", "/v1/connections/flush", dict(filters))["flushed"])

    def events(self, *, follow: bool, kinds: Sequence[str] = (), proxy: str | None = None) -> Iterator[answers.Event]:
        """Events that are remembered or, with ``follow``, those to come, until the daemon ends. The request is made at
        once."""
        query = urlencode([("follow", int(follow)), *(("kind", each) for each in kinds)])
        query += f"&{urlencode({'proxy': proxy})}" if proxy is not None else ""
        connection, response = self._open(f"/v1/events?{query}")
        try:
            if follow:
                with self._explained():
                    response.readline()
        except BaseException:
            connection.close()
            raise
        return self._stream(connection, response)

    def _open(self, path: str) -> tuple[_Connection, http.client.HTTPResponse]:
        """Ask for what comes line by line."""
        connection = _Connection(self._path, self._timeout_sec)
        try:
            with self._explained():
                connection.request("GET", path)
                response = connection.getresponse()
                if response.status >= 400:
                    self._answer(response.status, response.read())
        except BaseException:
            connection.close()
            raise
        return connection, response

    def _array(self, connection: _Connection, response: http.client.HTTPResponse) -> Iterator[str]:
        """The elements of an array that has each on a line of its own, or all on one as older daemons send them."""
        try:
            with self._explained(_CUT):
                line = response.readline().strip()
            if line not in (b"[", b"[]"):
                with self._explained(_CUT):
                    rest = response.read()
                yield from (json.dumps(each, ensure_ascii=False) for each in self._answer(response.status, line + rest))
                return
            while not line.endswith(b"]"):
                with self._explained(_CUT):
                    line = response.readline().strip()
                    if not line:
                        raise ConnectionResetError("no more of it comes")
                if line != b"]":
                    yield line.removesuffix(b",").decode()
        finally:
            connection.close()

    def _stream(self, connection: _Connection, response: http.client.HTTPResponse) -> Iterator[answers.Event]:
        try:
            while True:
                with self._explained():
                    line = response.readline()
                if not line:
                    return
                if line.strip():
                    yield answers.Event.from_json(json.loads(line))
        finally:
            connection.close()

    def stats(self) -> answers.Stats:
        """Counters."""
        return self._get(answers.Stats, "/v1/stats")

    def drain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """No new connections to a target."""
        return from_json(answers.Draining, self._request("POST", "/v1/drain", {"target": target, "proxy": proxy}))

    def undrain(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """New connections to it again."""
        return from_json(answers.Draining, self._request("POST", "/v1/undrain", {"target": target, "proxy": proxy}))

    def draining(self, target: str, *, proxy: str | None = None) -> answers.Draining:
        """How far a drain is."""
        return self._get(answers.Draining, "/v1/drain?" + _query({"target": target, "proxy": proxy}))

    def interfaces(self) -> tuple[answers.InterfaceDetail, ...]:
        """Every interface, with what is attached there."""
        return tuple(from_json(answers.InterfaceDetail, each) for each in self._request("GET", "/v1/interfaces"))

    @contextmanager
    def held(self, seconds: int, *, wait_sec: float = 0.0) -> Iterator[None]:
        """The daemon does not follow the files while the block runs, for so long at most. It applies when asked to.
        Another command that edits is waited for; raises :class:`LockedError` if it is still at it then."""
        token = self._hold(seconds, time.monotonic() + wait_sec)
        try:
            yield
        finally:
            with suppress(RevproxyError):  # it has ended, or will follow the files again when the time is over
                self._request("POST", "/v1/edit/end", {"token": token})

    def _hold(self, seconds: int, until: float) -> str:
        while True:
            try:
                return from_json(answers.EditHold, self._request("POST", "/v1/edit/begin", {"seconds": seconds})).token
            except LockedError:
                if time.monotonic() >= until:
                    raise
                time.sleep(_HOLD_PAUSE_SEC)

    def test(self) -> answers.Tested:
        """The files' tests, run on what packets see now."""
        return self._get(answers.Tested, "/v1/test")

    def explain(
        self, source: str, to: str, *, protocol: str = "tcp", interface: str | None = None
    ) -> answers.Explanation:
        """What the data plane does with such a packet now."""
        query = {"from": source, "to": to, "protocol": protocol, "interface": interface}
        return self._get(answers.Explanation, "/v1/explain?" + _query(query))

    def down(self) -> answers.TakenDown:
        """Take the data plane off and end the daemon."""
        return from_json(answers.TakenDown, self._request("POST", "/v1/down", {}))

    def _get(self, kind: type[T], path: str, *, timeout_sec: float | None = None, late: str = _BUSY) -> T:
        data = self._request("GET", path, timeout_sec=timeout_sec, late=late)
        try:
            return from_json(kind, data)
        except ValueError as error:
            raise DaemonError(f"revproxyd at {self._path} gave an answer of another version: {error}") from error

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_sec: float | None = None,
        late: str = _UNKNOWN,
    ) -> Any:
        timeout_sec = self._timeout_sec if timeout_sec is None else timeout_sec
        connection = _Connection(self._path, timeout_sec)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            with self._explained(late=late, timeout_sec=timeout_sec):
                connection.request(method, path, None if body is None else json.dumps(body), headers)
                response = connection.getresponse()
                status, content = response.status, response.read()
        finally:
            connection.close()
        return self._answer(status, content)

    @contextmanager
    def _explained(
        self, lost: str = _UNKNOWN, *, late: str = _UNKNOWN, timeout_sec: float | None = None
    ) -> Iterator[None]:
        """What goes wrong while talking, in words; ``lost``: what a lost connection means; ``late``: no answer."""
        waited_sec = self._timeout_sec if timeout_sec is None else timeout_sec
        try:
            yield
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
            raise NoDaemonError(f"no revproxyd listens on {self._path}") from error
        except PermissionError as error:
            raise DeniedError(f"{self._path}: permission denied: talking to revproxyd takes {self._who()}") from error
        except TimeoutError as error:
            raise DaemonError(f"revproxyd at {self._path} did not answer within {waited_sec:g} s: {late}") from error
        except (OSError, http.client.HTTPException) as error:
            if len(os.fsencode(self._path)) > SOCKET_PATH_BYTES:
                raise NoDaemonError(f"{self._path}: too long for a unix socket: no revproxyd listens there") from error
            raise DaemonError(
                f"revproxyd at {self._path}: connection lost: {error or type(error).__name__}; {lost}"
            ) from error

    def _who(self) -> str:
        """Who may talk to the daemon."""
        with suppress(OSError, KeyError):  # the directory may not be looked into, or the group has no name
            found = self._path.stat()
            if found.st_mode & stat.S_IWGRP and found.st_gid:
                return f"root, or a member of the group {grp.getgrgid(found.st_gid).gr_name}"
        return "root"

    def _answer(self, status: int, content: bytes) -> Any:
        try:
            data = json.loads(content)
        except ValueError as error:
            raise DaemonError(f"revproxyd at {self._path} answered {status} with something that is no JSON") from error
        if status < 400:
            return data
        problems = [from_json(Problem, each) for each in data.get("problems", ())]
        if problems:
            raise ConfigError(problems)
        text = str(data.get("error", f"HTTP status {status}"))
        if status in (404, 405):
            raise DaemonError(f"revproxyd at {self._path} is of another version than this program: {text}")
        raise TOLD.get(str(data.get("kind")), DaemonError)(text)


def _query(values: Mapping[str, Any]) -> str:
    flags = {key: ("1" if value else "0") if isinstance(value, bool) else value for key, value in values.items()}
    return urlencode({key: value for key, value in flags.items() if value is not None})
