"""Features of requests and of engines with a model that sees: what changes no token of others changes none of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sapwood.base.errors import ConfigError, ModelError
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from tests import seeing
from tests.contracts import between
from tests.contracts.test_pairs import DIGITS, FEATURES, assembled
from tests.engine.test_sight import Said
from tests.http.test_sight import write_tokenizer
from tests.seeing import picture

FAMILY = "qwen3-vl"  # the one with more to it: positions in three dimensions, and vectors for several layers
NAMED = "qwen2-vl"  # whose layers are called as those of its text, which the adapters are made for
PROMPTS: Sequence[Sequence[int | Image.Image]] = (
    [5, 6, 7, 5, 6, picture(60, 45), 5, 6, 7, 5, 6],
    [9, picture(60, 45), 9, picture(30, 30, 1), 9, 9, 9],
    [5, 6, 7, 8, 5, 6, 7, 8, 5, 6],
    [5, 6, 7, 5, 6, picture(60, 45), 8, 8],
)
ASKED: Sequence[Mapping[str, Any]] = (
    {"max_tokens": 12},
    {"max_tokens": 9, "seed": 3, "temperature": 0.8, "repetition_penalty": 1.2, "logprobs": None},
    {"max_tokens": 8, "allowed_token_ids": (5, 6, 7, 8, 9, 10)},
    {"max_tokens": 12, "grammar": DIGITS, "ignore_eos": False},
)
WITH_SIGHT = (
    ("overlap", "chunked prompts", "drafts", "a stake that pauses", "longest prefix first"),
    ("standing still", "a store of KV", "two at a time", "speculation", "small pages"),
    ("deep overlap", "no prefix cache", "priorities", "no jump-forward", "reference attention"),
    ("sleep and waking", "preemption", "keys in turns", "the CPU's attention"),
    ("weights given anew", "sleep and waking", "speculation", "chunked prompts"),
    ("two ranks", "overlap"),
    ("prompts handed over", "overlap"),
    ("a draft model", "chunked prompts"),
)
WITH_NUMBERS = (
    ("weights in int4", "KV in float16", "adapters", "two at a time"),
    ("weights in fp8", "KV in int8"),
    ("weights in NVFP4", "bfloat16"),
)
NEW = "weights given anew"


def said(
    model: Path, made: Any, names: Sequence[str], prompts: Sequence[Sequence[Any]] = PROMPTS, **more: Any
) -> list[dict[int, list[int]]]:
    """Tokens of all prompts, asked for in each way."""
    features = [FEATURES[name] for name in names]
    options, stakes = assembled(model, features)
    with pytest.MonkeyPatch.context() as patch:
        for name, feature in zip(names, features, strict=True):
            if name == NEW:
                between.renew_from(patch, lambda: str(model))
            elif "between" in feature:
                feature["between"](patch)
        asked = {"model": str(model), "dtype": "float32", "device": "cpu"} | options | more
        engine, *_ = launch(from_options(asked), stakes=stakes, max_drafts=3)
        found = [Said(engine, made, prompts, **params).tokens for params in ASKED]
        engine.shutdown()
    return found


def test_features_of_requests_and_engines_with_models_that_see(tmp_path: Path) -> None:
    made = seeing.preparer(FAMILY, seeing.save(FAMILY, tmp_path))
    write_tokenizer(tmp_path)
    alone = said(tmp_path, made, ())
    assert set(alone[2][0]) <= {5, 6, 7, 8, 9, 10} and len({tuple(one) for one in alone[0].values()}) > 2
    for names in WITH_SIGHT:
        assert said(tmp_path, made, names) == alone, names
    named = seeing.save(NAMED, tmp_path / NAMED)
    write_tokenizer(named)
    seen = seeing.preparer(NAMED, named)
    for names in WITH_NUMBERS:
        found = said(named, seen, names)
        for tokens, params in zip(found, ASKED, strict=True):
            assert all(len(one) == params["max_tokens"] or "grammar" in params for one in tokens.values()), names
        assert {token for one in found[2].values() for token in one} <= {5, 6, 7, 8, 9, 10}
    for name, why in (("two stages", "encoder"), ("transformers' modules", "none of the language models")):
        with pytest.raises((ConfigError, ModelError), match=why):
            said(tmp_path, made, (name,))
