"""What a body of /generate asks for: prompts, the parameters of each, and what its answer is to hold."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from sapwood.adapters.registry import Known
from sapwood.base.errors import RequestError
from sapwood.base.insight import INSIGHTS, Insight
from sapwood.base.media import Kind, Media, Span
from sapwood.base.sampling import SamplingParams
from sapwood.grammar import spellings
from sapwood.grammar.end_check import EndCheck
from sapwood.grammar.spellings import Asked, one_of
from sapwood.server.body import field_error
from sapwood.server.fields import listed, salt_of
from sapwood.server.front import MAX_CHOICES, Front
from sapwood.server.generation import Prompt, params_for
from sapwood.server.pictures import Shot, Shown, shown_of
from sapwood.server.prediction import predicted
from sapwood.server.refusals import NATIVE_SAMPLING, refuse
from sapwood.server.sglang.protocol import GenerateRequest, MediaData, NativeSampling

_DEFAULT_MAX_TOKENS = 128  # SGLang's
_THEIRS = {
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


class Wish(msgspec.Struct):
    """What one prompt's answer is to hold: its id, and logprobs from which prompt position on (-1: output only), those of the
    tokens that are `named` included; `insights` of all positions, in that `precision`."""

    id: str
    logprobs: int | None
    start: int
    named: tuple[int, ...] = ()
    insights: frozenset[Insight] = frozenset()
    precision: str = "float32"
    end_check: EndCheck | None = None


class Batch(NamedTuple):
    """Prompts with their parameters, and what the answers to each are to hold. `single`: it was no list of prompts."""

    pairs: list[tuple[Prompt, SamplingParams]]
    wishes: dict[Prompt, Wish]
    single: bool


async def batch_of(front: Front, body: GenerateRequest) -> Batch:
    """Raises RequestError, naming the field."""
    given, param, single = await _prompts(front, body)
    count = len(given)
    samplings = _spread("sampling_params", _converted(body.sampling_params), count, NativeSampling())
    prompts = [
        Prompt(
            placed.tokens,
            param,
            salt,
            priority=body.priority or 0,
            limit_param="max_new_tokens",
            scoring=sampling.max_new_tokens == 0,
            names=names,
            adapter=adapter,
            media=placed.media,
            spans=placed.spans,
        )
        for placed, sampling, salt, names, adapter in zip(
            given, samplings, _salts(body, count), _names(body, count), _adapters(front, body, count), strict=True
        )
    ]
    wishes = _wishes(body, prompts)
    several = await _settled(front, samplings, wishes)
    predictions = await _predictions(front, body.prediction, len(prompts))
    pairs = [
        (prompt, params_for(prompt, replace(params, prediction=guess), front.facts, default=_DEFAULT_MAX_TOKENS))
        for prompt, params, guess in zip(prompts, several, predictions, strict=True)
    ]
    return Batch(pairs, dict(zip(prompts, wishes, strict=True)), single)


class Placed(NamedTuple):
    """A prompt's tokens, with its media where the model's token stood."""

    tokens: list[int]
    media: tuple[Media, ...]
    spans: tuple[Span, ...]


async def _prompts(front: Front, body: GenerateRequest) -> tuple[list[Placed], str, bool]:
    """Each prompt, the field they came in, and whether one was given by itself rather than in a list."""
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
    shows = await _shows(front, body, len(several), single=single)
    if body.text is not None:
        texts = [shown.worded(text) for shown, text in zip(shows, several, strict=True)]
        several = await front.encode_all(texts, param=param)
    for tokens in several:
        front.check_tokens(tokens, param)
    found = [(*shown.placed(tokens), shown.media) for shown, tokens in zip(shows, several, strict=True)]
    return [Placed(tokens, tuple(media), tuple(spans)) for tokens, spans, media in found], param, single


async def _shows(front: Front, body: GenerateRequest, count: int, *, single: bool) -> list[Shown]:
    """The media of each prompt, prepared."""
    salt, most = front.account.tenant.salted(""), front.facts.max_model_len
    shots: list[list[Shot]] = [[] for _ in range(count)]
    given: tuple[tuple[Kind, str, MediaData], ...] = (
        ("image", "image_data", body.image_data),
        ("audio", "audio_data", body.audio_data),
    )
    for kind, name, data in given:
        each = [data] if single else _spread(name, data, count, None)
        for number, one in enumerate(each):
            some = [one] if isinstance(one, str) else one or []
            shots[number] += [Shot(kind, _url(medium, kind, name), name) for medium in some]
    return [await shown_of(some, front.gallery, salt=salt, most=most) for some in shots]


def _url(medium: object, kind: Kind, name: str) -> str:
    """SGLang's clients send base64 by itself."""
    if not isinstance(medium, str) or not medium:
        raise RequestError(
            f"{name} must be URLs or base64, in a list for each prompt where there are several.", param=name
        )
    known = medium[:8].lower().startswith(("data:", "http:", "https:", "file:"))
    return medium if known else f"data:{kind}/any;base64,{medium}"


