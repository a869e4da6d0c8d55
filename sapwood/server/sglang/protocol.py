"""Bodies of SGLang's /generate and of its answers."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from sapwood.base.insight import Told
from sapwood.grammar.schema import Finding
from sapwood.grammar.spellings import Schema
from sapwood.server.fields import Int, Priority
from sapwood.server.prediction import PredictionDetails
from sapwood.server.refusals import GENERATE, Refused

MediaData = str | list[str | list[str] | None] | None
"""A URL or base64, a list of them for a single prompt, or such a thing for each of several."""


class NativeSampling(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """SGLang's sampling_params."""

    max_new_tokens: Int | None = None
    min_new_tokens: Int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[Int] | None = None
    bad_words: list[str] | None = None
    sampling_seed: Int | None = None
    n: Int | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    no_stop_trim: bool | None = None
    json_schema: Schema | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: dict[str, Any] | str | None = None
    stop_regex: str | list[str] | None = None
    custom_params: Any = None  # refused


REFUSED = dict.fromkeys(NativeSampling.__struct_fields__, Refused("give it in sampling_params", (None,))) | GENERATE
"""What a body must not hold: what is never supported, and what stands elsewhere."""


class GenerateRequest(msgspec.Struct, kw_only=True):
    """Lists where SGLang takes lists: one entry per prompt, or one value for all."""

    text: str | list[str] | None = None
    input_ids: list[int | list[int]] | None = None
    sampling_params: dict[str, Any] | list[dict[str, Any]] | None = None
    stream: bool | None = None
    return_logprob: bool | list[bool] | None = None
    logprob_start_len: Int | list[Int] | None = None
    top_logprobs_num: Int | list[Int] | None = None
    token_ids_logprob: list[Int | list[Int]] | None = None
    return_text_in_logprobs: bool | None = None
    rid: str | list[str] | None = None
    priority: Priority | None = None
    cache_salt: str | None = None
    extra_key: str | list[str] | None = None
    prediction: str | list[str] | None = None
    lora_path: str | list[str | None] | None = None
    return_hidden_states: bool | list[bool] | None = None
    return_logits: bool | list[bool] | None = None
    return_routed_experts: bool | list[bool] | None = None
    return_dtype: str | None = None
    image_data: MediaData = None
    audio_data: MediaData = None


class Finish(msgspec.Struct, omit_defaults=True):
    type: str
    matched: int | str | None = None
    length: int | None = None
    message: str | None = None


# [logprob or null, token id, text or null]
LogprobEntry = tuple[float | None, int, str | None]


class Array(msgspec.Struct):
    """Numbers in a body: base64 of them, row after row, little-endian."""

    shape: tuple[int, int]
    dtype: str
    data: str

    @staticmethod
    def of(told: Told) -> Array:
        return Array(told.shape, told.dtype, b64encode(told.data).decode())


class Meta(PredictionDetails, kw_only=True):
    id: str
    finish_reason: Finish | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    left_out_tokens: int | UnsetType = UNSET
    weight_version: str = "default"
    e2e_latency: float | UnsetType = UNSET
    schema_check: Finding | UnsetType = UNSET
    input_token_logprobs: list[LogprobEntry] | UnsetType = UNSET
    output_token_logprobs: list[LogprobEntry] | UnsetType = UNSET
    input_top_logprobs: list[list[LogprobEntry] | None] | UnsetType = UNSET
    output_top_logprobs: list[list[LogprobEntry] | None] | UnsetType = UNSET
    input_token_ids_logprobs: list[list[LogprobEntry] | None] | UnsetType = UNSET
    output_token_ids_logprobs: list[list[LogprobEntry] | None] | UnsetType = UNSET
    hidden_states: Array | UnsetType = UNSET
    logits: Array | UnsetType = UNSET
    routed_experts: Array | UnsetType = UNSET


class Generated(msgspec.Struct, kw_only=True):
    text: str
    output_ids: list[int]
    meta_info: Meta
    index: int | UnsetType = UNSET
