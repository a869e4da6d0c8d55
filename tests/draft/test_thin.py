"""Which tokens of a prompt are kept, and how a request waits for that."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from sapwood.base.plan import Floats, Gaps, Ints, Rows
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots
from sapwood.base.stake import LATER, NOW, Refusal
from sapwood.base.task import Embed
from sapwood.draft import thin
from sapwood.draft.thin import ThinStake, chosen
from tests.waiting import SECONDS

PLAIN = Rows(0, 0, *(np.zeros(0, np.int32) for _ in range(4)), np.zeros(0, np.int64))
LONG = thin.SHORTEST


def test_chunks_are_kept_whole_the_best_ones_first() -> None:
    scores = np.zeros(100, np.float32)
    scores[45] = 1.0
    # Counted from the end: [0, 4), [4, 20), [20, 36), [36, 52), [52, 68), [68, 84), [84, 100).
    assert chosen(scores, 0.3, chunk=16).tolist() == [*range(4), *range(36, 52), *range(84, 100)]
    assert chosen(scores, 0.01, chunk=16).tolist() == [*range(4), *range(84, 100)]


def test_neighbours_of_what_matters_matter_too() -> None:
    scores = np.zeros(96, np.float32)
    scores[47] = 1.0  # the last of its chunk
    assert chosen(scores, 0.6, chunk=16).tolist() == [*range(16), *range(32, 64), *range(80, 96)]


@pytest.mark.parametrize("length", [2, 31, 32, 33, 300, 1001])
@pytest.mark.parametrize("keep", [0.01, 0.25, 0.7, 0.999, 1.0])
def test_a_share_is_kept_and_not_much_more(length: int, keep: float) -> None:
    random = np.random.default_rng(length)
    kept = chosen(random.random(length, np.float32), keep, chunk=32)
    assert kept[0] == 0 and kept[-1] == length - 1 and (np.diff(kept) > 0).all()
    assert keep * length <= len(kept) <= max(keep * length + 32, 64)
    assert keep < 1 or len(kept) == length


class Held:
    """An estimate that takes until it is let go; `asked` are the prompts."""

    def __init__(self) -> None:
        self.go, self.asked = threading.Event(), list[int]()

    def __call__(self, tokens: Ints) -> Floats:
        self.asked.append(len(tokens))
        assert self.go.wait(SECONDS)
        if tokens[0] == 13:
            raise ValueError("thirteen")
        return tokens.astype(np.float32)


def request(id: int, length: int = LONG, *, first: int = 1, **fields: Any) -> Request:
    params = SamplingParams(**fields.pop("params", {}))
    tokens = np.full(length, first, np.int32)
    return Request(id, tokens, params, limit=length + 10, arrival=id, namespace="shared", **fields)


def until_ready(stake: ThinStake, one: Request) -> Any:
    while (said := stake.ready(one)) is LATER:
        stake.wait(SECONDS)
    return said


def test_a_request_waits_for_its_estimate() -> None:
    slots, estimate = Slots(2, 2 * LONG), Held()
    stake = ThinStake(estimate, keep=0.5)
    one, other = request(0), request(1)
    assert stake.ready(one) is LATER and stake.ready(other) is LATER
    estimate.go.set()
    assert until_ready(stake, one) is NOW and until_ready(stake, other) is NOW
    assert estimate.asked == [LONG], "of the same prompt there is one estimate"
    assert one.prompt_len == len(one.tokens) == LONG // 2 and one.num_left_out == LONG // 2
    assert one.limit == LONG // 2 + 10
    assert len({"shared", one.namespace, other.namespace}) == 3
    assert stake.ready(one) is NOW
    stake.enter(one, 1)
    slots.assign(one, (0, 0))
    stake.seat(one, 1)
    (part,) = stake.parts(PLAIN)
    assert isinstance(part, Gaps) and part.stretches[0].slot == one.slot
    gaps = part.stretches[0].tokens
    assert gaps[0] == 0 and gaps[-1] == LONG // 2 and len(gaps) == LONG // 2
    assert stake.parts(PLAIN) == ()
    stake.drop(one, 2, trusted=True)
    (part,) = stake.parts(PLAIN)
    assert isinstance(part, Gaps) and not len(part.stretches[0].tokens)
    counts, _ = stake.gauges()
    assert counts == {"thinned_prompts": 2, "left_out_prompt_tokens": LONG}
    stake.close()


def test_an_estimate_that_fails_refuses_its_request_alone() -> None:
    estimate = Held()
    estimate.go.set()
    stake = ThinStake(estimate, keep=0.5)
    refused = until_ready(stake, request(0, first=13))
    assert isinstance(refused, Refusal) and "thirteen" in refused.why
    assert until_ready(stake, request(1)) is NOW
    stake.close()


def test_who_leaves_is_forgotten() -> None:
    estimate = Held()
    stake = ThinStake(estimate, keep=0.5)
    first, second, third = request(0), request(1, first=2), request(2, first=2)
    assert {stake.ready(one) for one in (first, second, third)} == {LATER}
    stake.forget(second)
    estimate.go.set()
    assert until_ready(stake, third) is NOW
    fourth = request(3, first=3)
    stake.ready(fourth)
    stake.forget(fourth)
    stake.close()
    assert estimate.asked[:2] == [LONG, LONG]


def test_whose_prompt_is_its_business() -> None:
    stake = ThinStake(Held(), keep=0.5)
    assert stake.concerns(request(0))
    for fields in ({"params": {"prompt_logprobs": 0}}, {"params": {"whole_prompt": True}}, {"task": Embed()}):
        assert not stake.concerns(request(0, **fields))
    assert not stake.concerns(request(0, LONG - 1))
    assert not ThinStake(Held(), keep=1.0).concerns(request(0))
    stake.close()
