"""What is wrong with a request that an engine could not serve, and how a prompt becomes what an encoder reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from sapwood.base.errors import RequestError
from sapwood.base.insight import MOST_BYTES, Insight, dtype_of
from sapwood.base.media import Media
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import GENERATE, Generate, Task, tag_of
from sapwood.base.tokens import check_ids
from sapwood.base.wire import Facts, Reading

_ROUTES = {
    "generate": "has no head that generates: it embeds texts (/v1/embeddings, `LLM.embed`)",
    "embed": "does not embed texts",
    "align": "hears nothing: only models of the Whisper family say when something was said",
    "score": "has no classifier: ask it for an embedding, or give label_token_ids",
}
"""What is wrong with a model that does not do a task, and what to do."""

_UNTOLD: Mapping[Insight, str] = {
    "hidden_states": "this model generates nothing; ask for an embedding",
    "logits": "this model generates nothing, and has no logits",
    "routed_experts": "this model has no experts, has layers that choose different numbers of them, is computed in stages, or by the CPU's own "
    "kernels, which do not tell: start with --cpu-kernels off there",
}
"""Why it cannot be told, and what to do."""


def check_task(task: type[Task], facts: Facts) -> None:
    """Raise RequestError where the model cannot do that."""
    if (name := tag_of(task)) not in facts.tasks:
        raise RequestError(f"this model {_ROUTES[name]}.", param="model", code="unsupported_task")


def check_request(
    tokens: list[int], params: SamplingParams, facts: Facts, *, checked: bool = False, task: Task = GENERATE
) -> None:
    """Raise RequestError, naming the field, for what the engine could not serve. `checked`: the parameters have been."""
    check_task(type(task), facts)
    if not checked:
        params.check(vocab_size=facts.vocab_size)
    if not tokens:
        raise RequestError("the prompt is empty; it needs at least one token.", param="prompt")
    if params.insights:
        _check_insights(tokens, params, facts)
    if facts.reading is not None:
        _check_read(tokens, params, facts, facts.reading)
    if isinstance(task, Generate):
        _check_room(tokens, params, facts)
    elif len(tokens) > facts.max_model_len:
        raise RequestError(
            f"the text is too long: {len(tokens)} tokens > {facts.max_model_len} maximum; shorten it, or have it cut off by "
            "truncate_prompt_tokens.",
            param="prompt",
            code="context_length_exceeded",
        )
    check_ids(tokens, vocab_size=facts.vocab_size, param="prompt")


def _check_room(tokens: list[int], params: SamplingParams, facts: Facts) -> None:
    """For what is to be generated."""
    taken = facts.begun(len(tokens))
    if taken >= facts.max_model_len:
        raise RequestError(
            f"the prompt is too long: {len(tokens)} tokens > {facts.max_model_len - 1} maximum, with one of output.",
            param="prompt",
            code="context_length_exceeded",
        )
    if params.max_tokens is not None and taken + params.max_tokens > facts.max_model_len:
        raise RequestError(
            f"the prompt has {len(tokens)} tokens, so max_tokens can be at most {facts.max_model_len - taken} "
            f"(context {facts.max_model_len}), got {params.max_tokens}.",
            param="max_tokens",
            code="context_length_exceeded",
        )


def _check_insights(tokens: list[int], params: SamplingParams, facts: Facts) -> None:
    """For what is to be told of every position."""
    for name in params.insights:
        if name not in facts.insights:
            raise RequestError(f"return_{name}: {_UNTOLD[name]}.", param=f"return_{name}")
    if facts.reading is not None:
        name = params.insights[0]
        raise RequestError(
            f"return_{name}: an encoder reads the prompt, of which the decoder has no positions. Leave it out.",
            param=f"return_{name}",
        )
    room = facts.max_model_len - len(tokens)
    positions = len(tokens) + (room if params.max_tokens is None else min(params.max_tokens, room))
    sizes = {
        name: positions * facts.insights[name] * dtype_of(name, params.return_dtype).itemsize
        for name in params.insights
    }
    if sum(sizes.values()) > MOST_BYTES:
        worst = max(params.insights, key=sizes.__getitem__)
        raise RequestError(
            f"return_{worst} of up to {positions} positions would be {sum(sizes.values()) >> 20} MiB with what else is to be returned, and "
            f"there may be {MOST_BYTES >> 20}: lower max_tokens, shorten the prompt, or give return_dtype: float16.",
            param=f"return_{worst}",
        )


def _check_read(tokens: list[int], params: SamplingParams, facts: Facts, reading: Reading) -> None:
    """For a prompt that an encoder reads."""
    if reading.kind != "tokens":
        return
    if len(tokens) > reading.longest:
        raise RequestError(
            f"the prompt is too long: {len(tokens)} tokens > {reading.longest} maximum of the encoder. Shorten it, or start with a "
            "larger --max-encoder-len if the model allows it.",
            param="prompt",
            code="context_length_exceeded",
        )
    if params.prompt_logprobs is not None:
        raise RequestError(
            "prompt_logprobs: an encoder reads the prompt, which is not predicted. Leave it out.",
            param="prompt_logprobs",
        )


def fed(
    tokens: list[int],
    params: SamplingParams,
    media: Sequence[Media],
    facts: Facts,
    *,
    checked: bool = False,
    task: Task = GENERATE,
) -> tuple[list[int], Sequence[Media]]:
    """The tokens and media that an engine is given for a prompt, which is checked as `check_request` does. Of a model whose encoder
    reads texts the prompt is the input, unless one is given: then `tokens` are what its decoder begins with."""
    reading = facts.reading
    if reading is None:
        check_request(tokens, params, facts, checked=checked, task=task)
        return tokens, media
    if media:
        longest = max(one.length for one in media)
        if longest > reading.longest:
            raise RequestError(
                f"the prompt is too long: {longest} positions > {reading.longest} maximum of the encoder.",
                param="prompt",
                code="context_length_exceeded",
            )
        check_request(tokens, params, msgspec.structs.replace(facts, reading=None), checked=checked, task=task)
        return tokens, media
    if reading.kind != "tokens":
        raise RequestError(
            f"this model writes of what it hears: a request needs {reading.kind}. See /v1/audio/transcriptions.",
            param="model",
            code="unsupported_task",
        )
    check_request(tokens, params, facts, checked=checked, task=task)
    return reading.starts, [input_of(tokens)]


def input_of(tokens: Sequence[int]) -> Media:
    """A text as an encoder reads it."""
    return Media.of("tokens", {"ids": np.array(tokens, np.int32)}, len(tokens))
