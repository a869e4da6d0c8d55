"""/generate, SGLang's native API: one prompt or a batch, as text or token ids, with the logprobs of both sides."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.errors import RequestError
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.grammar import spellings
from sapwood.grammar.end_check import EndCheck
from sapwood.grammar.schema import Finding
from sapwood.grammar.spellings import Asked, Schema, one_of
from sapwood.server.body import field_error, json_response
from sapwood.server.fields import Int, Priority, listed, salt_of
from sapwood.server.front import MAX_CHOICES, Front
from sapwood.server.generation import Choice, News, Prompt, choices_of, complete, params_for
from sapwood.server.refusals import GENERATE, NATIVE_SAMPLING, Refused, refuse
from sapwood.server.routes import Described, Streamed, post
from sapwood.server.sse import EventStream, Script, frame

_DEFAULT_MAX_TOKENS = 128  # SGLang's
_NAMES = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    "seed": "sampling_seed",
    "include_stop": "no_stop_trim",
    "forbidden": "bad_words",
}
_STRUCTURED = ("json_schema", "regex", "ebnf", "structural_tag")
_PLACES = {
    "logprob_token_ids": "token_ids_logprob",
    "logprobs": "top_logprobs_num",
    "prompt_logprobs": "top_logprobs_num",
}


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


class Finish(msgspec.Struct, omit_defaults=True):
    type: str
    matched: int | str | None = None
    length: int | None = None


# [logprob or null, token id, text or null]
LogprobEntry = tuple[float | None, int, str | None]


class Meta(msgspec.Struct, kw_only=True):
    id: str
    finish_reason: Finish | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    e2e_latency: float | UnsetType = UNSET
    schema_check: Finding | UnsetType = UNSET
    input_token_logprobs: list[LogprobEntry] | UnsetType = UNSET
    output_token_logprobs: list[LogprobEntry] | UnsetType = UNSET
    input_top_logprobs: list[list[LogprobEntry] | None] | UnsetType = UNSET
    output_top_logprobs: list[list[LogprobEntry] | None] | UnsetType = UNSET
    input_token_ids_logprobs: list[list[LogprobEntry] | None] | UnsetType = UNSET
    output_token_ids_logprobs: list[list[LogprobEntry] | None] | UnsetType = UNSET


class Generated(msgspec.Struct, kw_only=True):
    text: str
    output_ids: list[int]
    meta_info: Meta
    index: int | UnsetType = UNSET


class Wish(msgspec.Struct):
    """What one prompt's answer is to hold: its id, and logprobs from which prompt position on (-1: output only), those of the
    tokens that are `named` included."""

    id: str
    logprobs: int | None
    start: int
    named: tuple[int, ...] = ()
    end_check: EndCheck | None = None


def routes(front: Front) -> list[Described]:
    async def generate(request: Request, body: GenerateRequest) -> Response:
        """Go on with one prompt or several, as text or token ids, with the logprobs of both sides if asked for."""
        begin = perf_counter()
        given, param, single = await _prompts(front, body)
        samplings = _spread("sampling_params", _converted(body.sampling_params), len(given), NativeSampling())
        prompts = [
            Prompt(
                tokens,
                param,
                salt,
                priority=body.priority or 0,
                limit_param="max_new_tokens",
                scoring=sampling.max_new_tokens == 0,
            )
            for tokens, sampling, salt in zip(given, samplings, _salts(body, len(given)), strict=True)
        ]
        wishes = _wishes(body, prompts)
        limit = front.facts.max_model_len
        several = await _settled(front, samplings, wishes)
        pairs = [
            (prompt, params_for(prompt, params, limit, default=_DEFAULT_MAX_TOKENS))
            for prompt, params in zip(prompts, several, strict=True)
        ]
        choices = choices_of(pairs)
        asked = dict(zip(prompts, wishes, strict=True))
        answer = _Answer(front, asked, with_text=bool(body.return_text_in_logprobs), begin=begin)
        alone = single and len(choices) == 1
        if body.stream:
            return EventStream(front, choices, _Script(answer, alone))
        await front.attended(request.receive, complete(front, choices))
        answers = [answer(choice) for choice in choices]
        return json_response(answers[0] if alone else answers)

    return [
        post(
            front,
            "/generate",
            GenerateRequest,
            generate,
            refused=REFUSED,
            gives=Generated | list[Generated],
            streams=Streamed(Generated),
            methods=("POST", "PUT"),
        )
    ]


class _Script(Script):
    """Each event holds the whole text so far, as SGLang's do."""

    def __init__(self, answer: _Answer, alone: bool) -> None:
        self._answer, self._alone = answer, alone

    def frames(self, news: list[News]) -> bytes:
        shown = [self._answer(one.choice, index=UNSET if self._alone else one.choice.index) for one in news]
        return b"".join(map(frame, shown))


