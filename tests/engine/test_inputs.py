"""Whole engines that read inputs: what transformers would say, however requests share, wait, are cut up or give way."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from sapwood import ConfigError, SamplingParams
from sapwood.base.media import Media
from sapwood.base.wire import Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.engine.loop import Engine
from tests import seq2seq

MOST = 8
FAMILIES = ("whisper", "t5")


class Ask(NamedTuple):
    """Which input, of what length where it is a text, and what the decoder begins with."""

    seed: int
    length: int
    tokens: list[int]


BEGIN = seq2seq.text(9, 40)
ASKS = [
    Ask(1, 20, BEGIN[:20]),
    Ask(2, 31, BEGIN[:3]),
    Ask(1, 20, [*BEGIN[:18], 7, 8, 9]),
    Ask(3, 5, BEGIN[:33]),
    Ask(2, 31, BEGIN[:40]),
    Ask(1, 20, BEGIN[:1]),
    Ask(4, 9, BEGIN[:17]),
]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, seq2seq.save(request.param, tmp_path_factory.mktemp(request.param))


def media_of(family: str, ask: Ask) -> Media:
    if family == "whisper":
        return Media.of("audio", {"features": seq2seq.features(ask.seed)}, 24)
    return Media.of("tokens", {"ids": np.array(seq2seq.text(ask.seed, ask.length), np.int32)}, ask.length)


@functools.cache
def wanted(family: str) -> list[list[int]]:
    found = []
    for ask in ASKS:
        heard = seq2seq.features(ask.seed) if family == "whisper" else seq2seq.text(ask.seed, ask.length)
        found.append(seq2seq.greedy(family, heard, ask.tokens, MOST))
    return found


def say(
    path: Path,
    family: str,
    between: Callable[[Engine], None] = lambda engine: None,
    asks: Sequence[Ask] = ASKS,
    **options: Any,
) -> tuple[list[list[int]], Engine]:
    """What engines with these options say; something happens `between` steps."""
    base = {"model": str(path), "dtype": "float32", "max_model_len": 64, "max_total_tokens": 1024, "max_num_seqs": 4}
    engine, *_ = launch(from_options(base | options))
    params = SamplingParams(max_tokens=MOST, temperature=0)
    for id, ask in enumerate(asks):
        submit = Submit(id, ask.tokens, params, media=[media_of(family, ask)])
        assert engine.submit(submit) is None
    found: list[list[int]] = [[] for _ in asks]
    while not engine.idle:
        between(engine)
        for news in engine.step():
            for id, token in zip(news.ids, news.tokens, strict=True):
                found[id].append(token)
            for delta in news.deltas:
                assert delta.error is None
                found[delta.id] += delta.tokens
    assert engine.audit() == 0
    engine.executor.shutdown()
    return found, engine


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_encoder_inputs": 1, "depth": 1, "attention_backend": "reference", "prefix_caching": False},
        {"max_encoder_inputs": 2, "max_num_batched_tokens": 16, "chunked_prefill_size": 8},
        {"max_total_tokens": 128, "depth": 1, "speculation": "ngram", "num_speculative_tokens": 3},
    ],
    ids=str,
)
def test_greedy(model: tuple[str, Path], options: dict[str, Any]) -> None:
    family, path = model
    found, engine = say(path, family, **options)
    assert found == wanted(family)
    counters = engine.stats().counters
    assert counters["encoder_inputs_read"] + counters["encoder_inputs_reused"] >= len(ASKS)
    if options == {}:
        assert counters["encoder_inputs_read"] == 4, "requests with one input share it"
        assert counters["cached_tokens"] >= 16, "and what their decoders begin with"


def test_who_gives_way_goes_on(model: tuple[str, Path]) -> None:
    family, path = model
    turns = itertools.count()

    def retract(engine: Engine) -> None:
        if next(turns) % 3 == 2:
            for what in ("pause", "retract", "continue"):
                engine.control(what)

    found, engine = say(path, family, retract, max_encoder_inputs=2, depth=1)
    assert found == wanted(family)
    assert engine.stats().counters["encoder_inputs_reused"] > 3, "they find what they left"


def test_what_is_refused(model: tuple[str, Path]) -> None:
    family, path = model
    for options, why in (
        ({"tensor_parallel_size": 2}, "--tensor-parallel-size"),
        ({"quantization": "int8"}, "--quantization"),
        ({"enable_lora": True}, "--enable-lora"),
        ({"speculative_model": str(path)}, "--speculative-model"),
        ({"max_encoder_len": 100000}, "--max-encoder-len"),
    ):
        with pytest.raises(ConfigError, match=why):
            say(path, family, **options)
    engine, facts, _ = launch(from_options({"model": str(path), "dtype": "float32", "max_model_len": 64}))
    assert facts.reading is not None and facts.reading.longest == (24 if family == "whisper" else facts.reading.longest)
    engine.submit(Submit(0, [5], SamplingParams(max_tokens=2)))
    (news,) = [delta for news in engine.step() for delta in news.deltas]
    assert news.error is not None and "one input" in news.error
    engine.executor.shutdown()
