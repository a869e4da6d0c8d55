"""Marks of time in transcripts, against openai-whisper's rules as they are written there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.base.errors import RequestError
from sapwood.base.sampling import SamplingParams, Timestamps
from sapwood.grammar.marks import Marks
from sapwood.grammar.words import Words
from sapwood.sampling import steps
from tests.grammar.conftest import EOS
from tests.grammar.test_words import may

SIZE, FIRST, END, MOST = 90, 60, 50, 11
RULES = Timestamps(first=FIRST, text_end=END, most_begin=MOST)


def whispers(output: list[int], *, size: int = SIZE, first: int = FIRST, end: int = END, most: int = MOST) -> set[int]:
    """The twin: rule by rule, in the original's order and names."""
    logits = np.zeros(size)
    last_was_timestamp = len(output) >= 1 and output[-1] >= first
    penultimate_was_timestamp = len(output) < 2 or output[-2] >= first
    if last_was_timestamp:
        if penultimate_was_timestamp:
            logits[first:] = -np.inf
        else:
            logits[:end] = -np.inf
    timestamps = [token for token in output if token >= first]
    if timestamps:
        last = timestamps[-1] + (0 if last_was_timestamp and not penultimate_was_timestamp else 1)
        logits[first:last] = -np.inf
    if not output:
        logits[:first] = -np.inf
        logits[first + most :] = -np.inf
    return set(np.flatnonzero(logits == 0).tolist())


@pytest.mark.parametrize("seed", range(6))
def test_the_same_may_follow(seed: int) -> None:
    draw = np.random.default_rng(seed)
    marks, output = Marks(RULES, vocab_size=SIZE, position=3), []
    for _ in range(40):
        found = may(marks)
        assert found == whispers(output)
        if draw.random() < 0.2 and output:
            count = int(draw.integers(1, len(output) + 1))
            marks.rollback(count)
            del output[-count:]
            continue
        token = int(draw.choice(sorted(found)))
        if token == END or token == SIZE - 1:
            break
        assert marks.accept(token)
        output.append(token)
        assert marks.position == 3 + len(output) and not marks.done and not marks.forced()


def test_beside_words_that_must_not_come() -> None:
    params = SamplingParams(forbidden=((FIRST,), (7,)))
    one = Words(params, Marks(RULES, vocab_size=SIZE, position=0), vocab_size=SIZE, position=0, stop_ids=(EOS,))
    assert may(one) == set(range(FIRST + 1, FIRST + MOST)) and one.accept(FIRST + 2)
    assert may(one) == set(range(FIRST)) - {7}


def test_a_mark_follows_where_one_is_more_certain_than_any_text() -> None:
    logits = torch.randn(32, SIZE, generator=torch.Generator().manual_seed(1))
    logits[3, FIRST:] = -torch.inf
    logits[4, :FIRST] = -torch.inf
    wanted = logits.clone()
    for row in wanted:
        likely = row.log_softmax(-1)
        if likely[FIRST:].logsumexp(-1) > likely[:FIRST].max():
            row[:FIRST] = -torch.inf
    steps.prefer_marks(logits, torch.full((32,), FIRST, dtype=torch.int32))
    assert torch.equal(logits, wanted)
    assert 1 < int(logits[:, 0].isinf().sum()) < 32


def test_what_is_refused() -> None:
    with pytest.raises(RequestError, match="text_end"):
        SamplingParams(timestamps=Timestamps(first=50, text_end=60)).check(vocab_size=SIZE)
    with pytest.raises(RequestError, match="timestamps"):
        SamplingParams(timestamps=Timestamps(first=SIZE, text_end=60)).check(vocab_size=SIZE)
    from sapwood import Grammar

    with pytest.raises(RequestError, match="beside grammar"):
        SamplingParams(timestamps=RULES, grammar=Grammar.regex("a")).check(vocab_size=SIZE)
