"""The tree sees content where media stand: equal images behind equal text are cached, others are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from sapwood.base.media import Media, Span
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Submit
from sapwood.draft import Drafter, DraftStake
from sapwood.engine.intake import Intake
from tests.sim.world import World, expected


def image(seed: int, length: int = 10) -> Media:
    return Media.of("image", {"pixels": np.full(3, seed, np.float32)}, length)


PROMPT = [5, 6, *[7] * 10, 8, 9, 10]
SPANS = [Span(2, 10, 0)]


@pytest.mark.parametrize("windows", [(None,), (8,)])
def test_equal_images_behind_equal_text_are_cached(windows: Sequence[int | None]) -> None:
    world = World(windows=windows)
    ids = []
    for seed in (0, 0, 1):
        ids.append(world.add(PROMPT, 6, media=[image(seed)], spans=SPANS))
        world.run()
    first, again, other = (world.cached[id] for id in ids)
    assert first == 0 and again >= 12 and other <= 4, "two tokens of text, and a page at most that is copied"
    for id in ids:
        assert world.output[id] == expected(PROMPT, len(PROMPT) + 6, (), 50), (
            "places have tokens of the vocabulary on the device"
        )


def test_preempted_and_resumed_they_keep_their_keys() -> None:
    world = World(num_pages=64, max_num_seqs=4)
    ids = [world.add(PROMPT, 100, media=[image(seed)], spans=SPANS) for seed in range(4)]
    world.run()
    assert world.scheduler.num_preempted > 0
    for id in ids:
        assert world.output[id] == expected(PROMPT, len(PROMPT) + 100, (), 50)


def test_what_all_see_separates() -> None:
    world = World()
    ids = []
    for seed in (0, 1, 0):
        ids.append(world.add(PROMPT, 6, media=[image(seed)]))
        world.run()
    first, other, again = (world.cached[id] for id in ids)
    assert first == other == 0 and again >= 12


class Parrot(Drafter):
    """Proposes the text from its beginning on."""

    def propose(self, request: Request, tokens: np.ndarray, count: int) -> np.ndarray:  # type: ignore[type-arg]
        return tokens[:count]


def test_no_key_is_drafted() -> None:
    world = World(drafting=6, stakes=lambda slots: (DraftStake(slots, (Parrot(),), most=6),))
    id = world.add(PROMPT, 12, media=[image(0)], spans=SPANS)
    world.run()
    assert world.output[id] == expected(PROMPT, len(PROMPT) + 12, (), 50)


def test_intake_refuses_what_cannot_be() -> None:
    intake = Intake(longest=64, vocab_size=50, seed=0, media=("image",))
    sound = Submit(1, PROMPT, SamplingParams(), media=[image(0)], spans=SPANS)
    taken = intake.request(sound)
    assert isinstance(taken, Request) and taken.media == (image(0),) and taken.spans == tuple(SPANS)
    for spans, kind, why in (([Span(9, 10, 0)], "image", "leaves"), (SPANS, "audio", "no audio")):
        media = [Media.of(kind, {"pixels": np.zeros(3, np.float32)}, 10)]  # type: ignore[arg-type]
        refused = intake.request(Submit(1, PROMPT, SamplingParams(), media=media, spans=spans))
        assert not isinstance(refused, Request) and refused.error is not None and why in refused.error
