"""What went wrong, as an answer: ``{"error": text, "problems": [...], "kind": name}`` with a status code that says
whose fault it is. ``kind`` names the exception, of :mod:`reconciler.errors`, or is RequestError (there is no such
request) or InternalError."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from reconciler.answers import to_json
from reconciler.errors import (
    TOLD,
    CapacityError,
    CompileError,
    ConfigError,
    ForeignProgramError,
    HostError,
    KernelError,
    LockedError,
    NothingToConfirmError,
    RevproxyError,
    StaleError,
    TransactionError,
    UnfinishedError,
)
from reconciler.runtime.logger import Logger
from reconciler.trouble import explained

_log = Logger("api")


def answer(error: str, kind: str, status: int, problems: Any = ()) -> web.Response:
    """The answer that says so."""
    return web.json_response({"error": error, "problems": to_json(problems), "kind": kind}, status=status)


def of(error: RevproxyError) -> web.Response:
    """The answer to this error."""
    problems = error.problems if isinstance(error, ConfigError) else ()
    return answer(str(error), _kind_of(error), _status_of(error), problems)


def _status_of(error: RevproxyError) -> int:
    """The HTTP status that says whose fault it is."""
    if isinstance(error, ConfigError):
        return 422
    if isinstance(error, (LockedError, StaleError, ForeignProgramError, NothingToConfirmError)):
        return 409
    if isinstance(error, CapacityError):
        return 507
    if isinstance(error, (KernelError, HostError, CompileError, TransactionError, UnfinishedError)):
        return 503 if error.transient else 500
    return 400


def _kind_of(error: RevproxyError) -> str:
    """The name in :data:`~reconciler.errors.TOLD` that the client knows it by, else its own."""
    return next((each.__name__ for each in type(error).__mro__ if each.__name__ in TOLD), type(error).__name__)


@web.middleware
async def as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Makes an answer of whatever a handler raises."""
    try:
        return await handler(request)
    except RevproxyError as error:
        return of(error)
    except web.HTTPException as error:
        return answer(f"{request.method} {request.path}: {error.reason}", "RequestError", error.status)
    except ConnectionError:
        raise  # nobody is there to be told
    except OSError as error:
        trouble = explained(error)
        _log.error("request_failed", method=request.method, path=request.path, error=str(trouble))
        return of(trouble)
    except Exception as error:  # the last resort: a mistake of ours must not look like a broken connection
        reference = secrets.token_hex(4)
        _log.exception("request_failed", reference=reference, method=request.method, path=request.path)
        text = f"internal error {reference} ({type(error).__name__}: {error}); revproxyd's log has more"
        return answer(text, "InternalError", 500)