async def _prompts(front: Front, body: GenerateRequest) -> tuple[list[list[int]], str, bool]:
    """Token ids of each prompt, the field they came in, and whether one was given by itself rather than in a list."""
    if (body.text is None) == (body.input_ids is None):
        raise RequestError("Give either text or input_ids.", param="text")
    param = "text" if body.text is not None else "input_ids"
    given = body.text if body.text is not None else body.input_ids
    single = isinstance(given, str) or (bool(given) and all(isinstance(id, int) for id in given or ()))
    several: list[Any] = [given] if single else list(given or ())
    if not several:
        raise RequestError(f"{param} is empty.", param=param)
    if len(several) > MAX_CHOICES:
        raise RequestError(f"At most {MAX_CHOICES} outputs (prompts times n) in one request.", param=param)
    if any(isinstance(one, int) for one in several):
        raise RequestError("input_ids must not mix token ids and lists of token ids.", param=param)
    prompts = several if body.text is None else await front.encode_all(several, param=param)
    for tokens in prompts:
        front.check_tokens(tokens, param)
    return prompts, param, single


def _spread(name: str, value: Any, count: int, missing: Any) -> list[Any]:
    """One value per prompt."""
    if not isinstance(value, list):
        return [missing if value is None else value] * count
    if len(value) != count:
        raise RequestError(f"{name} has {len(value)} entries for {count} prompts.", param=name)
    return value


def _salts(body: GenerateRequest, count: int) -> list[str]:
    return [salt_of(body.cache_salt, key) for key in _spread("extra_key", body.extra_key, count, None)]


def _wishes(body: GenerateRequest, prompts: Sequence[Prompt]) -> list[Wish]:
    count = len(prompts)
    rids = _spread("rid", body.rid if isinstance(body.rid, list) or count == 1 else None, count, None)
    wanted = _spread("return_logprob", body.return_logprob, count, False)
    tops = _spread("top_logprobs_num", body.top_logprobs_num, count, 0)
    starts = _spread("logprob_start_len", body.logprob_start_len, count, -1)
    named = _named(body, wanted)
    for start, prompt in zip(starts, prompts, strict=True):
        if not -1 <= start < len(prompt.tokens):
            raise RequestError(
                f"logprob_start_len must be -1 or a position of the prompt, which has {len(prompt.tokens)} tokens; "
                f"got {start}.",
                param="logprob_start_len",
            )
    return [
        Wish(rid or uuid.uuid4().hex, top if want else None, start, ids)
        for rid, want, top, start, ids in zip(rids, wanted, tops, starts, named, strict=True)
    ]


def _named(body: GenerateRequest, wanted: Sequence[bool]) -> list[tuple[int, ...]]:
    """`token_ids_logprob` of each prompt: a list of ids for all of them, or a list of such lists."""
    given = body.token_ids_logprob or []
    several = [one for one in given if isinstance(one, list)]
    ids = [one for one in given if not isinstance(one, list)]
    if ids and several:
        raise RequestError("token_ids_logprob must not mix token ids and lists of them.", param="token_ids_logprob")
    lists = _spread("token_ids_logprob", several or None, len(wanted), ids)
    if any(named and not want for named, want in zip(lists, wanted, strict=True)):
        raise RequestError("token_ids_logprob needs return_logprob: true.", param="token_ids_logprob")
    return [tuple(named) for named in lists]


def _converted(given: dict[str, Any] | list[dict[str, Any]] | None) -> NativeSampling | list[NativeSampling] | None:
    if given is None:
        return None
    several = given if isinstance(given, list) else [given]
    for fields in several:
        refuse(NATIVE_SAMPLING, fields)
    try:
        # Keys of JSON are strings.
        converted = [msgspec.convert(fields, NativeSampling, str_keys=True) for fields in several]
    except msgspec.ValidationError as error:
        raise field_error(error, within="sampling_params") from None
    return converted if isinstance(given, list) else converted[0]


