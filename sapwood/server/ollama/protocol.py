"""The bodies of Ollama's routes. Null means 'not given' everywhere.

Fields that are not declared are ignored, as `keep_alive` and the options of how a model is loaded: it is, and stays so.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sapwood.base.errors import RequestError
from sapwood.base.grammar import Grammar
from sapwood.base.sampling import SamplingParams
from sapwood.grammar.spellings import Asked
from sapwood.server.fields import Int, listed
from sapwood.server.front import Front
from sapwood.server.prediction import Predicted
from sapwood.server.refusals import Refused, Table, refuse
from sapwood.server.thinking import Budget, template_fields

_TEMPLATE = Refused("start the server with --chat-template")
CHAT: Table = {"template": _TEMPLATE, "images": Refused("give them with a message")}
GENERATE: Table = {
    "template": _TEMPLATE,
    "suffix": Refused("put what surrounds the gap into the prompt, with raw: true"),
    "context": Refused("send the conversation as messages to /api/chat"),
    **dict.fromkeys(("width", "height", "steps"), Refused("this model makes text")),
}
_OPTIONS: Table = {
    "typical_p": Refused(harmless=(None, 0, 1)),
    "tfs_z": Refused(harmless=(None, 0, 1)),
    "mirostat": Refused(),
    "penalize_newline": Refused(harmless=(None, True)),
}
_NAMES = {
    "max_tokens": "num_predict",
    "repetition_penalty": "repeat_penalty",
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "seed", "stop")},
    **{name: name for name in ("presence_penalty", "frequency_penalty", "ignore_eos")},
}
"""Options by the names of SamplingParams."""


class Options(msgspec.Struct, kw_only=True):
    """`ignore_eos` is not Ollama's."""

    temperature: float | None = None
    top_k: Int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Int | None = None
    stop: str | list[str] | None = None
    num_predict: Int | None = None
    num_ctx: Int | None = None
    repeat_penalty: float | None = None
    repeat_last_n: Int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    typical_p: float | None = None
    tfs_z: float | None = None
    mirostat: Int | None = None
    penalize_newline: bool | None = None
    ignore_eos: bool | None = None


class Asking(msgspec.Struct, kw_only=True):
    """What chats and prompts have in common. `format` is "json" or a schema; `stream` is true where nothing is said;
    `prediction` is not Ollama's."""

    model: str | None = None
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: Options | None = None
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    prediction: Predicted | str | None = None

    def params(self, front: Front) -> SamplingParams:
        """Checked parameters of the engine. Raises RequestError naming the option."""
        given = self.options or Options()
        refuse({f"options.{name}": refused for name, refused in _OPTIONS.items()}, _prefixed(given))
        _check_context(front, given)
        _check_penalty(given)
        fields = {name: value for name, theirs in _NAMES.items() if (value := getattr(given, theirs)) is not None}
        fields["stop"] = listed(given.stop)
        if given.num_predict is not None and given.num_predict <= 0:
            del fields["max_tokens"]  # as many as there is room for
        if given.repeat_last_n == 0:
            fields["repetition_penalty"] = 1.0
        if self.top_logprobs and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true.", param="top_logprobs")
        if self.logprobs:
            fields["logprobs"] = self.top_logprobs or 0
        names = {ours: f"options.{theirs}" for ours, theirs in _NAMES.items()} | {"logprobs": "top_logprobs"}
        return front.check(SamplingParams(**(front.defaults | fields)), names)

    def asked(self) -> Asked | None:
        """What the text has to match."""
        match self.format:
            case None | "":
                return None
            case "json":
                return Asked(Grammar.json(), "format")
            case dict() as schema:
                return Asked(Grammar.json(schema), "format")
        raise RequestError(f'format must be "json" or a JSON schema, got {self.format!r}.', param="format")

    def template(self) -> dict[str, Any]:
        """What the chat template is told of thoughts."""
        effort = self.think if isinstance(self.think, str) else None
        return template_fields(None if self.think is None else bool(self.think), "high" if effort == "max" else effort)

    def budget(self, front: Front) -> Budget | None:
        """Of thoughts: none where they are not wanted. Raises RequestError where they are, of a model that has none."""
        knows = front.text.dialect.reasoning is not None
        if self.think and not knows:
            raise RequestError(f"think: {front.model_name!r} does not support thinking.", param="think")
        return Budget(0, "think") if self.think is False and knows else None


class GivenFunction(msgspec.Struct, kw_only=True):
    name: str
    arguments: dict[str, Any] = {}


class GivenCall(msgspec.Struct, kw_only=True):
    function: GivenFunction
    id: str | None = None


class GivenMessage(msgspec.Struct, kw_only=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[GivenCall] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class ChatBody(Asking, kw_only=True):
    messages: list[GivenMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class GenerateBody(Asking, kw_only=True):
    """`raw`: the prompt is not put into the chat template."""

    prompt: str | None = None
    system: str | None = None
    images: list[Any] | None = None
    raw: bool | None = None


class ShowBody(msgspec.Struct, kw_only=True):
    """`name` is an older name of `model`."""

    model: str | None = None
    name: str | None = None


def check_model(front: Front, name: str | None) -> None:
    """Raise RequestError (404) unless the model is served: NAME:latest is NAME."""
    front.check_model(name if name in front.model_names else (name or "").removesuffix(":latest"))


def _prefixed(options: Options) -> dict[str, Any]:
    return {f"options.{name}": getattr(options, name) for name in options.__struct_fields__}


def _check_context(front: Front, options: Options) -> None:
    most = front.facts.max_model_len
    if options.num_ctx is not None and options.num_ctx > most:
        raise RequestError(
            f"options.num_ctx: the context has {most} tokens here, got {options.num_ctx}: ask for no more, or start the "
            "server with a longer --max-model-len.",
            param="options.num_ctx",
        )


def _check_penalty(options: Options) -> None:
    penalised = options.repeat_penalty not in (None, 1)
    if penalised and options.repeat_last_n not in (None, -1, 0):
        raise RequestError(
            "options.repeat_last_n: the penalty is for the whole context here; give -1, 0 for none, or leave it out.",
            param="options.repeat_last_n",
        )
