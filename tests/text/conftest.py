"""Small tokenizers of both kinds, and a model directory around one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sapwood.hub.files import ModelFiles
from sapwood.text import TextModel
from tests.text.styles import CHATML

CORPUS = [
    "the cat sat on the mat; the dog did not.",
    "def f(x): return x + 1\n",
    "ça va très bien, 日本語 😀",
    "123 4567",
]


@pytest.fixture(scope="session")
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


@pytest.fixture
def load(tmp_path: Path, byte_level: Tokenizer) -> Callable[..., TextModel]:
    """Write a model directory and load its text side; keyword arguments change tokenizer_config.json."""

    def load(
        config: dict[str, Any] | None = None,
        generation: dict[str, Any] | None = None,
        extra: tuple[str, ...] = (),
        **tokenizer_config: Any,
    ) -> TextModel:
        tokenizer = Tokenizer.from_str(byte_level.to_str())
        tokenizer.add_special_tokens(list(extra))
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML} | tokenizer_config))
        return TextModel.load(ModelFiles("tiny", tmp_path, "hf", config or {}, generation or {}))

    return load


@pytest.fixture
def text(load: Callable[..., TextModel]) -> TextModel:
    return load()
