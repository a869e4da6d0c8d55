"""How well texts go together: /v1/rerank as Jina, Cohere and vLLM have it, /v1/score as vLLM and SGLang have it.

By a model's classifier of pairs, by the cosine of vectors, or, of a model that writes, by how likely some tokens are behind a pair.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from sapwood.base.errors import RequestError
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import Embed, Generate, Score
from sapwood.server.body import json_response
from sapwood.server.fields import Int, listed
from sapwood.server.front import Front
from sapwood.server.generation import Choice, Prompt, choices_of, complete
from sapwood.server.routes import Described, post
from sapwood.server.texts.asking import MOST_TEXTS, Input, Reading, Usage, check_number, read, tokens_of, used
from sapwood.text.reading import Asked, Reader


class Document(msgspec.Struct):
    text: str


class Ranked(msgspec.Struct):
    index: int
    relevance_score: float
    document: Document | UnsetType = UNSET


class Ranking(msgspec.Struct):
    """The best first."""

    id: str
    model: str
    usage: Usage
    results: list[Ranked]


class RankRequest(Reading, kw_only=True):
    """`documents` are texts, or objects with a text; the best `top_n` are told, with their texts if `return_documents`."""

    query: str
    documents: list[str | Document]
    top_n: Int | None = None
    return_documents: bool | None = None


class Scored(msgspec.Struct):
    index: int
    score: float
    object: str = "score"


class Scores(msgspec.Struct):
    """`data` as vLLM has it, or as SGLang has it `scores`, one for each label, item by item."""

    model: str
    usage: Usage
    object: str = "list"
    id: str | UnsetType = UNSET
    created: int | UnsetType = UNSET
    data: list[Scored] | UnsetType = UNSET
    scores: list[list[float]] | UnsetType = UNSET


class ScoreRequest(Reading, kw_only=True):
    """`text_1` (or `queries`) and `text_2` (or `documents`): one and several, or as many of both. Or as SGLang has it, for a model that
    writes: a `query` and `items`, text or token ids, and the `label_token_ids` whose likelihoods behind them are the scores."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    query: str | list[int] | None = None
    items: Input | None = None
    label_token_ids: list[Int] | None = None
    apply_softmax: bool | None = None
    item_first: bool | None = None


def routes(front: Front) -> list[Described]:
    async def rerank(request: Request, body: RankRequest) -> Response:
        """Documents by how well they answer a query, the best first."""
        return json_response(await _ranking(front, request, body, told=True))

    async def rerank_v2(request: Request, body: RankRequest) -> Response:
        """The same as Cohere's v2 has it, where documents are told only if asked for."""
        return json_response(await _ranking(front, request, body, told=False))

    async def score(request: Request, body: ScoreRequest) -> Response:
        """How well pairs of texts go together; or how likely labels are behind a query and each item."""
        if body.label_token_ids is not None or body.items is not None:
            return json_response(await _label_scores(front, request, body))
        firsts, seconds = _pairs(body)
        scores, usage = await _scores(front, request, body, firsts, seconds, params=("text_1", "text_2"))
        data = [Scored(index, value) for index, value in enumerate(scores)]
        id = f"score-{uuid.uuid4().hex}"
        return json_response(Scores(front.answering, usage, id=id, created=int(time.time()), data=data))

    return [
        *(post(front, path, RankRequest, rerank, gives=Ranking) for path in ("/rerank", "/v1/rerank")),
        post(front, "/v2/rerank", RankRequest, rerank_v2, gives=Ranking),
        *(post(front, path, ScoreRequest, score, gives=Scores) for path in ("/score", "/v1/score")),
    ]


async def _ranking(front: Front, request: Request, body: RankRequest, *, told: bool) -> Ranking:
    documents = [one if isinstance(one, str) else one.text for one in body.documents]
    if body.top_n is not None and body.top_n < 1:
        raise RequestError(f"top_n must be at least 1, got {body.top_n}.", param="top_n")
    if not documents:
        raise RequestError("documents is empty; at least one is needed.", param="documents")
    scores, usage = await _scores(front, request, body, [body.query], documents, params=("query", "documents"))
    order = sorted(range(len(documents)), key=lambda index: -scores[index])[: body.top_n]
    shown = told if body.return_documents is None else body.return_documents
    results = [Ranked(index, scores[index], Document(documents[index]) if shown else UNSET) for index in order]
    return Ranking(f"rerank-{uuid.uuid4().hex}", front.answering, usage, results)


