"""Engines that see: what they say to prompts with images is what transformers says, however the prompt is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sapwood.base.errors import ConfigError
from sapwood.base.plan import TokenLogprobs
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Facts, Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.engine.loop import Engine
from tests import seeing
from tests.seeing import SEEING, picture

Parts = Sequence[int | Image.Image]
NUM_TOKENS = 4
CLOSE = 1e-4


def engine_of(model: Path, **options: Any) -> tuple[Engine, Facts]:
    base = {"model": str(model), "dtype": "float32", "max_model_len": 400, "max_total_tokens": 4096, "max_num_seqs": 4}
    engine, facts, _ = launch(from_options(base | options))
    return engine, facts


class Said:
    """What an engine has said to prompts that arrived together."""

    def __init__(self, engine: Engine, made: Any, prompts: Sequence[Parts], **params: Any) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[TokenLogprobs]] = {}
        self.cached: dict[int, int] = {}
        self.prompts: list[list[int]] = []
        sampling = SamplingParams(
            **{"temperature": 0, "max_tokens": NUM_TOKENS, "logprobs": 20, "ignore_eos": True} | params
        )
        for id, parts in enumerate(prompts):
            tokens, media, spans = seeing.prompt_of(made, parts)
            self.prompts.append(tokens)
            refused = engine.submit(Submit(id, tokens, sampling, media=media, spans=spans))
            assert refused is None, refused
            self.tokens[id], self.logprobs[id] = [], []
        while not engine.idle:
            for news in engine.step():
                for id, token in zip(news.ids, news.tokens, strict=True):
                    self.tokens.get(id, []).append(token)  # of others, who compute for these, nothing is kept
                for delta in news.deltas:
                    assert delta.error is None, delta.error
                    if delta.id not in self.tokens:
                        continue
                    self.tokens[delta.id] += delta.tokens
                    self.logprobs[delta.id] += delta.logprobs or []
                    if delta.cached_tokens >= 0:
                        self.cached[delta.id] = delta.cached_tokens
        assert engine.audit() == 0


def check(family: str, said: Said, prompts: Sequence[Parts]) -> None:
    """Greedy tokens, and the likeliest of each place, are those of transformers."""
    for id, parts in enumerate(prompts):
        images = [part for part in parts if not isinstance(part, int)]
        theirs = seeing.logprobs(family, said.prompts[id] + said.tokens[id], images)
        for place, (token, told) in enumerate(zip(said.tokens[id], said.logprobs[id], strict=True)):
            wanted = theirs[len(said.prompts[id]) - 1 + place]
            assert token == int(wanted.argmax())
            ours = torch.tensor(told.top_logprobs)
            assert (ours - wanted[told.top_ids]).abs().max() < CLOSE
        assert len(said.logprobs[id]) == len(said.tokens[id]) == NUM_TOKENS


def some_prompts() -> list[list[int | Image.Image]]:
    """An image within text, two of different sizes, and no image."""
    return [
        [5, 6, 7, picture(60, 45), 8, 9, 10, 11],
        [12, picture(90, 30, 1), 13, 14, picture(33, 100, 2), 15],
        [20, 21, 22, 23, 24],
        [5, 6, 7, picture(60, 45, 3), 8],
    ]


def counted(engine: Engine, name: str) -> int:
    return int(engine.stats().counters[name])


FAMILIES = [
    one if one in ("llava", "smolvlm", "qwen2.5-vl") else pytest.param(one, marks=pytest.mark.slow) for one in SEEING
]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """Together, again from the cache, and in chunks that end within images."""
    made, prompts = seeing.preparer(family, seeing.save(family, tmp_path)), some_prompts()
    engine, facts = engine_of(tmp_path)
    assert facts.media == ("image",)
    engine.executor.worker._memory.sight.encode_largest()  # type: ignore[attr-defined]
    first = Said(engine, made, prompts)
    check(family, first, prompts)
    encoded = counted(engine, "encoded_media")
    assert encoded == 4
    again = Said(engine, made, prompts)
    check(family, again, prompts)
    assert counted(engine, "encoded_media") == encoded, "what is in the cache has been seen"
    for id, prompt in enumerate(again.prompts):
        assert again.cached[id] >= (len(prompt) - 1) // facts.page_size * facts.page_size
    engine.executor.shutdown()

    engine, _ = engine_of(tmp_path, max_num_batched_tokens=7, prefix_caching=False)
    check(family, Said(engine, made, prompts), prompts)
    engine.executor.shutdown()


def test_the_text_alone(tmp_path: Path) -> None:
    """Of a model that sees: its tower is not loaded, what is said without images is the same, and images are refused."""
    made = seeing.preparer("qwen3-vl", seeing.save("qwen3-vl", tmp_path))
    engine, facts = engine_of(tmp_path, language_model_only=True)
    assert facts.media == ()
    prompts: list[list[int | Image.Image]] = [[20, 21, 22, 23, 24]]
    check("qwen3-vl", Said(engine, made, prompts), prompts)
    tokens, media, spans = seeing.prompt_of(made, [5, picture(30, 30), 6])
    refused = engine.submit(Submit(1, tokens, SamplingParams(), media=media, spans=spans))
    assert refused is not None and "no encoder" in str(refused.error)
    engine.executor.shutdown()


def test_images_that_see_ahead(tmp_path: Path) -> None:
    """By attention that is slow and plainly right; as a text, by whatever computes texts; and never in parts."""
    made = seeing.preparer("gemma3", seeing.save("gemma3", tmp_path))
    prompts: list[list[int | Image.Image]] = [[5, 6, picture(60, 45), 7, picture(30, 30, 1), 8], [20, 21, 22]]
    for options in ({}, {"attention_backend": "reference", "max_num_batched_tokens": 7, "page_size": 16}):
        engine, _ = engine_of(tmp_path, **options)
        check("gemma3", Said(engine, made, prompts), prompts)
        engine.executor.shutdown()
    engine, facts = engine_of(tmp_path, language_model_only=True)
    assert facts.media == () and not any(block.mixer.ahead for block in engine.executor.worker.decoder.blocks)  # type: ignore[attr-defined]
    check("gemma3", Said(engine, made, prompts[1:]), prompts[1:])
    engine.executor.shutdown()
    for refused in ({"max_num_batched_tokens": 4}, {"max_num_batched_tokens": 6}, {"chunked_prefill_size": 2}):
        with pytest.raises(ConfigError, match="fed whole"):
            engine_of(tmp_path, **refused)
    with pytest.raises(ConfigError, match="attention-backend native"):
        engine_of(tmp_path, attention_backend="native")


def test_an_image_elsewhere_is_not_encoded_again(tmp_path: Path) -> None:
    made = seeing.preparer("qwen2.5-vl", seeing.save("qwen2.5-vl", tmp_path))
    engine, _ = engine_of(tmp_path)
    one = picture(60, 45)
    prompts: list[list[int | Image.Image]] = [[5, one, 6], [7, 8, 9, one, 11, one, 10]]
    for prompt in prompts:
        check("qwen2.5-vl", Said(engine, made, [prompt]), [prompt])
    assert counted(engine, "encoded_media") == 1 and counted(engine, "encoder_cache_hits") == 2
    engine.executor.shutdown()


def test_images_that_made_way_come_back_from_the_host(tmp_path: Path) -> None:
    """Room on the device for one alone: each is encoded once all the same."""
    made = seeing.preparer("llava", seeing.save("llava", tmp_path))
    memory = {"encoder_cache_memory": 20 * 64 * 4, "encoder_cache_host_memory": 100 * 64 * 4}
    engine, _ = engine_of(tmp_path, **memory, max_num_batched_tokens=8, prefix_caching=False)
    prompts: list[list[int | Image.Image]] = [
        [5, picture(30, 30), 6, picture(40, 30, 1), 7, picture(30, 30), 8],
        [9, picture(40, 30, 1), 10],
    ]
    for _ in range(2):
        check("llava", Said(engine, made, prompts), prompts)
    assert counted(engine, "encoded_media") == 2 and counted(engine, "encoder_host_hits") >= 3
    assert counted(engine, "encoder_host_kept") >= 3
    engine.executor.shutdown()


def test_images_make_way_and_are_encoded_again(tmp_path: Path) -> None:
    """Room for one image alone, and a budget for less: chunks end where the next image begins."""
    made = seeing.preparer("llava", seeing.save("llava", tmp_path))
    rows = 20
    engine, _ = engine_of(tmp_path, encoder_cache_memory=rows * 64 * 4, max_num_batched_tokens=8, prefix_caching=False)
    prompts: list[list[int | Image.Image]] = [
        [5, picture(30, 30), 6, picture(40, 30, 1), 7, picture(30, 30), 8],
        [9, picture(30, 30, 2), 10],
    ]
    check("llava", Said(engine, made, prompts), prompts)
    assert counted(engine, "encoder_evictions") >= 3
    engine.executor.shutdown()


def test_one_that_fits_nowhere_is_refused(tmp_path: Path) -> None:
    made = seeing.preparer("llava", seeing.save("llava", tmp_path))
    engine, _ = engine_of(tmp_path, encoder_cache_memory=8 * 64 * 4)
    tokens, media, spans = seeing.prompt_of(made, [5, picture(30, 30), 6])
    assert engine.submit(Submit(1, tokens, SamplingParams(), media=media, spans=spans)) is None
    errors = [delta.error for news in engine.step() for delta in news.deltas]
    assert len(errors) == 1 and errors[0] is not None and "--encoder-cache-memory" in errors[0]
    engine.executor.shutdown()


def test_what_changes_how_an_answer_comes_about_changes_none(tmp_path: Path) -> None:
    """Drafts from texts with images in them, steps in flight behind each other, another order, rounded keys and values apart."""
    made = seeing.preparer("qwen2-vl", seeing.save("qwen2-vl", tmp_path))
    one = picture(60, 45)
    prompts: list[list[int | Image.Image]] = [
        [5, 6, 7, 5, 6, one, 5, 6, 7, 5, 6],
        [9, one, 9, picture(30, 30, 1), 9, 9, 9],
        [5, 6, 7, 8, 5, 6, 7, 8, 5, 6],
    ]
    params: dict[str, Any] = {
        "max_tokens": 12,
        "logprobs": None,
        "seed": 3,
        "temperature": 0.8,
        "repetition_penalty": 1.2,
    }
    plain, _ = engine_of(tmp_path)
    wanted = Said(plain, made, prompts, **params).tokens
    plain.executor.shutdown()
    others: list[dict[str, Any]] = [
        {"speculation": "ngram,tree", "num_speculative_tokens": 3, "depth": 1},
        {"policy": "lpm", "depth": 2, "page_size": 32, "max_num_batched_tokens": 24},
    ]
    for options in others:
        engine, _ = engine_of(tmp_path, **options)
        for _ in range(2):
            assert Said(engine, made, prompts, **params).tokens == wanted, options
        engine.executor.shutdown()


def test_prompts_are_scored(tmp_path: Path) -> None:
    made = seeing.preparer("llava", seeing.save("llava", tmp_path))
    engine, _ = engine_of(tmp_path, max_num_batched_tokens=10)
    tokens, media, spans = seeing.prompt_of(made, [5, 6, picture(30, 30), 7, 8, 9])
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    assert engine.submit(Submit(1, tokens, params, media=media, spans=spans)) is None
    found = [
        delta.prompt_logprobs
        for _ in range(20)
        for news in engine.step()
        for delta in news.deltas
        if delta.prompt_logprobs
    ]
    theirs = seeing.logprobs("llava", tokens, [picture(30, 30)])
    ours = [one.logprob for one in found[0]]
    wanted = theirs[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
    assert len(ours) == len(tokens) - 1 and (torch.tensor(ours) - wanted).abs().max() < CLOSE
    engine.executor.shutdown()


@pytest.mark.slow
def test_preempted_and_resumed(tmp_path: Path) -> None:
    made = seeing.preparer("qwen2-vl", seeing.save("qwen2-vl", tmp_path))
    prompts: list[list[int | Image.Image]] = [[5, id, picture(60, 45, id), 6] for id in range(3)]
    roomy, _ = engine_of(tmp_path)
    wanted = Said(roomy, made, prompts, max_tokens=100, logprobs=None).tokens
    roomy.executor.shutdown()
    engine, _ = engine_of(tmp_path, max_total_tokens=240, max_model_len=120, page_size=16)
    said = Said(engine, made, prompts, max_tokens=100, logprobs=None)
    assert counted(engine, "preemptions") > 0
    assert said.tokens == wanted
    engine.executor.shutdown()


@pytest.mark.parametrize("family", FAMILIES)
def test_images_are_prepared_as_transformers_does(family: str, tmp_path: Path) -> None:
    made = seeing.preparer(family, seeing.save(family, tmp_path))
    for size in ((60, 45), (45, 90), (28, 28), (200, 31), (29, 300)):
        image = picture(*size)
        media, theirs = made.prepare(image), seeing.processed(family, [image])["pixel_values"].numpy()
        pixels, normal = (media.arrays[name].numpy() for name in ("pixels", "normal"))
        factor, mean, deviation = normal[0], normal[1:4, None, None], normal[4:7, None, None]
        ours = (pixels * factor - mean) / deviation
        if "qwen" in family:
            theirs = unfolded(theirs, 16 if "qwen3" in family else 14, *pixels.shape[2:])
        np.testing.assert_allclose(ours, theirs.reshape(ours.shape), atol=1e-5)


def unfolded(patches: np.ndarray, side: int, height: int, width: int) -> np.ndarray:
    """Qwen's patches as one image again."""
    squares = patches.reshape(height // side // 2, width // side // 2, 2, 2, 3, 2, side, side)
    assert (squares[..., 0, :, :] == squares[..., 1, :, :]).all(), "two frames alike"
    return squares[..., 0, :, :].transpose(4, 0, 2, 5, 1, 3, 6).reshape(1, 3, height, width)


@pytest.mark.slow
def test_ranks_see_alike(tmp_path: Path) -> None:
    made, prompts = seeing.preparer("qwen2.5-vl", seeing.save("qwen2.5-vl", tmp_path)), some_prompts()[:2]
    engine, _ = engine_of(tmp_path, tensor_parallel_size=2)
    check("qwen2.5-vl", Said(engine, made, prompts), prompts)
    engine.executor.shutdown()


@pytest.mark.parametrize(("family", "bound"), [("qwen2-vl", True), ("llava", False)])
def test_how_far_images_are_scaled_down_is_told(family: str, bound: bool, tmp_path: Path) -> None:
    """Where it is asked for and where it is not; of models that take them as they come."""
    model = seeing.save(family, tmp_path)
    (_, facts), (_, more) = engine_of(model), engine_of(model, max_pixels=5000)
    assert facts.max_pixels == (1280 * 28 * 28 if bound else None) and more.max_pixels == (5000 if bound else None)
    assert any(line.startswith("max_pixels = 1003520 (a step") for line in facts.decisions) is bound
    assert "max_pixels = 5000 (as asked)" in more.decisions
