"""Vectors and scores of texts by an engine in this process: what `LLM.embed`, `LLM.score` and `LLM.classify` do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sapwood.base.errors import RequestError
from sapwood.base.plan import Floats
from sapwood.base.task import Pooling
from sapwood.base.wire import Delta
from sapwood.engine.client import Stream, check_request
from sapwood.engine.inprocess import InProcess
from sapwood.text import TextModel
from sapwood.text.reading import PARAMS, Asked, Reader


@dataclass(eq=False)
class Embedding:
    """A text's vector, float32."""

    vector: Floats
    prompt_tokens: int
    cached_tokens: int = 0


@dataclass(eq=False)
class Classification:
    """A text's likeliest label, and the score of each."""

    label: str
    scores: dict[str, float]
    prompt_tokens: int


class Texts:
    """Reads texts with an engine that its caller drives."""

    def __init__(self, engine: InProcess, text: TextModel) -> None:
        self._engine, self._reader = engine, Reader(text, engine.facts)

    def embed(
        self,
        texts: Sequence[str | list[int]],
        pooling: Pooling | None = None,
        dimensions: int | None = None,
        normalise: bool | None = None,
        prompt_name: str | None = None,
        *,
        truncate: bool = False,
    ) -> list[Embedding]:
        reader, most = self._reader, self._reader.most if truncate else None
        reader.check_dimensions(dimensions)
        asked = [
            reader.embed(
                reader.tokens(text, most=most, prompt=prompt_name) if isinstance(text, str) else text[:most], pooling
            )
            for text in texts
        ]
        return [
            Embedding(
                reader.vector(delta.vector, dimensions=dimensions, normalised=normalise),
                len(ask.tokens),
                delta.cached_tokens,
            )
            for ask, delta in zip(asked, self._run(asked), strict=True)
        ]

    def score(self, query: str, documents: Sequence[str], *, truncate: bool) -> list[float]:
        reader, most = self._reader, self._reader.most if truncate else None
        if self._engine.facts.classifier is None:
            first, *rest = self.embed([query, *documents], normalise=True, truncate=truncate)
            return [float(first.vector @ one.vector) for one in rest]
        if len(reader.labels) != 1:
            raise RequestError(f"this model has {len(reader.labels)} labels: `classify` tells them.", param="model")
        asked = [reader.score(*reader.pair(query, document, most=most)) for document in documents]
        return [float(reader.squashed(delta.vector)[0]) for delta in self._run(asked)]

    def classify(self, texts: Sequence[str], *, truncate: bool) -> list[Classification]:
        reader, most = self._reader, self._reader.most if truncate else None
        asked = [reader.score(*reader.pair(text, None, most=most)) for text in texts]
        found = []
        for ask, delta in zip(asked, self._run(asked), strict=True):
            scores = reader.squashed(delta.vector)
            label = reader.labels[int(np.argmax(scores))]
            found.append(Classification(label, dict(zip(reader.labels, scores.tolist(), strict=True)), len(ask.tokens)))
        return found

    def _run(self, asked: Sequence[Asked]) -> list[Delta]:
        """Raises RequestError before anything runs if one cannot be served, GenerationFailed if one fails."""
        for ask in asked:
            check_request(ask.tokens, PARAMS, self._engine.facts, task=ask.task)
        runs: list[_Run] = []
        try:
            for ask in asked:
                run = _Run()
                run.stream = self._engine.submit(ask.tokens, PARAMS, run, task=ask.task)
                runs.append(run)
            while any(not run.woken for run in runs):
                self._engine.step()
            return [run.taken() for run in runs]
        finally:
            for run in runs:
                run.stream.close()
            self._engine.drain()


class _Run:
    """One text on its way: its only news is its end."""

    stream: Stream
    woken = False

    def wake(self) -> None:
        self.woken = True

    def taken(self) -> Delta:
        delta = self.stream.take()
        assert delta is not None and delta.finish is not None, "all that was said of it"
        return delta
