"""The way to pyroute2: requests as values, answers with types, refusals as errors with the kernel's own words.

pyroute2 encodes, sends, matches answers to requests and decodes. Here is what its versions 0.7 to 0.9 do not agree on
or leave out: which request of several was refused, and dumps that are cut short or change while they are read.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Self

from pyroute2.netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_MULTI,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    NLMSG_MIN_TYPE,
    nlmsg,
)
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nlsocket import NetlinkSocket
from pyroute2.netlink.rtnl import RTM_NEWADDR, RTM_NEWLINK, RTM_NEWQDISC, RTM_NEWROUTE, RTM_NEWTFILTER
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from reconciler.errors import KernelError
from reconciler.kernel.messages import DoneMessage, LinkMessage, TcMessage

ROUTE_FORMATS: Final[Mapping[int, type[nlmsg]]] = {
    RTM_NEWLINK: LinkMessage,
    RTM_NEWADDR: ifaddrmsg,
    RTM_NEWROUTE: rtmsg,
    RTM_NEWQDISC: TcMessage,
    RTM_NEWTFILTER: TcMessage,
}
"""How rtnetlink's answers are read, by type."""

_DUMP_TRIES: Final = 10

Value = int | str | tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One request, in the words of its ``form``. An attribute's value may be a tuple of attributes.

    ``kind`` is the message's type; ``flags`` those besides REQUEST and ACK or DUMP.
    """

    kind: int
    form: type[nlmsg]
    fields: Mapping[str, int] = field(default_factory=dict)
    attributes: tuple[tuple[str, Value], ...] = ()
    flags: int = 0

    def message(self, flags: int) -> nlmsg:
        """A new message of pyroute2's."""
        message = self.form()
        message.update(self.fields)
        message["attrs"] = _attributes(self.attributes)
        message["header"]["type"] = self.kind
        message["header"]["flags"] = self.flags | flags
        return message


def _attributes(attributes: Sequence[tuple[str, Value]]) -> list[tuple[str, Any]]:
    return [(name, {"attrs": _attributes(value)} if isinstance(value, tuple) else value) for name, value in attributes]


class Answer:
    """A decoded message, or attribute that holds attributes. Attributes are decoded when they are asked for."""

    __slots__ = ("_decoded", "_slots")

    def __init__(self, decoded: Mapping[str, Any]) -> None:
        self._decoded = decoded
        self._slots = {slot.name: slot for slot in decoded.get("attrs", ())}

    @property
    def type(self) -> int:
        """The message's type."""
        return int(self._decoded["header"]["type"])

    def field(self, name: str) -> int:
        """A number in the message's fixed part."""
        return int(self._decoded[name])

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    def number(self, name: str, default: int = 0) -> int:
        """An attribute's value; ``default`` without one."""
        return int(self._slots[name].value) if name in self._slots else default

    def text(self, name: str) -> str:
        """An attribute's value; empty without one."""
        value = self._slots[name].value if name in self._slots else ""
        return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

    def data(self, name: str) -> bytes:
        """An attribute's bytes; empty without one."""
        return bytes(self._slots[name].value) if name in self._slots else b""

    def nested(self, name: str) -> Answer:
        """The attributes in an attribute; none without one."""
        return Answer(self._slots[name].value if name in self._slots else {})

    def part(self, name: str, key: str) -> str:
        """A part of an attribute with a structure of its own, as pyroute2 names it; empty without one."""
        return str(self._slots[name].value[key]) if name in self._slots else ""


