"""Tokenizers: added tokens that are words, and texts that have to come back as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from sapwood.hub.files import ModelFiles
from sapwood.text import TextModel

WORDS = ["café", "Straße", "naïve", "日本", "👩‍👩‍👧", "a b", "Ġx"]


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory, byte_level: Tokenizer) -> tuple[TextModel, Tokenizer]:
    """A byte-level tokenizer to which words of any script have been added, and what loads it."""
    folder = tmp_path_factory.mktemp("worded")
    tokenizer = Tokenizer.from_str(byte_level.to_str())
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    tokenizer.save(str(folder / "tokenizer.json"))
    return TextModel.load(ModelFiles("tiny", folder, "hf", {}, {})), tokenizer


@pytest.mark.parametrize("word", WORDS)
def test_added_words(worded: tuple[TextModel, Tokenizer], word: str) -> None:
    text, tokenizer = worded
    written = f"x {word} y{word}"
    ids = text.encode(written)
    assert ids == tokenizer.encode(written).ids and ids.count(tokenizer.token_to_id(word)) == 2
    assert text.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    "written",
    [
        "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
        "e\u0301 é Å \u212b",
        "a\u200bb\ufeffc\u00a0d",
        "नमस्ते สวัสดี",
        "\r\n\t \x0b",
        "\x00\x7f",
        "ﬁ ½ Ⅷ",
    ],
)
def test_texts_come_back(worded: tuple[TextModel, Tokenizer], written: str) -> None:
    text, _ = worded
    ids = text.encode(written, add_special=False)
    assert text.decode(ids) == written
    pieces = b"".join(text.token_bytes(id) for id in ids)
    assert pieces.decode() == written


def test_a_path_with_any_letters(tmp_path: Path, byte_level: Tokenizer) -> None:
    folder = tmp_path / "un modèle à moi"
    folder.mkdir()
    byte_level.save(str(folder / "tokenizer.json"))
    link = tmp_path / "latest"
    link.symlink_to(folder)
    assert TextModel.load(ModelFiles("tiny", link, "hf", {}, {})).encode("a")
