"""Errors as the OpenAI API spells them: {"error": {message, type, param, code}}."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.errors import EngineDead, GenerationFailed, Overloaded, RequestError

log = logging.getLogger(__name__)


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct):
    error: ErrorBody


class Problem(msgspec.Struct):
    """An error, ready to be sent: as a whole response, or as an event when the response has begun."""

    status: int
    body: ErrorBody
    headers: dict[str, str] = {}

    def encode(self) -> bytes:
        return msgspec.json.encode(ErrorEnvelope(self.body))

    def response(self) -> Response:
        return Response(self.encode(), self.status, {"content-type": "application/json"} | self.headers)


_TYPES = {401: "authentication_error", 404: "not_found_error"}


def problem(error: Exception) -> Problem:
    """What a client is told of `error`. What was not raised on purpose is logged here and told as 'internal error'."""
    match error:
        case RequestError():
            # What is left of a body that was refused is not worth reading, and could be endless.
            headers = {"connection": "close"} if error.status == 413 else {}
            kind = _TYPES.get(error.status, "invalid_request_error")
            return Problem(error.status, ErrorBody(str(error), kind, error.param, error.code), headers)
        case Overloaded():
            body = ErrorBody(str(error) or "Too many requests are waiting.", "overloaded_error", code="overloaded")
            return Problem(503, body, {"retry-after": "1"})
        case EngineDead():
            body = ErrorBody(str(error) or "The engine has stopped.", "server_error", code="engine_dead")
            return Problem(503, body)
        case GenerationFailed():
            return Problem(500, ErrorBody(str(error), "server_error", code="generation_failed"))
        case HTTPException():
            kind = (
                "server_error" if error.status_code >= 500 else _TYPES.get(error.status_code, "invalid_request_error")
            )
            return Problem(error.status_code, ErrorBody(error.detail, kind), dict(error.headers or {}))
        case ClientGone():
            return Problem(499, ErrorBody("The client closed the connection.", "client_closed_request"))
        case _:
            log.error("unexpected error in a request", exc_info=error)
            return Problem(500, ErrorBody("Internal server error; the log has the details.", "server_error"))


async def handle(request: Request, error: Exception) -> Response:
    """The exception handler of every error that is raised on purpose."""
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        path = request.url.path
        detail = f"{request.method} is not allowed on {path}." if error.status_code == 405 else f"No such path: {path}."
        error = HTTPException(error.status_code, detail, error.headers)
    return problem(error).response()


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
