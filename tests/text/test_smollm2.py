"""The tokenizer and template of the real small model, out of its GGUF file."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Delta
from sapwood.hub import Cache, ModelFiles, open_files
from sapwood.text import TextModel
from sapwood.text.pieces import BYTE_OF
from sapwood.text.tokenizer import load_vocabulary

TEXTS = [
    "Hello, world! It's 12345 o'clock; we'll see.",
    "def f(x: int) -> int:\n\treturn x ** 2  # square\n\n\n    pass",
    "  two  spaces and a tail   ",
    "naïve façade — “quotes” … Ωμέγα Привет",
    "日本語の文章、中文句子。한국어 문장",
    "emoji 😀👩‍👩‍👧‍👦🏳️‍🌈 and \u200bzero width",
    "<html><p class='x'>a&amp;b</p></html>\r\n\r\n",
    "1234567890 3.14 ١٢٣ Ⅷ ²",
    "\x00\x01\x7f control",
    "",
]


@pytest.fixture(scope="module")
def files(smollm2: Path) -> ModelFiles:
    return open_files(smollm2, name="smollm2")


@pytest.fixture(scope="module")
def text(files: ModelFiles, tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return TextModel.load(files, cache=Cache(tmp_path_factory.mktemp("cache")))


def twin(text: str, vocabulary: dict[str, int], ranks: dict[tuple[str, str], int]) -> list[int]:
    """GPT-2's byte-level BPE with single digits, by its definition."""
    regex = pytest.importorskip("regex")
    char_of = {byte: char for char, byte in BYTE_OF.items()}
    ids = []
    for digit, other in regex.findall(r"(\p{N})|(\P{N}+)", text):
        words = (
            [digit]
            if digit
            else regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", other)
        )
        for word in words:
            parts = [char_of[byte] for byte in word.encode()]
            while True:
                pairs = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
                if not pairs:
                    break
                _, at = min(pairs)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            ids += [vocabulary[part] for part in parts]
    return ids


def test_the_slow_twin_agrees(files: ModelFiles, text: TextModel, tmp_path: Path) -> None:
    tokenizer = load_vocabulary(files, cache=Cache(tmp_path)).tokenizer
    bpe = json.loads(tokenizer.to_str())["model"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(bpe["merges"])}
    for written in TEXTS:
        ids = text.encode(written)
        assert ids == twin(written, bpe["vocab"], ranks)
        assert text.decode(ids, skip_special=False) == written
        assembler = text.assembler(SamplingParams(skip_special_tokens=False))
        pieces = [assembler.take(Delta(1, [id])) for id in ids] + [assembler.take(Delta(1, [], finish="length"))]
        assert "".join(piece.text for piece in pieces) == written


def test_facts(text: TextModel) -> None:
    assert (text.vocab_size, text.bos_id, text.eos_ids) == (49152, 1, (2,))
    assert [text.token_text(id) for id in text.encode("<|im_start|>a 12<|im_end|>")] == [
        *("<|im_start|>", "a", " ", "1", "2", "<|im_end|>")
    ]


def test_the_template_speaks_first(text: TextModel) -> None:
    default = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    user = {"role": "user", "content": "Hi"}
    assert text.render([user]) == f"{default}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    given = text.render([{"role": "system", "content": "Be brief."}, user], add_generation_prompt=False)
    assert given == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"


def test_the_conversion_is_kept(files: ModelFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    first = TextModel.load(files, cache=cache)
    (kept,) = cache.tokenizers.iterdir()
    Tokenizer.from_file(str(kept / "tokenizer.json"))
    monkeypatch.setattr("sapwood.hub.gguf.open_gguf", None)  # not read again
    second = TextModel.load(files, cache=cache)
    for written in TEXTS:
        assert first.encode(written) == second.encode(written)
    assert (second.eos_ids, second.bos_id, second.has_template) == (first.eos_ids, first.bos_id, True)


def test_the_template_stays_when_the_tokenizer_comes_from_elsewhere(files: ModelFiles, tmp_path: Path) -> None:
    load_vocabulary(files, cache=Cache(tmp_path)).tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TextModel.load(files, tokenizer=str(tmp_path), cache=Cache(tmp_path)).has_template


def test_a_cache_that_cannot_be_written_does_not_matter(files: ModelFiles, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file is in the way")
    assert TextModel.load(files, cache=Cache(tmp_path / "cache")).encode("Hello") != []
