"""Which model answers a path where the request leaves that open, and which one applies an edit, by the size of the file: so that a
coding agent needs one address and no names."""

from __future__ import annotations

import msgspec
from aiohttp import web

from sapwood.route.fleet import Fleet
from sapwood.route.guests import Guest, Passing
from sapwood.route.semantic.table import APPLY
from sapwood.route.sizes import estimated

OPEN = "auto"
"""The name that a request may give for none."""


class Standing(Guest):
    """Sets the model of requests that name none, or `auto`: the table says so of their path, which is more than rules know."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    async def arrives(self, passing: Passing) -> web.Response | None:
        ask, table = passing.ask, self._fleet.table
        by_size = ask.path == APPLY and bool(table.apply)
        if not by_size and ask.path not in table.paths:
            return None
        if ask.model is not None and (ask.model != OPEN or OPEN in table.model):
            return None
        if ask.is_form and ask.model is None:
            return None  # there is no place in it for a name
        body = ask.document
        if by_size:
            size = estimated(str(body.get("code", "")))
            model = next(one.model for one in table.apply if one.up_to is None or size <= one.up_to)
            why = f"a file of about {size} tokens"
        else:
            model, why = table.paths[ask.path], ask.path
        if ask.is_form:
            passing.models = (model,)
        else:
            passing.ask = ask.changed(msgspec.json.encode({**body, "model": model}))
        passing.told["x-sapwood-rule"] = f"{model}; {why}"
        return None
