"""Tokenizers out of GGUF metadata, against slow twins that follow the definitions."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from sapwood.base.errors import ModelError
from sapwood.text.convert import CONTROL, NORMAL, SPACE, USER_DEFINED, convert
from sapwood.text.detokenizer import Detokenizer
from sapwood.text.pieces import BYTE_OF, Pieces
from sapwood.text.template import find_templates
from tests.broken import METADATA

BYTE, UNKNOWN = 6, 2
WORDS = [
    "he",
    "ll",
    "lo",
    "hell",
    "hello",
    "wo",
    "or",
    "ld",
    "wor",
    "world",
    "el",
    "ow",
    SPACE + "w",
    SPACE + "he",
    SPACE + "world",
]


def sentence_piece(**flags: bool) -> dict[str, Any]:
    chars = sorted({SPACE, *"helowrd"})
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *chars, *WORDS, "<turn>", "\n\n"]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * (len(chars) + len(WORDS)), CONTROL, USER_DEFINED]
    order = random.Random(5).sample(range(len(tokens)), len(tokens))
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": [-float(place) for place in order],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | {f"tokenizer.ggml.{name}": value for name, value in flags.items()}


def sentence_piece_twin(text: str, metadata: dict[str, Any]) -> list[str]:
    """Merge the neighbours whose union scores best, the leftmost of equals, until none can; then fall back to bytes."""
    scores = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))
    parts = list(text.replace(" ", SPACE))
    while True:
        unions = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in scores]
        if not unions:
            break
        at = -max(unions)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [
        piece for part in parts for piece in ([part] if part in scores else [f"<0x{b:02X}>" for b in part.encode()])
    ]


def test_scores_decide_merges() -> None:
    metadata = sentence_piece(add_space_prefix=False, add_bos_token=False)
    tokenizer, _ = convert(metadata)
    pieces = Pieces(tokenizer)

    @hypothesis_settings(max_examples=300, deadline=None)
    @given(st.text("helowrd é日", max_size=16))
    def check(text: str) -> None:
        encoding = tokenizer.encode(text)
        assert encoding.tokens == sentence_piece_twin(text, metadata)
        stream = Detokenizer(pieces)
        assert "".join(stream.push([id]) for id in encoding.ids) + stream.finish() == text

    check()


def test_pieces_of_any_kind_are_made_by_merging() -> None:
    """Runs of spaces that the file calls the user's own, all of one score; the longest from the left is found."""
    metadata = sentence_piece(add_space_prefix=False, add_bos_token=False)
    runs = [SPACE * length for length in (2, 3, 4)]
    for column, values in (("tokens", runs), ("token_type", [USER_DEFINED] * 3), ("scores", [0.0] * 3)):
        metadata[f"tokenizer.ggml.{column}"] = [*metadata[f"tokenizer.ggml.{column}"], *values]
    tokenizer, _ = convert(metadata)
    pieces = Pieces(tokenizer)
    for length in range(1, 14):
        tokens = tokenizer.encode(" " * length).tokens
        assert tokens == sentence_piece_twin(" " * length, metadata)
        assert tokens[: length // 4] == [SPACE * 4] * (length // 4)
        assert b"".join(pieces[tokenizer.token_to_id(token)] for token in tokens) == b" " * length


NONE = [-1, 2**32 - 1, 99_999, 1.5]


@pytest.mark.parametrize("id", NONE)
@pytest.mark.parametrize("key", ["bos", "eos", "unknown", "padding"])
def test_ids_of_no_token_name_none(key: str, id: int) -> None:
    plain, _ = convert(sentence_piece())
    tokenizer, config = convert(sentence_piece() | {f"tokenizer.ggml.{key}_token_id": id})
    name = {"unknown": "unk", "padding": "pad"}.get(key, key)
    assert config[f"{name}_token"] is None
    begun = plain.encode("hello").tokens
    assert tokenizer.encode("hello").tokens == (begun[1:] if key == "bos" else begun)


@pytest.mark.parametrize(("damage", "says"), METADATA.values(), ids=METADATA)
def test_damaged_columns_and_flags_are_named(damage: dict[str, Any], says: str) -> None:
    metadata = sentence_piece() | {f"tokenizer.ggml.{name}": value for name, value in damage.items()}
    with pytest.raises(ModelError, match=f"{says}.*--tokenizer"):
        convert(metadata)


def test_a_space_is_put_in_front_and_taken_away() -> None:
    tokenizer, _ = convert(sentence_piece())
    assert tokenizer.encode("hello world").tokens == ["<s>", *sentence_piece_twin(" hello world", sentence_piece())]
    assert tokenizer.decode(tokenizer.encode("hello").ids) == "hello"
    assert Pieces(tokenizer).strip == 1


def test_control_and_user_tokens() -> None:
    tokenizer, config = convert(sentence_piece(add_space_prefix=False, add_bos_token=True, add_eos_token=True))
    assert tokenizer.encode("<turn>\n\n").tokens == ["<s>", "<turn>", "\n\n", "</s>"]
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert added == {"<s>": True, "</s>": True, "<turn>": True, "\n\n": False}
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")


def byte_level(pre: str) -> dict[str, Any]:
    merges = ["1 2", "12 3", "a b", "Ġ a", "Ġa b", "e Ì", "eÌ ģ"]
    tokens = ["<eos>", *BYTE_OF, *(merge.replace(" ", "") for merge in merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL, *[NORMAL] * (len(tokens) - 1)],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
    }


@pytest.mark.parametrize(
    ("pre", "digits", "begins"),
    [
        ("gpt-2", ["123", "123", "\n"], False),
        ("smollm", ["1", "2", "3", "1", "2", "3", "\n"], False),
        ("qwen2", ["1", "2", "3", "1", "2", "3", "\n"], False),
        ("llama-bpe", ["123", "123", "\n"], True),
        ("tekken", ["1", "2", "3", "1", "2", "3", "\n"], True),
    ],
)
def test_words_are_cut_by_the_named_rule(pre: str, digits: list[str], begins: bool) -> None:
    tokenizer, _ = convert(byte_level(pre))
    ids = tokenizer.encode("123123\n").ids
    assert [tokenizer.decode([id]) for id in ids if id] == digits
    assert (ids[0] == 0) == begins
    assert tokenizer.decode(tokenizer.encode("ab ab").ids) == "ab ab"


def test_without_a_rule_words_are_cut_by_that_of_gpt2() -> None:
    """As llama.cpp does, with a warning."""
    metadata = byte_level("gpt-2")
    named, _ = convert(metadata)
    del metadata["tokenizer.ggml.pre"]
    unnamed, _ = convert(metadata)
    assert unnamed.to_str() == named.to_str()


def test_qwen_composes_characters() -> None:
    composed, _ = convert(byte_level("qwen2"))
    assert composed.decode(composed.encode("e\u0301").ids) == "\u00e9"
    plain, _ = convert(byte_level("smollm"))
    assert plain.decode(plain.encode("e\u0301").ids) == "e\u0301"


def test_what_is_unknown_is_refused() -> None:
    for pre in ("klingon", "deepseek-r1-qwen"):
        with pytest.raises(ModelError, match=rf"'{pre}'.*--tokenizer"):
            convert(byte_level(pre))
    with pytest.raises(ModelError, match="'rwkv'"):
        convert({"tokenizer.ggml.model": "rwkv"})


def test_templates_come_along() -> None:
    key = "tokenizer.chat_template"
    _, config = convert(byte_level("gpt-2") | {key: "one", f"{key}.tool_use": "two", f"{key}s": ["tool_use"]})
    assert find_templates(None, config) == {"default": "one", "tool_use": "two"}
