"""Texts that are read: vectors and scores of every family of encoders, and of decoders by their states, as transformers has them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sapwood.base.errors import ConfigError
from sapwood.base.sampling import SamplingParams
from sapwood.base.task import POOLINGS, Embed, Generate, Pooling, Score, Task
from sapwood.base.wire import Facts, Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.engine.loop import Engine
from sapwood.kernels.cpu.library import find
from tests import models, readers
from tests.engine.whole import prompts_that_share

ENCODERS = ("bert", "roberta", "xlm-roberta", "distilbert", "modernbert", "nomic", "mpnet", "gte", "gte-untyped")
DECODERS = ("qwen3", "qwen3-base", "mistral-base")
LABELS = (
    "bert-labels",
    "roberta-labels",
    "distilbert-labels",
    "modernbert-labels",
    "qwen3-labels",
    "mpnet-labels",
    "gte-labels",
)
CLOSE = 1e-4
LENGTHS = (1, 2, 17, 17, 64, 5, 100, 33)


def engine_of(model: Path, **options: Any) -> tuple[Engine, Facts]:
    base = {"model": str(model), "dtype": "float32", "max_model_len": 200, "max_total_tokens": 4096, "max_num_seqs": 8}
    engine, facts, _ = launch(from_options(base | options))
    return engine, facts


def read(engine: Engine, texts: Sequence[list[int]], tasks: Sequence[Task]) -> list[np.ndarray]:
    """What the engine makes of texts that arrive together."""
    for id, (tokens, task) in enumerate(zip(texts, tasks, strict=True)):
        assert engine.submit(Submit(id, tokens, SamplingParams(temperature=0, max_tokens=1), task=task)) is None
    found: dict[int, np.ndarray] = {}
    while not engine.idle:
        for news in engine.step():
            for delta in news.deltas:
                assert delta.error is None and delta.finish == "length"
                found[delta.id] = np.frombuffer(delta.vector, np.float32)
    assert engine.audit() == 0
    return [found[id] for id in range(len(texts))]


def texts_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, 190) for _ in range(length)] for length in lengths]


def pooled(states_TD: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    places_T = torch.arange(1, len(states_TD) + 1.0)[:, None]
    match pooling:
        case "cls":
            return states_TD[0]
        case "last":
            return states_TD[-1]
        case "mean":
            return states_TD.mean(0)
        case "weighted":
            return (states_TD * places_T).sum(0) / places_T.sum()


def states(family: str, tokens: list[int]) -> torch.Tensor:
    made = models.make(family)
    with torch.inference_mode():
        return getattr(made, "model", made)(torch.tensor([tokens])).last_hidden_state[0]


@pytest.mark.parametrize("family", [*ENCODERS, *DECODERS])
def test_vectors_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """Of texts of different lengths together, with every pooling, and of each alone the same."""
    engine, facts = engine_of(models.save(family, tmp_path), max_num_batched_tokens=200)
    assert facts.tasks == (("generate", "embed") if family == "qwen3" else ("embed",))
    texts = texts_of(LENGTHS)
    tasks = [Embed(POOLINGS[index % len(POOLINGS)]) for index in range(len(texts))]
    together = read(engine, texts, tasks)
    for tokens, task, vector in zip(texts, tasks, together, strict=True):
        wanted = pooled(states(family, tokens), task.pooling)
        np.testing.assert_allclose(vector, wanted.numpy(), atol=CLOSE, rtol=CLOSE)
    alone = [read(engine, [tokens], [task])[0] for tokens, task in zip(texts, tasks, strict=True)]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    engine.executor.shutdown()


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_kernels_and_modules_read_alike(family: str, tmp_path: Path) -> None:
    model, texts = models.save(family, tmp_path), texts_of(LENGTHS)
    found = {}
    for kernels in ("auto", "off"):
        engine, facts = engine_of(model, cpu_kernels=kernels)
        found[kernels] = read(engine, texts, [Embed("mean")] * len(texts))
        engine.executor.shutdown()
        (told,) = (line for line in facts.decisions if line.startswith("computed_by = "))
        modules = kernels == "off" or isinstance(find(), str)
        assert ("modules of PyTorch" if modules else "the CPU kernels (the whole model") in told
    for one, other in zip(found["auto"], found["off"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("family", LABELS)
def test_scores_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    engine, facts = engine_of(models.save(family, tmp_path), max_num_batched_tokens=200)
    assert facts.tasks == ("embed", "score") and facts.classifier is not None
    texts = texts_of(LENGTHS)
    found = read(engine, texts, [Score(facts.classifier)] * len(texts))
    for tokens, scores in zip(texts, found, strict=True):
        np.testing.assert_allclose(scores, readers.scores(family, tokens).numpy(), atol=CLOSE, rtol=CLOSE)
    engine.executor.shutdown()


def test_pairs_have_their_segments(tmp_path: Path) -> None:
    engine, facts = engine_of(models.save("bert-pairs", tmp_path), max_num_batched_tokens=200)
    texts, seconds = texts_of((12, 40, 7)), (5, 30, 0)
    assert facts.classifier == "cls"
    found = read(engine, texts, [Score("cls", second) for second in seconds])
    for tokens, second, (score,) in zip(texts, seconds, found, strict=True):
        types = [int(second > 0 and place >= second) for place in range(len(tokens))]
        np.testing.assert_allclose(score, readers.scores("bert-pairs", tokens, types).item(), atol=CLOSE)
    engine.executor.shutdown()


@pytest.mark.parametrize(
    "options", [{"max_num_batched_tokens": 24, "chunked_prefill_size": 16}, {"depth": 1}, {"cpu_kernels": "off"}]
)
def test_decoders_read_in_chunks_beside_those_who_write(options: dict[str, Any], tmp_path: Path) -> None:
    """With what is cached: a text's last state comes from a cached prefix, its mean does not; and who generates is not disturbed."""
    engine, _ = engine_of(models.save("qwen3", tmp_path), **options)
    texts = prompts_that_share(12)
    tasks: list[Task] = [Embed("last"), Embed("mean"), Embed("weighted"), Embed("cls")] * 3
    wanted = [pooled(states("qwen3", tokens), task.pooling).numpy() for tokens, task in zip(texts, tasks, strict=True)]
    said = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    for id in range(3):
        assert engine.submit(Submit(100 + id, texts[id], said)) is None
    for _ in range(3):
        engine.step()
    found: dict[int, np.ndarray] = {}
    cached, tokens_of = 0, {100: 0, 101: 0, 102: 0}
    for round in range(2):
        for id, (tokens, task) in enumerate(zip(texts, tasks, strict=True)):
            params = SamplingParams(temperature=0, max_tokens=1)
            assert engine.submit(Submit(id + 1000 * round, tokens, params, task=task)) is None
    while not engine.idle:
        for news in engine.step():
            for id in news.ids:
                tokens_of[id] += 1
            for delta in news.deltas:
                assert delta.error is None
                if delta.id in tokens_of:
                    tokens_of[delta.id] += len(delta.tokens)
                    continue
                found[delta.id] = np.frombuffer(delta.vector, np.float32)
                if tasks[delta.id % 1000].whole:
                    assert delta.cached_tokens == 0
                else:
                    cached += delta.cached_tokens
    assert cached > 0 and engine.audit() == 0
    for id, vector in found.items():
        np.testing.assert_allclose(vector, wanted[id % 1000], atol=CLOSE, rtol=CLOSE)
    assert len(found) == 2 * len(texts)
    engine.executor.shutdown()


def test_what_a_model_cannot_do_is_refused(tmp_path: Path) -> None:
    engine, _ = engine_of(models.save("bert", tmp_path), max_num_batched_tokens=200)
    for task, why in ((Generate(), "generate"), (Score(), "score")):
        refused = engine.submit(Submit(1, [5, 6], SamplingParams(max_tokens=1), task=task))
        assert refused is not None and refused.error is not None and why in refused.error
    longest = texts_of((200,))
    (vector,) = read(engine, longest, [Embed("mean")])
    np.testing.assert_allclose(vector, states("bert", longest[0]).mean(0).numpy(), atol=CLOSE)
    refused = engine.submit(Submit(1, texts_of((201,))[0], SamplingParams(max_tokens=1), task=Embed("mean")))
    assert refused is not None and "1 to 200 tokens" in (refused.error or "")
    engine.executor.shutdown()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"speculation": "auto"}, "--speculation is for models that write"),
        ({"max_num_batched_tokens": 128}, r"--max-num-batched-tokens \(128\): a text is computed in one step"),
    ],
)
def test_what_does_not_go_with_reading(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        engine_of(models.save("bert", tmp_path), **options)