def _pairs(body: ScoreRequest) -> tuple[list[str], list[str]]:
    """Raises RequestError for lists of which neither is one, nor both are as long."""
    firsts = listed(body.text_1 if body.text_1 is not None else body.queries)
    seconds = listed(body.text_2 if body.text_2 is not None else body.documents)
    for name, texts in (("text_1", firsts), ("text_2", seconds)):
        if not texts:
            raise RequestError(f"{name} is missing: give text_1 and text_2, or queries and documents.", param=name)
    if len(firsts) not in (1, len(seconds)):
        raise RequestError(
            f"text_1 has {len(firsts)} texts and text_2 {len(seconds)}: give one and several, or as many of both.",
            param="text_1",
        )
    return list(firsts), list(seconds)


async def _scores(
    front: Front, request: Request, body: Reading, firsts: list[str], seconds: list[str], *, params: tuple[str, str]
) -> tuple[list[float], Usage]:
    """Of each second text, beside the first one or its own."""
    classifies = front.facts.classifier is not None
    body.check(front, Score if classifies else Embed)
    for texts, param in zip((firsts, seconds), params, strict=True):
        check_number(len(texts), param)
    if not classifies:
        return await _cosines(front, request, body, firsts, seconds, params)
    reader, most = Reader(front.text, front.facts), body.most(front)
    if len(reader.labels) != 1:
        raise RequestError(
            f"this model has {len(reader.labels)} labels, and scores of pairs come from one: ask /classify.",
            param="model",
        )
    pairs = list(zip(firsts if len(firsts) > 1 else firsts * len(seconds), seconds, strict=True))
    encoded = await front.read(
        lambda reader: [reader.pair(*pair, most=most) for pair in pairs], firsts + seconds, param=params[1], most=most
    )
    asked = [reader.score(*one, param=params[1]) for one in encoded]
    choices = await read(front, request, asked, body, param=params[1])
    return [float(reader.squashed(choice.vector)[0]) for choice in choices], used(choices)


async def _cosines(
    front: Front, request: Request, body: Reading, firsts: list[str], seconds: list[str], params: tuple[str, str]
) -> tuple[list[float], Usage]:
    reader, most, asked = Reader(front.text, front.facts), body.most(front), list[Asked]()
    for given, param in zip((firsts, seconds), params, strict=True):
        texts = await tokens_of(front, list(given), param=param, most=most)
        asked += [reader.embed(tokens, param=param) for tokens in texts]
    choices = await read(front, request, asked, body, param=params[1])
    vectors = [reader.vector(choice.vector, normalised=True) for choice in choices]
    ours, theirs = vectors[: len(firsts)], vectors[len(firsts) :]
    scores = [float(ours[index % len(ours)] @ their) for index, their in enumerate(theirs)]
    return scores, used(choices)


async def _label_scores(front: Front, request: Request, body: ScoreRequest) -> Scores:
    """By how likely each label is to be the next token."""
    body.check(front, Generate)
    if not body.label_token_ids:
        raise RequestError(
            "label_token_ids is missing: the tokens whose likelihoods are the scores.", param="label_token_ids"
        )
    labels = tuple(body.label_token_ids)
    params = front.check(
        SamplingParams(temperature=0, max_tokens=1, logprobs=0, logprob_token_ids=labels),
        {"logprob_token_ids": "label_token_ids"},
    )
    prompts = [
        Prompt(tokens, "items", body.cache_salt or "", body.priority or 0) for tokens in await _joined(front, body)
    ]
    choices = choices_of([(prompt, params) for prompt in prompts], most=MOST_TEXTS)
    await front.attended(request.receive, complete(front, choices))
    scores = [_of_labels(choice, bool(body.apply_softmax)) for choice in choices]
    return Scores(front.answering, used(choices), object="scoring", scores=scores)


async def _joined(front: Front, body: ScoreRequest) -> Sequence[list[int]]:
    """Query and item, or the other way round, in the words or the tokens that they were given in."""
    query, items = body.query, [body.items] if isinstance(body.items, str) else body.items or []
    if isinstance(query, str) and all(isinstance(item, str) for item in items):
        texts = [f"{item}{query}" if body.item_first else f"{query}{item}" for item in items]
        return await tokens_of(front, list(texts), param="items", most=None)
    if isinstance(query, list) and all(isinstance(item, list) for item in items):
        ids = [[*item, *query] if body.item_first else [*query, *item] for item in items if isinstance(item, list)]
        return await tokens_of(front, list(ids), param="items", most=None)
    raise RequestError("query and items must both be text, or both token ids.", param="items")


def _of_labels(choice: Choice, softmax: bool) -> list[float]:
    found = np.array(choice.logprobs[0].named_logprobs)
    likely = np.exp(found)
    scores: list[float] = (likely / likely.sum() if softmax and likely.sum() else likely).tolist()
    return scores
