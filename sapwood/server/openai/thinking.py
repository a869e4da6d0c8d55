"""How long a chat request lets the model think."""

from __future__ import annotations

import msgspec

from sapwood.base.errors import RequestError
from sapwood.base.grammar import Thinking
from sapwood.base.sampling import SamplingParams
from sapwood.server.front import Front
from sapwood.server.openai.protocol import ChatRequest
from sapwood.text.model import Thoughts

_SPELLINGS = ("thinking_budget", "thinking_token_budget", "max_thinking_tokens")


def bounded(front: Front, body: ChatRequest, params: SamplingParams, thoughts: Thoughts) -> SamplingParams:
    """The parameters with the request's bound on thoughts, or the server's. Raises RequestError naming the field."""
    budget, param = _budget(body)
    reasoning = front.text.dialect.reasoning
    if budget is not None and reasoning is None:
        raise RequestError(f"{param}: this model's thoughts cannot be told from its answers.", param=param)
    if budget is None:
        budget = front.config.server.thinking_budget
    if budget is None or reasoning is None or thoughts == "over":
        return params
    # What follows thoughts is the grammar's to say, where there is one.
    leave = (
        reasoning.leave
        if params.grammar is None
        else reasoning.leave[: reasoning.leave.index(reasoning.end)] + reasoning.end
    )
    thinking = Thinking(
        begin=reasoning.begin,
        end=reasoning.end,
        leave=tuple(front.text.special_text(leave)),
        budget=budget,
        open=thoughts == "open",
    )
    return msgspec.structs.replace(params, thinking=thinking)


def _budget(body: ChatRequest) -> tuple[int | None, str]:
    for name in _SPELLINGS:
        value = getattr(body, name)
        if value is not None:
            return value, name
    value = (body.chat_template_kwargs or {}).get("thinking_budget")
    param = "chat_template_kwargs.thinking_budget"
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise RequestError(f"{param} must be a number of tokens, got {value!r}.", param=param)
    return value, param
