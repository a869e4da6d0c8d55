"""Requests and their arrivals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sapwood.bench.traffic import KINDS, Kind, Traffic, arrivals


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_text", [False, True])
def test_the_same_seed_sends_the_same(kind: Kind, as_text: bool) -> None:
    traffic = Traffic(kind, prefix_len=20, as_text=as_text)
    assert traffic.sessions(10, seed=3) == traffic.sessions(10, seed=3) != traffic.sessions(10, seed=4)
    assert len(traffic.sessions(10, seed=3)) == 10


def test_random_lengths_vary_by_the_spread() -> None:
    turns = [turn for (turn,) in Traffic("random", input_len=100, output_len=10, spread=0.5).sessions(300, seed=0)]
    lengths = [len(turn.prompt) for turn in turns]
    assert (min(lengths), max(lengths)) == pytest.approx((50, 150), abs=3)
    assert {turn.output_len for turn in turns} == set(range(5, 16))
    assert {len(turn.prompt) for (turn,) in Traffic("random", input_len=7).sessions(9, seed=0)} == {7}


def test_shared_prefixes_have_as_many_prompts_each() -> None:
    traffic = Traffic("shared-prefix", prefix_len=30, input_len=5, groups=4)
    prompts = [turn.prompt for (turn,) in traffic.sessions(12, seed=0)]
    stems = [tuple(prompt[:30]) for prompt in prompts]
    assert all(len(prompt) == 35 for prompt in prompts)
    assert sorted(stems.count(stem) for stem in set(stems)) == [3, 3, 3, 3]


def test_an_agent_s_first_turn_brings_the_prefix() -> None:
    sessions = Traffic("agent", prefix_len=30, input_len=5, turns=3).sessions(4, seed=0)
    assert [[len(turn.prompt) for turn in session] for session in sessions] == [[35, 5, 5]] * 4
    assert len({tuple(session[0].prompt[:30]) for session in sessions}) == 1
    assert len({tuple(turn.prompt) for session in sessions for turn in session}) == 12


def test_text_has_as_many_words() -> None:
    ((turn,),) = Traffic("shared-prefix", prefix_len=30, input_len=5, as_text=True).sessions(1, seed=0)
    assert isinstance(turn.prompt, str)
    assert len(turn.prompt.split(" ")) == 35


def test_ids_stay_in_the_vocabulary() -> None:
    for vocab_size in (2, 11, 199):
        ((turn,),) = Traffic("random", input_len=500, vocab_size=vocab_size).sessions(1, seed=0)
        assert isinstance(turn.prompt, list)
        assert 0 <= min(turn.prompt) <= max(turn.prompt) == vocab_size - 1


def test_arrivals() -> None:
    for burstiness in (0.25, 1.0, 4.0):
        times = arrivals(20_000, 8.0, burstiness=burstiness, seed=1)
        gaps = np.array([after - before for before, after in itertools.pairwise(times)])
        assert gaps.min() >= 0
        assert gaps.mean() == pytest.approx(1 / 8, rel=0.05)
        assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)
    assert arrivals(5, 8.0, seed=1) == arrivals(5, 8.0, seed=1) != arrivals(5, 8.0, seed=2)
    assert arrivals(3, math.inf) == [0.0, 0.0, 0.0]
