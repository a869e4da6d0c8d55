"""Texts to be read and not gone on with: what is asked of the engine, and what is made of the vectors that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sapwood.base.errors import RequestError
from sapwood.base.plan import Floats
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import Embed, Pooling, Score
from sapwood.base.wire import Facts
from sapwood.text.model import TextModel

PARAMS = SamplingParams(temperature=0, max_tokens=1)
"""Of the one token that means nothing."""


class Asked(NamedTuple):
    """Tokens, and what is wanted of them."""

    tokens: list[int]
    task: Embed | Score


class Reader:
    """Reads for a model of which the engine has told `facts`."""

    def __init__(self, text: TextModel, facts: Facts) -> None:
        self._text, self._sentence, self._facts = text, text.sentence, facts

    @property
    def most(self) -> int:
        """Tokens of the longest text."""
        return min(self._facts.max_model_len, self._sentence.max_tokens or self._facts.max_model_len)

    @property
    def labels(self) -> Sequence[str]:
        return self._sentence.labels

    def check_dimensions(self, dimensions: int | None) -> None:
        """Raise RequestError for more or fewer than there are."""
        size = self._facts.vector_size
        if dimensions is not None and not 0 < dimensions <= size:
            raise RequestError(
                f"dimensions must be from 1 to {size}, which the model has, got {dimensions}.", param="dimensions"
            )

    def embed(self, tokens: list[int], pooling: Pooling | None = None, *, param: str = "prompt") -> Asked:
        """What is asked for a text's vector."""
        self._check(tokens, param)
        return Asked(tokens, Embed(pooling or self._sentence.pooling or self._facts.pooling))

    def score(self, tokens: list[int], second: int = 0, *, param: str = "prompt") -> Asked:
        """What is asked for a text's scores, or those of two that are one."""
        self._check(tokens, param)
        return Asked(tokens, Score(self._facts.classifier or "last", second))

    def tokens(self, text: str, *, most: int | None = None, prompt: str | None = None) -> list[int]:
        """Of a text to embed, behind the `prompt` of that name; cut off at `most`."""
        return self.pair(self._prompted(text, prompt), None, most=most)[0]

    def pair(self, text: str, second: str | None, *, most: int | None = None) -> tuple[list[int], int]:
        """Tokens of one text or two, and where the second begins; cut off at `most`."""
        texts = [one.lower() if self._sentence.lower else one for one in (text, second) if one is not None]
        return self._text.encode_pair(*texts, most=most)

    def squashed(self, raw: bytes) -> Floats:
        """Scores as they are told: probabilities, unless the model says otherwise."""
        scores = np.frombuffer(raw, np.float32).astype(np.float64)
        match self._sentence.scores:
            case "identity":
                made = scores
            case "sigmoid":
                made = 1 / (1 + np.exp(-scores))
            case "softmax":
                powers = np.exp(scores - scores.max())
                made = powers / powers.sum()
        return made.astype(np.float32)

    def vector(self, raw: bytes, *, dimensions: int | None = None, normalised: bool | None = None) -> Floats:
        """A text's vector: its first `dimensions`, normalised as asked, or as the model's are."""
        vector: Floats = np.frombuffer(raw, np.float32)[:dimensions]
        if not (self._sentence.normalised if normalised is None else normalised):
            return vector
        length = np.float32(np.linalg.norm(vector))
        return vector / length if length else vector

    def _prompted(self, text: str, name: str | None) -> str:
        prompts = self._sentence.prompts
        name = self._sentence.prompt if name is None else name
        if name is None:
            return text
        if name not in prompts:
            known = ", ".join(map(repr, prompts)) or "none"
            raise RequestError(f"prompt_name {name!r} is not one of the model's: {known}.", param="prompt_name")
        return prompts[name] + text

    def _check(self, tokens: list[int], param: str) -> None:
        if len(tokens) > self.most:
            raise RequestError(
                f"the text is too long: {len(tokens)} tokens > {self.most} maximum; shorten it, or have it cut off by "
                "truncate_prompt_tokens.",
                param=param,
                code="context_length_exceeded",
            )
