"""By the CPU's own kernels a request has the same bits in any company: tokens and logprobs, whoever comes and goes beside it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sapwood import LLM, SamplingParams
from sapwood.base.plan import TokenLogprobs
from sapwood.base.wire import Abort, Delta, Submit
from sapwood.engine.loop import Engine
from sapwood.nn.native import NativeModel

OPTIONS = {
    "device": "cpu",
    "kv_cache_memory": "4M",
    "max_num_seqs": 6,
    "max_num_batched_tokens": 48,
    "prefix_caching": True,
}
NUM_REQUESTS, REPEATS = 8, 3

Said = tuple[list[int], list[TokenLogprobs]]


def requests() -> list[Submit]:
    """Greedy ones and others, of which some share a beginning."""
    chance, made = random.Random(0), []
    stem = [chance.randrange(3, 250) for _ in range(40)]
    for id in range(NUM_REQUESTS):
        prompt = stem[: 40 * (id % 2)] + [chance.randrange(3, 250) for _ in range(chance.randint(1, 60))]
        params = SamplingParams(
            max_tokens=12, temperature=0.9 * (id % 3), seed=id, top_p=0.95, logprobs=2, ignore_eos=True
        )
        made.append(Submit(id, prompt, params))
    return made


def answered(engine: Engine, asked: list[Submit], chance: random.Random | None = None) -> dict[int, Said]:
    """What is said to those that nobody breaks off; with `chance` they come at any time, and strangers come and go beside them."""
    left, said, strangers = [*asked], {one.id: ([], []) for one in asked}, []  # type: ignore[var-annotated]
    if chance is not None:
        chance.shuffle(left)
    while left or not engine.idle:
        if left and (chance is None or chance.random() < 0.4):
            assert engine.submit(left.pop(0)) is None
        if chance is not None and left and chance.random() < 0.5:
            strangers.append(1000 + len(strangers))
            prompt = [*chance.choice(asked).tokens[: chance.randint(1, 50)], chance.randrange(3, 250)]
            engine.submit(Submit(strangers[-1], prompt, SamplingParams(max_tokens=40, seed=1, ignore_eos=True)))
        if chance is not None and strangers and chance.random() < 0.3:
            engine.abort(Abort([chance.choice(strangers)]))
        for news in engine.step():
            for delta in news.deltas:
                if delta.id in said:
                    take(delta, *said[delta.id])
    return said


def take(delta: Delta, tokens: list[int], logprobs: list[TokenLogprobs]) -> None:
    assert delta.error is None
    tokens += delta.tokens
    logprobs += delta.logprobs or []


def test_the_same_bits_in_any_company(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model), **OPTIONS)
    if not isinstance(llm._engine.executor.worker.model, NativeModel):  # type: ignore[attr-defined]
        pytest.skip("the library is not built here")
    engine, asked = llm._engine, requests()
    wanted: dict[int, Said] = {}
    for one in asked:
        engine.control("flush_cache")
        wanted |= answered(engine, [one])
    assert all(len(tokens) == len(logprobs) == 12 for tokens, logprobs in wanted.values())
    for repeat in range(REPEATS):
        engine.control("flush_cache")
        assert answered(engine, asked, random.Random(repeat)) == wanted
