"""All drafters, at their own pace, on the fake device: outputs are those without them, token for token."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from sapwood.base.kv import most_rewound
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots
from sapwood.base.stake import Stake
from sapwood.cache import Paths
from sapwood.draft import Adaptive, Costs, DraftStake, Line, Lookup, OnDevice, Passes, Predictions, Tree
from tests.sim.test_scheduler import SHAPES, workload
from tests.sim.world import World, expected, group


def costs(tokens: Sequence[int], seconds: Sequence[float]) -> Costs:
    line = Line(tokens, seconds, 64)
    return Costs(line, line)


COSTS = (costs([1, 64], [1.0, 1.0]), costs([1, 4, 64], [1.0, 1.0, 9.0]), costs([1, 64], [1.0, 20.0]))

MOST = 9
"""Drafts of a row, at most."""


class Speculative(World):
    """A world that drafts, of a model with few words, which repeats itself; half of its requests bring a prediction."""

    def __init__(self, rng: random.Random, shape: dict[str, Any]) -> None:
        self._rng = rng
        kinds = tuple(shape.get("kinds", [group(window).kind for window in shape.get("windows", (None,))]))
        shape = {**shape, "kinds": kinds, "rewind": most_rewound(MOST, shape.get("depth", 1))}
        pages = shape.get("num_pages", 64)
        self._model = rng.random() < 0.5  # one drafts too, and keeps keys and values of its own
        if self._model:
            windows = rng.choice([(None,), (6,), (None, 9)])
            shape["kinds"] = (*kinds, *(group(window).kind for window in windows))
            if not isinstance(pages, int):
                shape["num_pages"] = (*pages, *[max(pages)] * len(windows))
            shape["drafting"] = len(windows)
        super().__init__(**shape, vocab_size=rng.choice((2, 3, 50)), stakes=self._stakes)

    def _stakes(self, slots: Slots) -> Sequence[Stake]:
        drafters = [Predictions(), Tree(Paths(self.kv.tree).find), Lookup(self._rng.randint(1, 4))]
        drafters += [OnDevice()] if self._model else []
        self._rng.shuffle(drafters)
        most, line = self._rng.choice((1, 3, MOST)), Line([1, 64], [0.1, 0.2], 64)
        passes = next((Passes(place, line) for place, one in enumerate(drafters) if isinstance(one, OnDevice)), None)
        pace = Adaptive(len(slots.owner), len(drafters), most=most, costs=self._rng.choice(COSTS), passes=passes)
        self.drafts = DraftStake(slots, drafters, most=most, pace=pace)
        return (self.drafts,)

    def add(self, prompt: Sequence[int], max_tokens: int = 8, *, stop_ids: tuple[int, ...] = (), **options: Any) -> int:
        params: SamplingParams = options.pop("params", SamplingParams())
        if self._rng.random() < 0.5:
            said = expected(prompt, len(prompt) + max_tokens, (), self.vocab_size)
            guess = [token if self._rng.random() < 0.9 else self._rng.randrange(50) for token in said]
            cut, more = self._rng.randint(0, 4), self._rng.randint(0, 4)
            params = msgspec.structs.replace(params, prediction=(*[7] * more, *guess[cut:]))
        return super().add(prompt, max_tokens, stop_ids=stop_ids, params=params, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_workloads(shape: dict[str, Any]) -> None:
    told: dict[str, int] = {}
    for seed in range(12):
        rng = random.Random(seed)
        world = Speculative(rng, shape)
        longest = min(shape.get("max_model_len", 128), 60)
        toys = 0.4 if world.vocab_size == 50 else 0.0  # they want some words to choose from
        poison = shape.get("poison")
        workload(world, rng, num_requests=rng.randint(1, 24), longest=longest, poison=poison, toys=toys)
        world.run()
        world.check_outputs()
        world.check_rest()
        assert not world.drafts._flying
        for name, count in world.drafts.gauges()[0].items():
            told[name] = told.get(name, 0) + count
        for drafter in world.drafts._drafters:
            assert not any(vars(drafter)[name] for name in ("_cursors", "_places", "_chains") if name in vars(drafter))
    accepted = {name: told[f"accepted_drafts_{name}"] for name in ("prediction", "tree", "ngram", "draft")}
    assert all(count <= told[f"drafts_{name}"] for name, count in accepted.items())
    assert sum(accepted.values()) > 10 and (shape or all(accepted.values())), accepted


def test_figures_of_a_request() -> None:
    prompt = list(range(10, 18))
    said = expected(prompt, 8 + 24, (), 50)
    drafts: list[DraftStake] = []

    def stakes(slots: Slots) -> Sequence[Stake]:
        drafts.append(DraftStake(slots, (Predictions(),), most=4))
        return drafts

    world = World(depth=0, stakes=stakes)
    guess = (*said[:8], 49, *said[9:])
    id = world.add(prompt, 24, params=SamplingParams(prediction=guess))
    world.run()
    world.check_outputs()
    told = world.requests[id].drafted["prediction"].told()
    assert told.num_accepted + len(world.plans) - 1 == 24 - 1, (
        "each step yields one token, and the drafts that were right"
    )
    assert told.fed == sorted(told.fed, reverse=True) and len(told.fed) == 4
    assert all(right <= fed for right, fed in zip(told.accepted, told.fed, strict=True))
    assert 1 <= told.num_fed - told.num_accepted <= 4, "one was wrong, and those behind it"
    assert drafts[0].gauges()[0] == {
        "drafts_prediction": told.num_fed,
        "accepted_drafts_prediction": told.num_accepted,
    }
