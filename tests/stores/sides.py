"""Engines that are driven by hand: one reads prompts, another goes on with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

from sapwood.base.handoff import Fetch
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Delta, Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import Launched, launch
from tests.engine.whole import prompts_that_share

BASE = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 64}
PROMPT = prompts_that_share(1)[0] * 2
PATIENCE = 60.0  # seconds until a test gives up; it waits for what it wants to see


class Side:
    """An engine that is driven by hand."""

    def __init__(self, launched: Launched) -> None:
        self.engine, self.facts = launched.engine, launched.facts
        self.deltas: dict[int, list[Delta]] = {}
        self._numbers = iter(range(1, 1000))

    def ask(self, prompt: list[int], handoff: Any = None, **params: Any) -> int:
        number = next(self._numbers)
        fields = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True} | params
        self.deltas[number] = []
        assert self.engine.submit(Submit(number, prompt, SamplingParams(**fields), handoff=handoff)) is None
        return number

    def turn(self) -> None:
        for news in self.engine.step():
            for id, token in zip(news.ids, news.tokens, strict=True):
                self.deltas[id].append(Delta(id, [token]))
            for delta in news.deltas:
                self.deltas[delta.id].append(delta)
        while self.engine.idle and self.engine.tidy():
            pass

    def run(self, number: int) -> tuple[list[int], list[Any], int]:
        """Until it ends: its tokens, their logprobs, and how much of its prompt was cached."""
        until = monotonic() + PATIENCE
        while not (self.deltas[number] and self.deltas[number][-1].finish):
            assert monotonic() < until, "it does not end"
            self.turn()
        deltas = self.deltas[number]
        assert deltas[-1].error is None and self.engine.audit() == 0
        logprobs = [(one.token, one.logprob) for delta in deltas for one in delta.logprobs or ()]
        return [token for delta in deltas for token in delta.tokens], logprobs, max(one.cached_tokens for one in deltas)

    @property
    def counts(self) -> Mapping[str, int]:
        return self.engine.stats().counters


@contextmanager
def side(model: Path, role: str | None, **options: Any) -> Iterator[Side]:
    given = BASE | {"model": str(model), "max_total_tokens": 1024, "transfer_memory": "64M"} | options
    given |= {} if list(model.glob("*.safetensors")) else {"load_format": "dummy"}
    made = Side(launch(from_options(given | ({} if role is None else {"role": role}))))
    try:
        yield made
    finally:
        made.engine.shutdown()


def fetch(one: Side, ticket: str, **more: Any) -> Fetch:
    door = one.facts.door
    assert door is not None
    return Fetch(ticket, door.host, door.port, **more)


def full(prompt: list[int], page: int = 16) -> int:
    """How many tokens of a prompt can come from elsewhere."""
    return (len(prompt) - 1) // page * page


def freed(one: Side) -> None:
    """What was offered has been taken, and no block is held."""
    until = monotonic() + PATIENCE
    while one.counts["offered_blocks"]:
        assert monotonic() < until
        one.engine.tidy()


def stake(one: Side, kind: type) -> Any:
    (found,) = [stake for stake in one.engine.scheduler._roster.stakes if isinstance(stake, kind)]
    return found
