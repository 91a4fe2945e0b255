"""The requests that the unix socket takes, as data: the server is built from this, and the OpenAPI document is made of
it. Methods say who may: whoever may only read may GET."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from reconciler import answers
from reconciler.answers import KINDS
from reconciler.state.selection import SORTS, STATES

MAX_BODY_BYTES: Final = 64 * 1024
MAX_PLAN_BYTES: Final = 256 << 20
"""A saved plan holds the files it was made of."""
MAX_EDIT_SEC: Final = 300
DOCUMENT: Final = "/openapi.json"

Kind = Literal["string", "integer", "number", "boolean", "object"]


@dataclass(frozen=True, slots=True)
class Value:
    """A parameter of the query or a key of the body. In a query a boolean is 0 or 1. ``nullable``: null is as good as
    left out. ``repeated``: a parameter that may be given several times."""

    kind: Kind
    description: str
    required: bool = False
    nullable: bool = False
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """One request. ``name``: of the server's handler and of the operation; ``answer``: a type of
    :mod:`reconciler.answers`, a tuple or union of them, or None for an empty object; ``lines``: that on each line."""

    method: Literal["GET", "POST"]
    path: str
    name: str
    summary: str
    answer: Any
    query: Mapping[str, Value] = field(default_factory=dict)
    body: Mapping[str, Value] = field(default_factory=dict)
    max_bytes: int = MAX_BODY_BYTES
    lines: bool = False


def _filters(nullable: bool) -> dict[str, Value]:
    return {
        "proxy": Value("string", "Only of this proxy.", nullable=nullable),
        "target": Value("string", "Only to this target: IP[:PORT].", nullable=nullable),
        "client": Value("string", "Only from this client: IP[:PORT], or a network.", nullable=nullable),
        "state": Value("string", "Only in this state.", nullable=nullable, choices=STATES),
    }


_DRAIN: Final = {
    "target": Value("string", "IP:PORT, or IP for each of its ports.", required=True),
    "proxy": Value("string", "Only in this proxy, instead of in every one.", nullable=True),
}
_LIMIT: Final = (1 << 53) - 1  # the largest that every JSON reader keeps exact

ROUTES: Final = (
    Route("GET", DOCUMENT, "document", "This document.", dict[str, Any]),
    Route("GET", "/v1/instance", "instance", "The daemon that answers; at once, whatever it does.", answers.Instance),
    Route("GET", "/v1/status", "status", "Sync state, interfaces, proxies, errors.", answers.Status),
    Route("GET", "/v1/diff", "diff", "What differs between files and kernel.", answers.Difference),
    Route("GET", "/v1/plan", "plan", "What an apply would do.", answers.PlanAnswer),
    Route("GET", "/v1/plan/saved", "saved_plan", "The same, to be given to apply.", answers.SavedPlan),
    Route(
        "POST",
        "/v1/apply",
        "apply",
        "Bring the kernel to what the files, or the plan, say: all or nothing.",
        answers.Applied,
        body={
            "allow_empty": Value("boolean", "Also files without a proxy while some are live."),
            "confirm_within_sec": Value(
                "number",
                "Roll back unless confirmed within so many seconds, seven days at most.",
                nullable=True,
                minimum=1,
                maximum=7 * 86400,
            ),
            "plan": Value("object", "What /v1/plan/saved gave.", nullable=True),
        },
        max_bytes=MAX_PLAN_BYTES,
    ),
    Route("POST", "/v1/confirm", "confirm", "Keep an unconfirmed apply.", answers.Confirmed),
    Route(
        "POST",
        "/v1/rollback",
        "rollback",
        "Back to an earlier applied revision.",
        answers.Applied,
        body={
            "revision": Value(
                "integer",
                "Its number; left out: the one before.",
                nullable=True,
                minimum=1,
                maximum=_LIMIT,
            )
        },
    ),
    Route(
        "GET",
        "/v1/history",
        "history",
        "Revisions applied and refused, oldest first.",
        tuple[answers.HistoryEntry, ...],
    ),
    Route("POST", "/v1/suspend", "suspend", "Stop reconciling.", answers.Suspension),
    Route("POST", "/v1/resume", "resume", "Take reconciling up.", answers.Suspension),
    Route("GET", "/v1/test", "test", "Run the files' tests on what packets see now.", answers.Tested),
    Route(
        "GET",
        "/v1/explain",
        "explain",
        "What becomes of such a packet now.",
        answers.Explanation,
        query={
            "from": Value("string", "The client: IP or IP:PORT.", required=True),
            "to": Value("string", "IP:PORT.", required=True),
            "protocol": Value("string", "By default tcp.", choices=("tcp", "udp")),
            "interface": Value("string", "By which it comes in; left out: by the one that it would."),
        },
    ),
    Route(
        "GET",
        "/v1/connections",
        "connections",
        "Live connections, or how many there are.",
        tuple[answers.Connection, ...] | answers.ConnectionCount,
        query={
            **_filters(nullable=False),
            "sort": Value("string", "By default age; the largest first of numbers.", choices=SORTS),
            "limit": Value("integer", "At most so many, the first of that order.", minimum=0, maximum=_LIMIT),
            "count": Value("boolean", "Only how many."),
        },
    ),
    Route(
        "POST",
        "/v1/connections/flush",
        "flush",
        "Forget connections: their next packets are decided anew.",
        answers.Flushed,
        body=_filters(nullable=True),
    ),
    Route("GET", "/v1/stats", "stats", "Totals, per proxy, per target, drops by reason.", answers.Stats),
    Route(
        "GET",
        "/v1/events",
        "events",
        "What happened lately, or what happens: an object a line; an empty line is a sign of life.",
        answers.Event,
        query={
            "follow": Value("boolean", "Those to come, until the daemon ends, instead of those remembered."),
            "kind": Value("string", "Only of these kinds.", choices=KINDS, repeated=True),
            "proxy": Value("string", "Only of this proxy."),
        },
        lines=True,
    ),
    Route("GET", "/v1/drain", "draining", "How far a drain is.", answers.Draining, query=_DRAIN),
    Route("POST", "/v1/drain", "drain", "No new connections to a target.", answers.Draining, body=_DRAIN),
    Route("POST", "/v1/undrain", "undrain", "New connections to it again.", answers.Draining, body=_DRAIN),
    Route(
        "GET",
        "/v1/interfaces",
        "interfaces",
        "Every interface, with what is attached there.",
        tuple[answers.InterfaceDetail, ...],
    ),
    Route(
        "POST",
        "/v1/edit/begin",
        "begin_edit",
        "Don't follow the files until end, or for so long.",
        answers.EditHold,
        body={"seconds": Value("integer", "How long at most.", required=True, minimum=1, maximum=MAX_EDIT_SEC)},
    ),
    Route(
        "POST",
        "/v1/edit/end",
        "end_edit",
        "Follow them again.",
        None,
        body={"token": Value("string", "What begin gave.", required=True)},
    ),
    Route("POST", "/v1/down", "down", "Take everything out of the kernel, and end the daemon.", answers.TakenDown),
)
