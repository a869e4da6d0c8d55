"""Errors: what a client is told of each, and how OpenAI words that."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping

import msgspec
from starlette.exceptions import HTTPException

from sapwood.base.errors import (
    DeadlinePassed,
    EngineDead,
    GenerationFailed,
    LimitReached,
    Overloaded,
    RequestError,
    Stopping,
)

log = logging.getLogger(__name__)


OVERLOADED = "overloaded_error"
"""The kind of the problem that there are too many requests."""


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


class Problem(msgspec.Struct):
    """An error as a client is to hear of it; an `Envelope` words it.

    Attributes:
        status: Of the response, where the error is one.
        kind: Of the error, as OpenAI names them.
        param: The field that is wrong.
        code: What went wrong, for programs.
    """

    status: int
    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = {}


Envelope = Callable[[Problem, str], bytes]
"""Words an error, given the request's id too, as JSON."""


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct):
    error: ErrorBody


def openai_envelope(told: Problem, request_id: str) -> bytes:
    """{"error": {message, type, param, code}}, as OpenAI has it; whoever has no envelope of their own has this."""
    return msgspec.json.encode(ErrorEnvelope(ErrorBody(told.message, told.kind, told.param, told.code)))


def retry_header(seconds: float) -> dict[str, str]:
    """When to try again, in whole seconds."""
    return {"retry-after": str(max(math.ceil(seconds), 1))}


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def problem(error: Exception) -> Problem:
    """What a client is told of `error`. What was not raised on purpose is logged here and told as 'internal error'."""
    match error:
        case RequestError():
            # What is left of a body that was refused is not worth reading, and could be endless.
            headers = {"connection": "close"} if error.status == 413 else {}
            if isinstance(error, LimitReached):
                headers = retry_header(error.retry_after or 1.0)
            kind = _TYPES.get(error.status, "invalid_request_error")
            return Problem(error.status, kind, str(error), error.param, error.code, headers)
        case Overloaded():
            message = str(error) or "Too many requests are waiting."
            headers = retry_header(error.retry_after or 1.0)
            return Problem(503, OVERLOADED, message, code="overloaded", headers=headers)
        case Stopping():
            headers = retry_header(error.retry_after or 1.0) | {"connection": "close"}
            return Problem(503, OVERLOADED, "The server is stopping.", code="stopping", headers=headers)
        case DeadlinePassed():
            # Clients that try again by themselves are told not to: who has set the deadline has no use for it.
            headers = {"x-should-retry": "false"}
            return Problem(504, "timeout_error", str(error), code="deadline_exceeded", headers=headers)
        case EngineDead():
            headers = {} if error.retry_after is None else retry_header(error.retry_after)
            message = str(error) or "The engine has stopped."
            return Problem(503, "server_error", message, code="engine_dead", headers=headers)
        case GenerationFailed():
            return Problem(500, "server_error", str(error), code="generation_failed")
        case HTTPException():
            kind = (
                "server_error" if error.status_code >= 500 else _TYPES.get(error.status_code, "invalid_request_error")
            )
            return Problem(error.status_code, kind, error.detail, headers=dict(error.headers or {}))
        case ClientGone():
            return Problem(499, "client_closed_request", "The client closed the connection.")
        case _:
            log.error("unexpected error in a request", exc_info=error)
            return Problem(500, "server_error", "Internal server error; the log has the details.")


def named(error: HTTPException, method: str, path: str) -> HTTPException:
    """The same error of routing, saying what was asked for."""
    match error.status_code:
        case 404:
            detail = f"No such path: {path}."
        case 405:
            detail = f"{method} is not allowed on {path}."
        case _:
            return error
    return HTTPException(error.status_code, detail, error.headers)


def unsupported(name: str, instead: str = "") -> RequestError:
    """A field that would change the result and is not supported here, with what to do."""
    what = f"is not supported; {instead}" if instead else "is not supported yet; leave it out"
    return RequestError(f"{name} {what}.", param=name, code="unsupported_parameter")


def with_param(error: RequestError, param: str | None) -> RequestError:
    """The same error about another field."""
    return RequestError(str(error), param=param, status=error.status, code=error.code)


def respelled(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """The same error in the caller's words: `names` maps fields of SamplingParams to the caller's."""
    message = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(error))
    return RequestError(message, param=names.get(error.param or "", error.param), status=error.status, code=error.code)
