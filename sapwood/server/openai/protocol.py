"""Request bodies. Null means 'not given' everywhere, as clients send it.

Fields that are not declared are ignored, but for those that `sapwood.server.refusals` names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from sapwood.base.errors import RequestError
from sapwood.base.sampling import SamplingParams
from sapwood.grammar.spellings import Structured
from sapwood.server.errors import unsupported
from sapwood.server.fields import Count, Int, Messages, Priority, listed, salt_of
from sapwood.server.front import Front
from sapwood.server.openai.metadata import Metadata
from sapwood.server.prediction import Predicted

_AS_THEY_ARE = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
    "n", "ignore_eos", "skip_special_tokens", "logit_bias",
    "whole_prompt",
)  # fmt: skip


class StreamOptions(msgspec.Struct, kw_only=True):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class UsageOptions(NamedTuple):
    """`told` at the end of a stream, `running` with every chunk, with how `drafts` fared."""

    told: bool
    running: bool
    drafts: bool


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
    timeout: float | None = None
    prediction: Predicted | str | None = None
    speculation_details: bool | None = None
    whole_prompt: bool | None = None

    @property
    def usage_options(self) -> UsageOptions:
        """How a stream tells what was used."""
        options = self.stream_options
        return UsageOptions(
            told=options is not None and bool(options.include_usage),
            running=options is not None and bool(options.include_usage and options.continuous_usage_stats),
            drafts=bool(self.speculation_details),
        )

    def check(self, front: Front) -> None:
        """Raise RequestError for what does not depend on the prompt: the model, and fields that cannot work."""
        front.check_model(self.model)
        front.deadlines.ask(self.timeout, "timeout")
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


class CompletionRequest(Sampling, kw_only=True):
    """`prompt`: a string, strings, token ids, or lists of token ids. `forced_bos_token_id`, a token or its name, is what the output of an
    encoder-decoder begins with: the language that it translates into."""

    prompt: str | list[str | int | list[int]] | None = None
    echo: bool | None = None
    logprobs: Int | None = None
    use_beam_search: bool | None = None
    beam_width: Int | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    forced_bos_token_id: Int | str | None = None


class ChatRequest(Sampling, Messages, kw_only=True):
    """`user` and `service_tier` are among those that never change the result."""

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
    store: bool | None = None
    metadata: Metadata | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