def _params(front: Front, native: NativeSampling, wish: Wish, forbidden: tuple[tuple[int, ...], ...]) -> SamplingParams:
    ours = {theirs: name for name, theirs in _NAMES.items()}
    skipped = {"spaces_between_special_tokens", "custom_params", *_STRUCTURED}
    fields = {
        ours.get(name, name): value
        for name in NativeSampling.__struct_fields__
        if name not in skipped and (value := getattr(native, name)) is not None
    }
    fields |= {name: listed(fields.get(name)) for name in ("stop", "stop_regex")}
    fields["stop_token_ids"] = tuple(fields.get("stop_token_ids", ()))
    fields["forbidden"] = forbidden
    if native.allowed_token_ids is not None:
        fields["allowed_token_ids"] = tuple(native.allowed_token_ids)
    if native.max_new_tokens == 0:
        fields["max_tokens"] = 1  # only the prompt's logprobs are wanted
    fields["logprobs"], fields["logprob_token_ids"] = wish.logprobs, wish.named
    fields["prompt_logprobs"] = wish.logprobs if wish.start >= 0 else None
    return front.check(SamplingParams(**(front.defaults | fields)), _NAMES | _PLACES)


async def _settled(front: Front, samplings: Sequence[NativeSampling], wishes: Sequence[Wish]) -> list[SamplingParams]:
    """Each prompt's parameters, of which those that are the same are made, and checked, once. Tells `wishes` their checks."""
    distinct = {id(sampling): sampling for sampling in samplings}
    forbidden = {key: await front.forbidden(one.bad_words) for key, one in distinct.items()}
    made: dict[tuple[object, ...], tuple[SamplingParams, EndCheck | None]] = {}
    several = []
    for sampling, wish in zip(samplings, wishes, strict=True):
        key = id(sampling), wish.logprobs, wish.named, wish.start >= 0
        if key not in made:
            if made:
                await front.turns()
            made[key] = await front.restrict(
                _params(front, sampling, wish, forbidden[id(sampling)]), _asked(sampling)
            )  # fmt: skip
        params, wish.end_check = made[key]
        several.append(params)
    return several


def _asked(sampling: NativeSampling) -> Asked | None:
    return one_of(spellings.native(*(getattr(sampling, name) for name in _STRUCTURED)))


class _Answer:
    """Makes a choice's answer, finished or not."""

    def __init__(self, front: Front, wishes: dict[Prompt, Wish], *, with_text: bool, begin: float) -> None:
        self._front = front
        self._wishes = wishes
        self._with_text = with_text
        self._begin = begin

    def __call__(self, choice: Choice, *, index: int | UnsetType = UNSET) -> Generated:
        wish = self._wishes[choice.prompt]
        meta = Meta(
            id=wish.id,
            finish_reason=_finish(choice),
            prompt_tokens=len(choice.prompt.tokens),
            completion_tokens=len(choice.tokens),
            cached_tokens=choice.num_cached_tokens,
        )
        if choice.finish is not None:
            meta.e2e_latency = perf_counter() - self._begin
            if wish.end_check is not None:
                meta.schema_check = self._front.checked(wish.end_check(choice.text))
        if wish.logprobs is not None:
            self._add_logprobs(meta, choice, wish)
        return Generated(text=choice.text, output_ids=choice.tokens, meta_info=meta, index=index)

    def _add_logprobs(self, meta: Meta, choice: Choice, wish: Wish) -> None:
        tokens, start = choice.prompt.tokens, wish.start
        asked = choice.prompt_logprobs[start:] if start >= 0 else []
        # The first position has no logprob, whichever it is: SGLang's clients count on that.
        first: list[LogprobEntry] = [self._entry(tokens[start], None)] if start >= 0 else []
        meta.input_token_logprobs = first + [self._entry(one.token, one.logprob) for one in asked]
        meta.output_token_logprobs = [self._entry(one.token, one.logprob) for one in choice.logprobs]
        none: list[list[LogprobEntry] | None] = [None] if start >= 0 else []
        if wish.named:
            meta.input_token_ids_logprobs = none + [self._named(one, wish) for one in asked]
            meta.output_token_ids_logprobs = [self._named(one, wish) for one in choice.logprobs]
        if wish.logprobs:
            meta.input_top_logprobs = none + [self._top(one) for one in asked]
            meta.output_top_logprobs = [self._top(one) for one in choice.logprobs]

    def _entry(self, id: int, logprob: float | None) -> LogprobEntry:
        return logprob, id, self._front.text.token_text(id) if self._with_text else None

    def _named(self, one: TokenLogprobs, wish: Wish) -> list[LogprobEntry]:
        return [self._entry(id, value) for id, value in zip(wish.named, one.named_logprobs, strict=True)]

    def _top(self, one: TokenLogprobs) -> list[LogprobEntry]:
        return [self._entry(id, value) for id, value in zip(one.top_ids, one.top_logprobs, strict=True)]


def _finish(choice: Choice) -> Finish | None:
    match choice.finish:
        case None:
            return None
        case "length":
            return Finish("length", length=len(choice.tokens))
        case kind:
            return Finish(kind, matched=choice.stop)
