"""Every family on a GPU: what it says, sees, hears and reads there is what the CPU, or transformers, has of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sapwood import LLM
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import POOLINGS, Embed, Score
from tests import models, readers, seeing, seq2seq
from tests.adapters.test_engine import PARAMS, PROMPTS, Made
from tests.breadth import BREADTH, RENAMED
from tests.engine import test_inputs, test_sight, test_texts
from tests.engine.test_drafts import Said, drafted, say
from tests.engine.whole import prompts_that_share
from tests.recurrent import RECURRENT
from tests.unknown import UNKNOWN

pytestmark = pytest.mark.gpu

MINE = [(prompt, SamplingParams(max_tokens=16, temperature=0, logprobs=1)) for prompt in prompts_that_share(5)]
CLOSE = 1e-3


def saved(family: str, path: Path) -> Path:
    try:
        return models.save(family, path)
    except AttributeError as error:
        pytest.skip(f"an older transformers: {error}")


def near(found: Said, wanted: Said) -> None:
    for (tokens, _, logprobs), (right, _, scores) in zip(found, wanted, strict=True):
        assert tokens == right
        assert logprobs == pytest.approx(scores, abs=CLOSE)


@pytest.mark.parametrize("family", [*models.MODELS, *BREADTH, *RENAMED, *RECURRENT, *UNKNOWN])
def test_the_same_is_said(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path)
    wanted, _ = say(model, MINE, device="cpu", prefix_caching=False)
    found, counters = say(model, MINE, device="cuda", max_num_batched_tokens=48)
    near(found, wanted)
    assert counters["cached_tokens"] > 0 or family in UNKNOWN


@pytest.mark.parametrize("family", ["lfm2", "mamba", "mamba2", "qwen3-next", "deepseek-v3", "gpt-oss", "llama4"])
@pytest.mark.parametrize("depth", [0, 2])
def test_drafts_change_nothing(family: str, depth: int, tmp_path: Path) -> None:
    model = saved(family, tmp_path)
    wanted, plain = say(model, MINE, device="cpu", depth=0, prefix_caching=False)
    found, counters = say(model, MINE, device="cuda", depth=depth, stakes=drafted(wanted, truth=0.7))
    near(found, wanted)
    assert counters["steps"] < 0.9 * plain["steps"]


@pytest.mark.parametrize("family", seeing.SEEING)
def test_the_same_is_seen(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_sight, "CLOSE", CLOSE)
    made, prompts = seeing.preparer(family, seeing.save(family, tmp_path)), test_sight.some_prompts()
    for options in ({}, {"max_num_batched_tokens": 7, "depth": 2}):
        engine, _ = test_sight.engine_of(tmp_path, device="cuda", **options)
        for _ in range(2):
            test_sight.check(family, test_sight.Said(engine, made, prompts), prompts)
        engine.executor.shutdown()


@pytest.mark.parametrize("family", test_inputs.FAMILIES)
@pytest.mark.parametrize("depth", [0, 2])
def test_the_same_is_heard(family: str, depth: int, tmp_path: Path) -> None:
    found, engine = test_inputs.say(seq2seq.save(family, tmp_path), family, device="cuda", depth=depth)
    assert found == test_inputs.wanted(family)
    assert engine.stats().counters["encoder_inputs_read"] == 4


@pytest.mark.parametrize("family", [*test_texts.ENCODERS, *test_texts.DECODERS])
def test_the_same_is_read(family: str, tmp_path: Path) -> None:
    engine, _ = test_texts.engine_of(saved(family, tmp_path), device="cuda", max_num_batched_tokens=200)
    texts = test_texts.texts_of(test_texts.LENGTHS)
    poolings = [POOLINGS[index % len(POOLINGS)] for index in range(len(texts))]
    vectors = test_texts.read(engine, texts, [Embed(pooling) for pooling in poolings])
    for tokens, pooling, vector in zip(texts, poolings, vectors, strict=True):
        wanted = test_texts.pooled(test_texts.states(family, tokens), pooling)
        np.testing.assert_allclose(vector, wanted.numpy(), atol=CLOSE, rtol=CLOSE)
    engine.executor.shutdown()


@pytest.mark.parametrize("family", test_texts.LABELS)
def test_the_same_is_scored(family: str, tmp_path: Path) -> None:
    engine, facts = test_texts.engine_of(saved(family, tmp_path), device="cuda", max_num_batched_tokens=200)
    assert facts.classifier is not None
    texts = test_texts.texts_of(test_texts.LENGTHS)
    for tokens, scores in zip(
        texts, test_texts.read(engine, texts, [Score(facts.classifier)] * len(texts)), strict=True
    ):
        np.testing.assert_allclose(scores, readers.scores(family, tokens).numpy(), atol=CLOSE, rtol=CLOSE)
    engine.executor.shutdown()


@pytest.mark.parametrize("slots", [2, 4])
def test_adapters_are_added(slots: int, tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = Made(tiny_model, tmp_path / "adapters")
    options = {"device": "cuda", "dtype": "float32", "max_num_seqs": 8, "max_total_tokens": 4096, "max_loras": slots}
    llm = LLM(str(made.base), lora_modules=made.modules, **options)
    made.check(llm.generate(PROMPTS, PARAMS, lora=[made.name(number) for number in range(len(PROMPTS))]))
    assert llm._engine.audit() == 0
