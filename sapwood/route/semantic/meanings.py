"""Vectors of texts, from a model for embeddings that one of the servers has; those that were asked for last are kept."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sapwood.route.inner import Inner, Refused, Unanswered
from sapwood.route.semantic.table import Meaning

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float32]

_MOST_KEPT = 4096
_LONGEST = 1000  # characters of a text: about as much as small models read
_AT_ONCE = 64
_PATIENT = 60.0  # seconds for the vectors of examples, which no request waits for
_SHORTEST_REST, _LONGEST_REST = 1.0, 30.0

PATH = "/v1/embeddings"


class Vectors(Protocol):
    """Whoever turns texts into vectors."""

    async def of(self, texts: Sequence[str], timeout: float) -> Floats:
        """Vectors (texts, width) of length 1. Raises Unanswered."""


class Served:
    """Vectors from /v1/embeddings of a server in the table."""

    def __init__(self, inner: Inner, model: str) -> None:
        self._inner, self._model = inner, model
        self._cuts = True  # whether the server cuts texts off that are too long for its model

    async def of(self, texts: Sequence[str], timeout: float) -> Floats:
        body = {"input": list(texts), "encoding_format": "float"}
        try:
            said = await self._inner.ask(
                self._model, PATH, body | ({"truncate_prompt_tokens": -1} if self._cuts else {}), timeout=timeout
            )
        except Unanswered as error:
            if not self._cuts or " says 4" not in str(error):
                raise
            said = await self._inner.ask(self._model, PATH, body, timeout=timeout)
            self._cuts = False
        try:
            found = np.asarray([one["embedding"] for one in said["data"]], dtype=np.float32)
            lengths = np.linalg.norm(found, axis=1, keepdims=True)
        except (KeyError, TypeError, ValueError) as error:
            raise Unanswered(f"{self._model} answers with no vectors: {error}") from error
        if found.shape[0] != len(texts) or not np.isfinite(lengths).all():
            raise Unanswered(f"{self._model} answers with {found.shape[0]} vectors for {len(texts)} texts")
        unit: Floats = found / np.maximum(lengths, 1e-12)
        return unit


class Meanings:
    """Vectors by text. Whoever has not answered is left alone for 1, 2, 4 ... 30 s, so that requests do not wait for nobody."""

    def __init__(self, vectors: Vectors, meaning: Meaning, clock: Callable[[], float] = monotonic) -> None:
        self._vectors, self._timeout, self._clock = vectors, meaning.timeout, clock
        self._kept: OrderedDict[str, Floats] = OrderedDict()
        self._examples: dict[tuple[str, ...], Floats] = {}
        self._learning: dict[tuple[str, ...], asyncio.Task[None]] = {}
        self._rests_until, self._failures, self._told = 0.0, 0, False
        self._width = 0

    async def of(self, text: str) -> Floats:
        """The vector (width,) of a text's beginning. Raises Unanswered."""
        text = text[:_LONGEST]
        if (found := self._kept.get(text)) is not None:
            self._kept.move_to_end(text)
            return found
        vector: Floats = (await self._ask([text], self._timeout))[0]
        self._kept[text] = vector
        while len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
        return vector

    def examples(self, texts: tuple[str, ...]) -> Floats:
        """The vectors (texts, width) of examples. Those that are not known are asked for beside the requests. Raises Unanswered
        until they are there."""
        if (found := self._examples.get(texts)) is not None:
            return found
        if texts not in self._learning and self._clock() >= self._rests_until:
            task = self._learning[texts] = asyncio.get_running_loop().create_task(self._learn(texts))
            task.add_done_callback(lambda _: self._learning.pop(texts, None))
        raise Unanswered("the examples' vectors are not there yet")

    def forget_all_but(self, wanted: Collection[tuple[str, ...]]) -> None:
        """Keep vectors of these examples only."""
        self._examples = {texts: found for texts, found in self._examples.items() if texts in wanted}

    async def learnt(self, texts: tuple[str, ...]) -> bool:
        """Wait for the vectors of examples; whether they are there."""
        try:
            self.examples(texts)
        except Unanswered:
            if (task := self._learning.get(texts)) is not None:
                await asyncio.wait([task])
        return texts in self._examples

    async def _learn(self, texts: tuple[str, ...]) -> None:
        cut = [text[:_LONGEST] for text in texts]
        try:
            parts = [await self._ask(cut[at : at + _AT_ONCE], _PATIENT) for at in range(0, len(cut), _AT_ONCE)]
            if any(part.shape[1] != self._width for part in parts):
                raise Unanswered("several models go by that name")
        except Unanswered as error:
            if not self._told:
                log.warning("vectors of examples cannot be had: %s", error)
            self._told = True  # once, until there are some
            return
        self._examples[texts], self._told = np.concatenate(parts), False

    async def _ask(self, texts: Sequence[str], timeout: float) -> Floats:
        if self._clock() < self._rests_until:
            raise Unanswered("who makes vectors has not answered a moment ago")
        try:
            found = await self._vectors.of(texts, timeout)
        except Refused:
            raise
        except Unanswered:
            if self._clock() >= self._rests_until:  # several that failed at the same time are one failure
                rest = min(_SHORTEST_REST * 2.0 ** min(self._failures, 10), _LONGEST_REST)
                self._rests_until, self._failures = self._clock() + rest, self._failures + 1
            raise
        self._failures = 0
        if self._width not in (0, width := found.shape[1]):  # another model goes by that name now
            self._kept.clear()
            self._examples.clear()
        self._width = width
        return found
