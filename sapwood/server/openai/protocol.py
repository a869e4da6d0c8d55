"""Request bodies. Null means 'not given' everywhere, as clients send it.

Fields that are not declared are ignored; those that would change the result and do not work yet are declared in
`Refusals`, so that they are refused by name.
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
from sapwood.server.front import Front, Rendered

Int = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Priority = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]

_AS_THEY_ARE = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
    "n", "min_tokens", "ignore_eos", "skip_special_tokens", "logit_bias",
)  # fmt: skip
_HARMLESS: Mapping[str, Any] = {
    "length_penalty": (1, 1.0),
    "beam_width": (1,),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}
_INSTEAD = {
    "functions": "give tools",
    "function_call": "give tool_choice",
    "grammar": "give structured_outputs",
    "input_ids": "give the token ids as prompt to /v1/completions",
}


class Refusals(Structured, kw_only=True):
    """What is understood and cannot be done yet."""

    functions: Any = None
    function_call: Any = None
    audio: Any = None
    modalities: Any = None
    web_search_options: Any = None
    documents: Any = None
    chat_template: Any = None
    prompt_embeds: Any = None
    truncate_prompt_tokens: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    use_beam_search: Any = None
    length_penalty: Any = None
    beam_width: Any = None
    logprob_token_ids: Any = None
    token_ids_logprob: Any = None
    return_hidden_states: Any = None
    repetition_detection: Any = None
    custom_params: Any = None
    input_ids: Any = None
    grammar: Any = None
    logits_processors: Any = None
    custom_logit_processor: Any = None
    lora_path: Any = None
    kv_transfer_params: Any = None
    suffix: Any = None

    def refuse(self) -> None:
        """Raise RequestError for the first of these fields that asks for something."""
        for name in Refusals.__struct_fields__:
            if name in Structured.__struct_fields__:
                continue
            value = getattr(self, name)
            if value and (isinstance(value, bool) or value not in _HARMLESS.get(name, ())):
                what = (
                    f"is not supported; {_INSTEAD[name]}" if name in _INSTEAD else "is not supported yet; leave it out"
                )
                raise RequestError(f"{name} {what}.", param=name, code="unsupported_parameter")


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampling(Refusals, kw_only=True):
    """What completions and chat have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Int | None = None
    seed: Int | None = None
    stop: str | list[str] | None = None
    stop_regex: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
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
    priority: Priority | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None

    def check(self, front: Front) -> None:
        """Raise RequestError for what does not depend on the prompt: the model, and fields that cannot work."""
        front.check_model(self.model)
        self.refuse()
        if self.stream_options is not None and not self.stream:
            raise RequestError("stream_options is only allowed with stream: true.", param="stream_options")
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError("prompt_logprobs cannot be streamed; leave stream out.", param="prompt_logprobs")

    def sampling(
        self, front: Front, *, max_tokens: int | None, logprobs: int | None, names: Mapping[str, str], **more: Any
    ) -> SamplingParams:
        """Checked parameters of the engine. `names` maps their names to this body's, where they differ."""
        given = {name: value for name in _AS_THEY_ARE if (value := getattr(self, name)) is not None}
        if self.min_new_tokens is not None:
            given.setdefault("min_tokens", self.min_new_tokens)
        fields = {
            "max_tokens": max_tokens,
            "logprobs": logprobs,
            "prompt_logprobs": self.prompt_logprobs,
            "stop": listed(self.stop),
            "stop_regex": listed(self.stop_regex),
            "stop_token_ids": tuple(self.stop_token_ids or ()),
            "include_stop": bool(self.include_stop_str_in_output or self.no_stop_trim),
        }
        return front.check(SamplingParams(**(front.defaults | given | fields | more)), names)


def listed(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """One string, or several."""
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


class CompletionRequest(Sampling, kw_only=True):
    """`prompt`: a string, strings, token ids, or lists of token ids."""

    prompt: str | list[str | int | list[int]] | None = None
    echo: bool | None = None
    logprobs: Int | None = None
    best_of: Int | None = None
    tools: Any = None
    tool_choice: Any = None

    def refuse(self) -> None:
        super().refuse()
        for name in ("tools", "tool_choice"):
            if getattr(self, name) and getattr(self, name) not in ("none", "auto"):
                raise RequestError(f"{name} is for /v1/chat/completions.", param=name, code="unsupported_parameter")


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
    chat_template_kwargs: dict[str, Any] | None

    async def rendered(
        self, front: Front, *, add_special: bool, tools: list[dict[str, Any]] | None = None, **extra: Any
    ) -> Rendered:
        """The conversation as a prompt; `extra` are more arguments of the template."""
        if not self.messages:
            raise RequestError("messages is empty; at least one message is needed.", param="messages")
        messages = [said(message, index) for index, message in enumerate(self.messages)]
        resume = bool(self.continue_final_message)
        answer = not resume if self.add_generation_prompt is None else self.add_generation_prompt
        if resume and answer:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other.", param="continue_final_message"
            )
        given = self.chat_template_kwargs or {}
        return await front.render(
            messages,
            continue_final=resume,
            add_special=add_special,
            add_generation_prompt=answer,
            tools=tools,
            template_kwargs=extra | given,
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
    max_thinking_tokens: Count | None = None
    separate_reasoning: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    echo: bool | None = None