def _spread(name: str, value: Any, count: int, missing: Any) -> list[Any]:
    """One value per prompt."""
    if not isinstance(value, list):
        return [missing if value is None else value] * count
    if len(value) != count:
        raise RequestError(f"{name} has {len(value)} entries for {count} prompts.", param=name)
    return value


def _salts(body: GenerateRequest, count: int) -> list[str]:
    return [salt_of(body.cache_salt, key) for key in _spread("extra_key", body.extra_key, count, None)]


def _adapters(front: Front, body: GenerateRequest, count: int) -> list[Known | None]:
    """Those that `lora_path` names, which are loaded adapters."""
    names = _spread("lora_path", body.lora_path, count, None)
    return [None if name is None else front.adapters.named(name, "lora_path") for name in names]


def _names(body: GenerateRequest, count: int) -> list[tuple[str, ...]]:
    """What each prompt is called, its own name first; one name for several is numbered, and stands for all of them too."""
    if isinstance(body.rid, str) and count > 1:
        return [(f"{body.rid}_{number}", body.rid) for number in range(count)]
    return [(rid or uuid.uuid4().hex,) for rid in _spread("rid", body.rid, count, None)]


def _wishes(body: GenerateRequest, prompts: Sequence[Prompt]) -> list[Wish]:
    count = len(prompts)
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
        Wish(prompt.names[0], top if want else None, start, ids, insights, body.return_dtype or "float32")
        for prompt, want, top, start, ids, insights in zip(
            prompts, wanted, tops, starts, named, _insights(body, count), strict=True
        )
    ]


def _insights(body: GenerateRequest, count: int) -> list[frozenset[Insight]]:
    """What is to be returned of all positions of each prompt."""
    fields = {name: f"return_{name}" for name in INSIGHTS}
    wanted = {name: _spread(field, getattr(body, field), count, False) for name, field in fields.items()}
    if body.stream and (name := next((name for name in INSIGHTS if any(wanted[name])), None)):
        raise RequestError(f"{fields[name]} cannot be streamed; leave stream out.", param=fields[name])
    return [frozenset(name for name in INSIGHTS if wanted[name][place]) for place in range(count)]


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
    ours = {theirs: name for name, theirs in _THEIRS.items()}
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
    fields |= {f"return_{name}": True for name in wish.insights} | {"return_dtype": wish.precision}
    fields["logprobs"], fields["logprob_token_ids"] = wish.logprobs, wish.named
    fields["prompt_logprobs"] = wish.logprobs if wish.start >= 0 else None
    return front.check(SamplingParams(**(front.defaults | fields)), _THEIRS | _PLACES)


async def _predictions(front: Front, given: str | list[str] | None, count: int) -> list[tuple[int, ...]]:
    """The tokens that each prompt's output is predicted to be; each text is made into tokens once."""
    texts = _spread("prediction", given, count, "")
    tokens = {text: await predicted(front, text) for text in dict.fromkeys(texts)}
    return [tokens[text] for text in texts]


async def _settled(front: Front, samplings: Sequence[NativeSampling], wishes: Sequence[Wish]) -> list[SamplingParams]:
    """Each prompt's parameters, of which those that are the same are made, and checked, once. Tells `wishes` their checks."""
    distinct = {id(sampling): sampling for sampling in samplings}
    forbidden = {key: await front.forbidden(one.bad_words) for key, one in distinct.items()}
    made: dict[tuple[object, ...], tuple[SamplingParams, EndCheck | None]] = {}
    several = []
    for sampling, wish in zip(samplings, wishes, strict=True):
        key = id(sampling), wish.logprobs, wish.named, wish.start >= 0, wish.insights
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
