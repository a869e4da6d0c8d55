"""GET /experts: what experts have had to do, of engines that have them on ranks of their own."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.errors import RequestError
from sapwood.server.body import json_response
from sapwood.server.front import Front
from sapwood.server.routes import Described, plain


def routes(front: Front) -> list[Described]:
    async def experts(request: Request) -> Response:
        """How many tokens have chosen each expert of each layer, how evenly that is spread over ranks, and what replicas would make of it: of each engine."""
        live = [one for one in front.engine.replicas if one.dead is None] or [front.engine]
        found = [await one.control("experts") for one in live]
        if any("error" in one for one in found):
            raise RequestError("Experts are counted with --enable-expert-parallel only.", status=404)
        return json_response(found)

    return [plain("/experts", experts, gives=list[dict[str, Any]])]
