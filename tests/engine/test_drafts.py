"""Drafts, right and wrong, through whole engines: every request says what it says without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from sapwood.base.grammar import Grammar
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.base.wire import Submit
from sapwood.config.flags import from_options
from sapwood.draft import DraftStake
from sapwood.engine.launch import launch
from tests import models
from tests.engine.whole import prompts_that_share
from tests.sim.drafter import ToyDrafter

KINDS = (
    SamplingParams(max_tokens=24, temperature=0),
    SamplingParams(max_tokens=24, temperature=0.9, seed=5),
    SamplingParams(max_tokens=20, temperature=0.7, top_k=12, top_p=0.9, seed=6),
    SamplingParams(max_tokens=24, temperature=0, repetition_penalty=1.2, presence_penalty=0.4, logprobs=2),
    SamplingParams(max_tokens=16, temperature=0, min_tokens=6, logit_bias={7: 2.0}),
)
Said = list[tuple[list[int], str | None, list[float]]]


def say(
    model: Path,
    requests: Sequence[tuple[list[int], SamplingParams]],
    *,
    stakes: Callable[[Slots], Sequence[Stake]] = lambda slots: (),
    **options: Any,
) -> tuple[Said, dict[str, int]]:
    """Of each request the tokens, how it ended, and the logprobs of its tokens; and what the engine counted."""
    base = {"model": str(model), "dtype": "float32", "max_model_len": 200, "max_total_tokens": 4096, "max_num_seqs": 8}
    engine, *_ = launch(from_options(base | options), stakes=stakes, max_drafts=4)
    said: dict[int, Any] = {id: ([], None, []) for id in range(len(requests))}
    for id, (prompt, params) in enumerate(requests):
        assert engine.submit(Submit(id, prompt, params, stop_ids=[3, 4])) is None
    while not engine.idle:
        for news in engine.step():
            for id, token in zip(news.ids, news.tokens, strict=True):
                said[id][0].append(token)
            for delta in news.deltas:
                assert delta.error is None
                tokens, _, logprobs = said[delta.id]
                said[delta.id] = tokens + delta.tokens, delta.finish, logprobs + [
                    one.logprob for one in delta.logprobs or ()
                ]  # fmt: skip
    assert engine.audit() == 0
    counters = dict(engine.stats().counters)
    engine.executor.shutdown()
    return [said[id] for id in range(len(requests))], counters


def drafted(said: Said, truth: float) -> Callable[[Slots], Sequence[Stake]]:
    def oracle(request: Request) -> list[int]:
        return said[request.id][0]

    return lambda slots: (DraftStake(slots, (ToyDrafter(oracle, truth=truth, vocab_size=190),), most=4),)


def same(found: Said, wanted: Said) -> None:
    for (tokens, finish, logprobs), (right, ended, scores) in zip(found, wanted, strict=True):
        assert tokens == right and finish == ended
        assert logprobs == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(
    ("family", "truth", "options"),
    [
        ("llama", 1.0, {"depth": 1}),
        ("llama", 0.6, {"depth": 0}),
        ("llama", 0.8, {"depth": 2, "max_total_tokens": 208, "page_size": 16}),
        ("gemma3", 0.7, {"depth": 1, "page_size": 4}),
        ("gemma3", 0.9, {"depth": 2, "page_size": 4, "max_total_tokens": 208, "max_num_batched_tokens": 32}),
        ("qwen3", 0.0, {"depth": 1}),
    ],
    ids=str,
)
def test_every_request_says_what_it_says_without(
    family: str, truth: float, options: dict[str, Any], device: str, tmp_path: Path
) -> None:
    """Prompts that share beginnings, so that drafted rows are members of shared runs; preempted where memory is short."""
    model = models.save(family, tmp_path)
    requests = [(prompt, KINDS[i % len(KINDS)]) for i, prompt in enumerate(prompts_that_share(12))]
    wanted, plain = say(model, requests, device=device)
    found, counters = say(model, requests, device=device, stakes=drafted(wanted, truth), **options)
    same(found, wanted)
    if truth == 1.0:
        assert counters["steps"] < 0.75 * plain["steps"]


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("jump", [True, False])
def test_drafts_and_grammars(tiny_model: Path, depth: int, jump: bool) -> None:
    grammars = [Grammar.regex("[ab]{4}-(yes|no)?[0-9]*"), Grammar.json({"type": "array", "items": {"enum": [1, 22]}})]
    requests = [
        ([70 + i, 71], SamplingParams(max_tokens=18, temperature=0.8, seed=i, grammar=grammars[i % 2]))
        for i in range(6)
    ]
    wanted, _ = say(tiny_model, requests, depth=depth)
    found, _ = say(tiny_model, requests, stakes=drafted(wanted, 0.8), depth=depth, jump_forward=jump)
    assert [tokens for tokens, *_ in found] == [tokens for tokens, *_ in wanted]
