"""A tokenizer as grammars see it: the bytes of each token, and which tokens end an output."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Protocol

import llguidance
import msgspec


class VocabularySpec(msgspec.Struct, frozen=True):
    """What a vocabulary is made of, so that another process can make the same.

    `tokenizer` is tokenizer.json's text; `vocab_size` how many logits the model has, which may be more than there are
    tokens.
    """

    tokenizer: str
    eos_ids: tuple[int, ...]
    vocab_size: int


class TextSide(Protocol):
    """What is needed of a model's text side."""

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    def tokenizer_json(self) -> str: ...


def spec_of(text: TextSide, vocab_size: int) -> VocabularySpec:
    """The vocabulary of a model with so many logits."""
    return VocabularySpec(text.tokenizer_json(), tuple(text.eos_ids), vocab_size)


class Vocabulary:
    """Making one takes from a tenth of a second to a few; it is shared by all grammars and never changes.

    Attributes:
        width: int32 words of a mask: bit v % 32 of word v // 32 is token v's.
    """

    def __init__(self, spec: VocabularySpec) -> None:
        self.tokenizer, self.eos_ids = _tokenizer(spec)
        self.width = -(-self.tokenizer.vocab_size // 32)

    @cached_property
    def pieces(self) -> list[bytes]:
        """The bytes of each token; of special tokens, their names."""
        decode = self.tokenizer.decode_bytes
        return [decode([id]) for id in range(self.tokenizer.vocab_size)]


def _tokenizer(spec: VocabularySpec) -> tuple[llguidance.LLTokenizer, tuple[int, ...]]:
    """The tokenizer, and those of the ends of sequence that it has: others can neither be written nor forbidden."""
    try:
        return llguidance.LLTokenizer(
            spec.tokenizer, n_vocab=spec.vocab_size, eos_token=_listed(spec.eos_ids)
        ), spec.eos_ids
    except ValueError:
        eos_ids = _written(spec)
    try:
        return llguidance.LLTokenizer(spec.tokenizer, n_vocab=spec.vocab_size, eos_token=_listed(eos_ids)), eos_ids
    except ValueError:
        # It has more tokens than the model has logits: those beyond are never drawn, so their bits are never read.
        return llguidance.LLTokenizer(spec.tokenizer, eos_token=_listed(eos_ids)), eos_ids


def _listed(eos_ids: tuple[int, ...]) -> list[int] | None:
    return list(eos_ids) or None


def _written(spec: VocabularySpec) -> tuple[int, ...]:
    told = json.loads(spec.tokenizer)
    vocab = told["model"].get("vocab", ())
    ids = set(range(len(vocab)) if isinstance(vocab, list) else vocab.values())
    ids |= {token["id"] for token in told.get("added_tokens", ())}
    return tuple(id for id in spec.eos_ids if id in ids)
