"""Whole engines on tiny models, without a front."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Submit
from sapwood.bench.workloads import Workload
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.engine.loop import Engine
from sapwood.executor.base import Executor

MAX_TOKENS = 24


def prompts_that_share(count: int) -> list[list[int]]:
    """Random prompts of 2 to 70 tokens whose beginnings are those of one text."""
    rng = random.Random(0)
    stem = [rng.randrange(3, 190) for _ in range(50)]
    return [
        stem[: rng.randint(1, 50)] + [rng.randrange(3, 190) for _ in range(rng.randint(1, 20))] for _ in range(count)
    ]


def greedy(
    model: Path, prompts: list[list[int]], *, executor: Executor | None = None, **options: Any
) -> tuple[list[list[int]], Engine]:
    """Greedy tokens of prompts that arrive together, and the engine that made them, for its counters."""
    base = {"model": str(model), "dtype": "float32", "max_model_len": 200, "max_total_tokens": 4096, "max_num_seqs": 8}
    engine, *_ = launch(from_options(base | options), executor=executor)
    for id, prompt in enumerate(prompts):
        assert engine.submit(Submit(id, prompt, SamplingParams(max_tokens=MAX_TOKENS, temperature=0))) is None
    found = drain(engine, len(prompts))
    engine.executor.shutdown()
    return found, engine


def drain(engine: Engine, count: int) -> list[list[int]]:
    """Step until requests 0 to `count` are done: the tokens of each."""
    found: list[list[int]] = [[] for _ in range(count)]
    while not engine.idle:
        for news in engine.step():
            for id, token in zip(news.ids, news.tokens, strict=True):
                found[id].append(token)
            for delta in news.deltas:
                assert delta.error is None
                found[delta.id] += delta.tokens
    assert engine.audit() == 0
    return found


def replay(model: Path, workload: Workload, **options: Any) -> tuple[list[list[int]], Engine]:
    """Greedy tokens of a workload's turns, session by session, and the engine that made them.

    A session's next turn is sent with the tokens of the last one, as soon as those are there.
    """
    base = {
        "model": str(model),
        "dtype": "float32",
        "max_model_len": 256,
        "max_total_tokens": 16384,
        "max_num_seqs": 64,
    }
    engine, facts, _ = launch(from_options(base | options))
    sessions = workload.within(facts.vocab_size).sessions
    said: list[list[int]] = [[] for _ in sessions]
    histories: list[list[int]] = [[] for _ in sessions]
    turns = [iter(session) for session in sessions]
    left: dict[int, int] = {}  # tokens that a session's turn still has to yield

    def speak(id: int) -> None:
        if (turn := next(turns[id], None)) is not None:
            histories[id] += turn.tokens
            left[id] = turn.output_len
            params = SamplingParams(max_tokens=turn.output_len, temperature=0, ignore_eos=True)
            assert engine.submit(Submit(id, histories[id][:], params)) is None

    def hear(id: int, tokens: list[int]) -> None:
        said[id] += tokens
        histories[id] += tokens
        left[id] -= len(tokens)

    for id in range(len(sessions)):
        speak(id)
    while not engine.idle:
        for news in engine.step():
            for id, token in zip(news.ids, news.tokens, strict=True):
                hear(id, [token])
            for delta in news.deltas:
                assert delta.error is None
                hear(delta.id, delta.tokens)
                if delta.finish is not None:
                    assert left[delta.id] == 0
                    speak(delta.id)
    assert engine.audit() == 0
    engine.executor.shutdown()
    return said, engine