class Netlink:
    """An open socket, in the network namespace of the thread that opens it, to be used by that thread only.

    A context manager. Requests raise :class:`OSError` with the kernel's errno and, as text, its own explanation if it
    gave one. Waits for the kernel, so it can't be opened in a thread that runs an event loop (:class:`RuntimeError`).
    """

    def __init__(self, family: int = NETLINK_ROUTE, formats: Mapping[int, type[nlmsg]] = ROUTE_FORMATS) -> None:
        _refuse_event_loop()
        self._socket = NetlinkSocket(family=family, ext_ack=True, nlm_generator=False)
        self.read_as(formats)
        self._socket.marshal.fix_message = self._look  # pyroute2's hook: called with every message that arrives
        self._errors: dict[int, OSError] = {}  # by sequence number
        self._dumping = self._interrupted = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def read_as(self, formats: Mapping[int, type[nlmsg]]) -> None:
        """From now on read answers in these forms, by type."""
        self._socket.marshal.msg_map = {**formats, NLMSG_DONE: DoneMessage}

    def get(self, request: Request) -> Answer:
        """Ask for one thing."""
        (outcome,) = self.batch((request,))
        if isinstance(outcome, OSError):
            raise outcome
        if not outcome:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        return outcome[0]

    def change(self, request: Request) -> None:
        """Have one thing done."""
        (outcome,) = self.batch((request,))
        if isinstance(outcome, OSError):
            raise outcome

    def batch(self, requests: Sequence[Request]) -> list[tuple[Answer, ...] | OSError]:
        """Send several requests at once: the kernel handles all of them within one system call.

        A refused one does not stop those after it. Returns, in order, the answers or the error.
        """
        return self._exchange([request.message(NLM_F_REQUEST | NLM_F_ACK) for request in requests])

    def dump(self, request: Request) -> tuple[Answer, ...]:
        """Everything of a kind, all of one moment: read again if it changed meanwhile."""
        for _ in range(_DUMP_TRIES):
            self._dumping = True
            (outcome,) = self._exchange([request.message(NLM_F_REQUEST | NLM_F_DUMP)])
            self._dumping = False
            if isinstance(outcome, OSError):
                raise outcome
            if not self._interrupted:
                return outcome
        raise OSError(errno.EAGAIN, "the state changes faster than it can be read")

    def _exchange(self, messages: Sequence[nlmsg]) -> list[tuple[Answer, ...] | OSError]:
        self._errors.clear()
        self._interrupted = False
        # Not raising, since the error would not tell whose it is: _look notes them.
        decoded = self._socket.nlm_request_batch(messages, noraise=True)
        answers: dict[int, list[Answer]] = {message["header"]["sequence_number"]: [] for message in messages}
        for message in decoded:
            header = message["header"]
            if header["type"] >= NLMSG_MIN_TYPE and header["sequence_number"] in answers:
                answers[header["sequence_number"]].append(Answer(message))
        return [self._errors.get(number) or tuple(found) for number, found in answers.items()]

    def _look(self, message: nlmsg) -> None:
        header = message["header"]
        if self._dumping and header.get("type", 0) >= NLMSG_MIN_TYPE:
            header["flags"] |= NLM_F_MULTI  # without, pyroute2 takes it for the last; the family "netdev" never sets it
        if header.get("flags", 0) & NLM_F_DUMP_INTR:
            self._interrupted = True
            header["flags"] &= ~NLM_F_DUMP_INTR  # pyroute2 0.7 would stop in the middle of the dump
        error = _error(message)
        if error:
            self._errors[header.get("sequence_number", 0)] = error


def _error(message: nlmsg) -> OSError | None:
    """What an acknowledgement, the end of a dump or a message that can't be decoded says; None for success."""
    error = message["header"].get("error")
    if error is not None and not isinstance(error, NetlinkError):
        return OSError(errno.EBADMSG, f"netlink message not understood: {error}")
    code, text = (error.code, message.get_attr("NLMSGERR_ATTR_MSG")) if error is not None else (0, None)
    if not code and message["header"].get("type") in (NLMSG_DONE, NLMSG_ERROR):
        code = abs(message.get("error") or 0)
    return OSError(code, text or os.strerror(code)) if code else None


def _refuse_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("this waits for the kernel: call it from a thread that runs no event loop")


@contextmanager
def asking(
    operation: str, subject: str, family: int = NETLINK_ROUTE, formats: Mapping[int, type[nlmsg]] = ROUTE_FORMATS
) -> Iterator[Netlink]:
    """A socket to ask with. Refusals leave the block as :class:`KernelError` of that operation and subject."""
    try:
        with Netlink(family, formats) as netlink:
            yield netlink
    except OSError as error:
        raise KernelError(operation, subject, error.errno or 0, error.strerror or "") from error
