"""How long a model may think in a turn."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from sapwood.base.errors import RequestError
from sapwood.base.grammar import Thinking
from sapwood.base.sampling import SamplingParams
from sapwood.server.front import Front
from sapwood.text.model import Thoughts


def template_fields(think: bool | None, effort: str | None) -> dict[str, Any]:
    """What templates are told of whether to think, and how hard; they have several names for the first."""
    fields = {} if effort is None else {"reasoning_effort": effort}
    return fields if think is None else fields | {"enable_thinking": think, "thinking": think}


class Budget(NamedTuple):
    """The most tokens of thoughts, and the field that says so."""

    tokens: int
    param: str


def bounded(front: Front, asked: Budget | None, params: SamplingParams, thoughts: Thoughts) -> SamplingParams:
    """The parameters with the bound on thoughts that is asked for, or the server's. Raises RequestError naming the field."""
    reasoning = front.text.dialect.reasoning
    if asked is not None and reasoning is None:
        raise RequestError(
            f"{asked.param}: this model's thoughts cannot be told from its answers.", param=asked.param
        )  # fmt: skip
    budget = front.config.server.thinking_budget if asked is None else asked.tokens
    if budget is None or reasoning is None or thoughts == "over":
        return params
    thinking = Thinking(
        begin=reasoning.begin,
        end=reasoning.end,
        leave=tuple(front.text.special_text(reasoning.way_out(bound=params.grammar is not None))),
        budget=budget,
        open=thoughts == "open",
    )
    return msgspec.structs.replace(params, thinking=thinking)
