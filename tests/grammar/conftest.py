"""A vocabulary whose tokens are the bytes and some common pieces of JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from sapwood.base.grammar import Grammar
from sapwood.grammar import Compiler, Constraint, Vocabulary, VocabularySpec
from sapwood.grammar.compiler import Compiled

EOS = 1
PIECES = [
    '{"',
    '":',
    '",',
    ', "',
    '": "',
    '"}',
    "name",
    "true",
    "false",
    "null",
    ">\n",
    ">{",
    "</",
    "think",
    "ab",
    "aba",
]


def tokenizer_json() -> str:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: id for id, text in enumerate(["<|pad|>", "<|end|>", *letters])}
    merges: list[tuple[str, str]] = []
    for piece in PIECES:
        (whole,) = [text for text, _ in pre_tokenizers.ByteLevel(False, use_regex=False).pre_tokenize_str(piece)]
        for end in range(2, len(whole) + 1):
            if whole[:end] not in vocabulary:
                vocabulary[whole[:end]] = len(vocabulary)
                merges.append((whole[: end - 1], whole[end - 1]))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|pad|>", "<|end|>")])
    return str(tokenizer.to_str())


def spec() -> VocabularySpec:
    return VocabularySpec(tokenizer_json(), (EOS,), 300)


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(spec())


@pytest.fixture
def compiler(vocabulary: Vocabulary) -> Iterator[Compiler]:
    compiler = Compiler(lambda: vocabulary)
    yield compiler
    compiler.close()


@pytest.fixture
def begin(vocabulary: Vocabulary) -> Callable[..., Constraint]:
    def begin(grammar: Grammar, **more: object) -> Constraint:
        compiled = Compiled(vocabulary, grammar, compact_json=bool(more.pop("compact_json", False)))
        return Constraint(compiled, **({"position": 5, "stop_ids": (EOS,)} | more))  # type: ignore[arg-type]

    return begin


def allowed(constraint: Constraint) -> set[int]:
    """The tokens that may come next."""
    bits = np.zeros((1, constraint.compiled.vocabulary.width), np.int32)
    matcher = constraint.begin(bits[0])
    if matcher is not None:
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
    constraint.finish(bits[0])
    return set(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist())
