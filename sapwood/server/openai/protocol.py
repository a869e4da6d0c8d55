"""Request bodies. Null means 'not given' everywhere, as clients send it.

Fields that are not declared are ignored, but for those that `sapwood.server.refusals` names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from sapwood.base.errors import RequestError
from sapwood.base.sampling import SamplingParams
from sapwood.grammar.spellings import Structured
from sapwood.server.body import field_error
from sapwood.server.errors import unsupported
from sapwood.server.front import Front, Talk

Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]

_AS_THEY_ARE = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
    "n", "ignore_eos", "skip_special_tokens", "logit_bias",
)  # fmt: skip


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampling(Structured, kw_only=True):
    """What completions and chat have in common; `min_new_tokens`, `no_stop_trim` and `extra_key` are SGLang's."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Int | None = None
    best_of: Int | None = None
    seed: Int | None = None
    stop: str | list[str] | None = None
    stop_regex: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[Int] | None = None
    bad_words: list[str] | None = None
    max_tokens: Int | None = None
    top_k: Int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[Int] | None = None
    min_tokens: Int | None = None
    min_new_tokens: Int | None = None
    no_stop_trim: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    add_special_tokens: bool | None = None
    prompt_logprobs: Int | None = None
    logprob_token_ids: list[Int] | None = None
    token_ids_logprob: list[Int] | None = None
    priority: Priority | None = None
    cache_salt: str | None = None
    extra_key: str | None = None
    return_token_ids: bool | None = None

    def check(self, front: Front) -> None:
        """Raise RequestError for what does not depend on the prompt: the model, and fields that cannot work."""
        front.check_model(self.model)
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise unsupported("best_of", "leave it out, or give the same as n")
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options is only allowed with stream: true.", param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError("prompt_logprobs cannot be streamed; leave stream out.", param="prompt_logprobs")

    @property
    def salt(self) -> str:
        return salt_of(self.cache_salt, self.extra_key)

    async def sampling(
        self, front: Front, *, max_tokens: int | None, logprobs: int | None, names: Mapping[str, str], **more: Any
    ) -> SamplingParams:
        """Checked parameters of the engine. `names` maps their names to this body's, where they differ."""
        given = {name: value for name in _AS_THEY_ARE if (value := getattr(self, name)) is not None}
        if self.min_tokens is None and self.min_new_tokens is not None:
            names = {**names, "min_tokens": "min_new_tokens"}
        if self.allowed_token_ids is not None:
            given["allowed_token_ids"] = tuple(self.allowed_token_ids)
        named, name = self.logprob_token_ids, "logprob_token_ids"
        if named is None:
            named, name = self.token_ids_logprob, "token_ids_logprob"
        if named and logprobs is None and self.prompt_logprobs is None:
            raise RequestError(f"{name} needs logprobs.", param=name)
        fields = {
            "logprob_token_ids": tuple(named or ()),
            "min_tokens": self.min_tokens if self.min_tokens is not None else self.min_new_tokens or 0,
            "forbidden": await front.forbidden(self.bad_words),
            "max_tokens": max_tokens,
            "logprobs": logprobs,
            "prompt_logprobs": self.prompt_logprobs,
            "stop": listed(self.stop),
            "stop_regex": listed(self.stop_regex),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "include_stop": bool(self.include_stop_str_in_output or self.no_stop_trim),
        }
        return front.check(
            SamplingParams(**(front.defaults | given | fields | more)),
            {"forbidden": "bad_words", "logprob_token_ids": name, **names},
        )


def listed(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """One string, or several."""
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def salt_of(cache_salt: str | None, extra_key: str | None) -> str:
    """What keeps a request's cached prefixes to those who send the same two; no pair can stand for another."""
    salt, key = ((given or "").replace("\0", "\0\0") for given in (cache_salt, extra_key))
    return f"{salt}\0:{key}" if key else salt


class CompletionRequest(Sampling, kw_only=True):
    """`prompt`: a string, strings, token ids, or lists of token ids."""

    prompt: str | list[str | int | list[int]] | None = None
    echo: bool | None = None
    logprobs: Int | None = None


class Part(msgspec.Struct):
    type: str
    text: str | None = None


class Message(msgspec.Struct, kw_only=True, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None

    def plain(self, index: int) -> dict[str, Any]:
        """As templates take it. Raises RequestError for content that is not text."""
        where = f"messages[{index}].content"
        if self.content is None and self.role != "assistant":
            raise RequestError(f"{where} is missing.", param=where)
        for part in self.content if isinstance(self.content, list) else ():
            if part.type != "text" or part.text is None:
                raise RequestError(
                    f"{where}: a part of type {part.type!r} without text is not supported; this model takes text.",
                    param=where,
                )
        for number, call in enumerate(self.tool_calls or ()):
            _check_call(call, f"messages[{index}].tool_calls[{number}]")
        message: dict[str, Any] = msgspec.to_builtins(self)
        return message


def said(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message of a body as templates take it, with all that its client wrote into it. Raises RequestError."""
    try:
        known = msgspec.convert(message, Message)
    except msgspec.ValidationError as error:
        raise field_error(error, within=f"messages[{index}]") from None
    others = {name: value for name, value in message.items() if name not in Message.__struct_fields__}
    return others | known.plain(index)


def _check_call(call: dict[str, Any], where: str) -> None:
    """Raise RequestError for a call that a template would print as nothing. Arguments may be anything a model wrote."""
    function = call.get("function")
    if not isinstance(function, dict):
        raise RequestError(
            f"{where}.function is missing; calls of type function are supported.", param=f"{where}.function"
        )
    if not isinstance(function.get("name"), str):
        raise RequestError(f"{where}.function.name must be a string.", param=f"{where}.function.name")
    if not isinstance(function.get("arguments"), str | dict | None):
        param = f"{where}.function.arguments"
        raise RequestError(f"{param} must be a string of JSON.", param=param)


class Conversation:
    """What a body with messages can do. The fields are declared by the bodies, which have one struct as base."""

    __slots__ = ()

    messages: list[dict[str, Any]] | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    add_special_tokens: bool | None
    chat_template_kwargs: dict[str, Any] | None

    def talk(self, **template: Any) -> Talk:
        """The conversation; `template` are more arguments of the template. Raises RequestError naming the field."""
        if not self.messages:
            raise RequestError("messages is empty; at least one message is needed.", param="messages")
        messages = [said(message, index) for index, message in enumerate(self.messages)]
        resume = bool(self.continue_final_message)
        answer = not resume if self.add_generation_prompt is None else self.add_generation_prompt
        if resume and answer:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other.", param="continue_final_message"
            )
        return Talk(
            messages=messages,
            continues=resume,
            answers=answer,
            add_special=bool(self.add_special_tokens),
            template=template | (self.chat_template_kwargs or {}),
        )


class ChatRequest(Sampling, Conversation, kw_only=True):
    """`prediction`, `user`, `service_tier`, `store` and `metadata` are among those that never change the result."""

    messages: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    max_completion_tokens: Int | None = None
    logprobs: bool | None = None
    top_logprobs: Int | None = None
    reasoning_effort: str | None = None
    enable_thinking: bool | None = None
    thinking_budget: Count | None = None
    thinking_token_budget: Count | None = None
    max_thinking_tokens: Count | None = None
    separate_reasoning: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
