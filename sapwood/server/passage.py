"""What is known of a request outside of its body: a note that travels in its scope."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope, Send

from sapwood.adapters.registry import Known
from sapwood.base.handoff import Handoff
from sapwood.server.errors import OVERLOADED, Envelope, Problem, openai_envelope
from sapwood.server.limits import Account

_KEY = "sapwood.passage"


@dataclass(slots=True)
class Passage:
    """One request on its way.

    Attributes:
        send: The server's own, without the layers around the routes; for those who send often.
        request_id: The client's, or one of ours.
        envelope: How errors are worded to this client.
        overloaded: The status that tells it of too many requests.
        trusted: It came over the admin socket.
        account: Whose it is.
        explains: It asks why its prompt was found in the cache, or was not.
        told: Headers that are known before the response begins.
        adapter: What was asked for in the place of the model.
        handoff: The other server that its prompt is read for, or by, if there is one.
        handed: What that one has to know, of a prompt that is read for it.
    """

    send: Send
    request_id: str = ""
    envelope: Envelope = openai_envelope
    overloaded: int = 503
    trusted: bool = False
    account: Account = field(default_factory=Account)
    explains: bool = False
    told: list[tuple[bytes, bytes]] = field(default_factory=list)
    adapter: Known | None = None
    handoff: Handoff | None = None
    handed: dict[str, Any] | None = None

    @property
    def caller(self) -> str:
        """The name of the key that it came with; what it leaves here is seen by nobody else."""
        return self.account.tenant.name

    def error(self, problem: Problem) -> bytes:
        """The body of an error."""
        return self.envelope(problem, self.request_id)

    def response(self, problem: Problem) -> Response:
        status = self.overloaded if problem.kind == OVERLOADED else problem.status
        return Response(self.error(problem), status, {"content-type": "application/json"} | problem.headers)


def passage(scope: Scope, send: Send) -> Passage:
    """The note of a request, begun with its first reader. `send` is what that one was given."""
    note: Passage = scope.setdefault(_KEY, Passage(send))
    return note


def caller(request: Request) -> str:
    """Whose objects a request is about."""
    return passage(request.scope, request._send).caller
