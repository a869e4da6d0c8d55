"""Room for results, what is encoded when, and where tokens stand among rotary positions: on the host alone."""

from __future__ import annotations

import random

import numpy as np

from sapwood.base.media import Media, Span
from sapwood.base.packing import pack_plan, unpack_plan
from sapwood.base.plan import Carry, Embed, Encode, Plan
from sapwood.base.request import Request
from sapwood.base.sampling import SamplingParams
from sapwood.base.slots import Slots
from sapwood.base.stake import Refusal
from sapwood.draft import DraftStake
from sapwood.encode import Attic, EncodeStake, InputStake, Room
from sapwood.encode.stake import columns
from tests.sim.drafter import ToyDrafter
from tests.sim.world import World, expected


def image(seed: int, length: int, **arrays: np.ndarray) -> Media:
    return Media.of("image", {"pixels": np.full(3, seed, np.float32), **arrays}, length)


def request(prompt_len: int, media: list[Media], spans: list[Span]) -> Request:
    tokens = np.full(prompt_len, 7, np.int32)
    return Request(1, tokens, SamplingParams(), limit=99, media=media, spans=spans)


def turned(rows: int, columns: int) -> Media:
    turns = np.stack([np.zeros(rows * columns), np.repeat(np.arange(rows), columns), np.tile(np.arange(columns), rows)])
    return image(0, rows * columns, turns=turns.astype(np.int32))


def test_three_positions() -> None:
    one = request(12, [turned(2, 3)], [Span(2, 6, 0)])
    more_3P, behind = columns(one)
    assert more_3P is not None
    places = (more_3P + np.arange(12)).tolist()
    assert places == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 7, 8],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 7, 8],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8],
    ]
    assert behind == 9 - 12
    assert columns(request(4, [image(0, 2)], [Span(1, 2, 0)])) == (None, 0)
    assert columns(request(4, [], [])) == (None, 0)


def test_room_gives_way_by_use() -> None:
    room = Room(10)
    first, second = room.add(b"a", 4, 1), room.add(b"b", 4, 1)
    assert sorted([*first, *second]) == sorted(set(range(1, 11)) & {*first, *second}) and room.taken(1) == 8
    room.use(b"a", 2)
    third = room.add(b"c", 6, 3)
    assert room.get(b"b") is None and room.get(b"a") is not None and not {*first} & {*third}
    assert room.num_evicted == 1 and room.taken(3) == 6 and room.taken(2) == 4
    room.clear()
    assert len(room.add(b"d", 10, 4)) == 10


def test_spans_that_are_fed_whole() -> None:
    """A chunk ends before one that it does not reach the end of; from within one it goes on to its end."""
    stake = EncodeStake(Slots(2, 99), Room(20), budget=20, whole=True)
    one = request(20, [image(1, 6)], [Span(4, 6, 0)])
    assert [stake.clamp(one, 0, count) for count in (3, 4, 5, 9, 10, 15)] == [3, 4, 4, 4, 10, 15]
    assert [stake.clamp(one, 4, count) for count in (1, 5, 6)] == [0, 0, 6]
    assert [stake.clamp(one, 7, count) for count in (2, 3, 8)] == [0, 3, 8]


class Watched(World):
    """A world that sees, whose plans cross a border, and are checked."""

    def __init__(
        self, room: int, budget: int, *, truth: float | None = None, attic: int = 0, **options: object
    ) -> None:
        self.aside: dict[int, list[bytes]] = {}  # what the host keeps
        self.most_aside = 0
        self.rows: dict[int, bytes] = {}  # what lies in each row of the device
        self.standing: dict[tuple[int, int], int] = {}
        self.most_encoded = 0

        def stakes(slots: Slots) -> tuple[EncodeStake | DraftStake, ...]:
            self.encoding = EncodeStake(slots, Room(room), budget=budget, attic=Attic(attic))
            drafter = ToyDrafter(lambda one: [7] * 50, truth=truth or 0.5, vocab_size=50)
            return (self.encoding, *(() if truth is None else (DraftStake(slots, (drafter,), most=3),)))

        super().__init__(stakes=stakes, **options)  # type: ignore[arg-type]

    def check_plan(self, plan: Plan) -> None:
        """Every position of a span that is computed finds its own result there."""
        super().check_plan(plan)
        plan = unpack_plan(pack_plan(plan))
        if (carry := plan.part(Carry)) is not None:
            for kind, number, rows in zip(carry.kinds, carry.numbers, carry.rows, strict=True):
                if kind == "keep":
                    assert number not in self.aside
                    self.aside[number] = [self.rows[row] for row in rows.tolist()]
                elif kind == "bring":
                    self.rows |= zip(rows.tolist(), self.aside.pop(number), strict=True)
                elif kind == "drop":
                    del self.aside[number]
                else:
                    self.aside.clear()
            self.most_aside = max(self.most_aside, sum(map(len, self.aside.values())))
        if (encode := plan.part(Encode)) is not None:
            self.most_encoded = max(self.most_encoded, sum(one.length for one in encode.media))
            for medium, rows in zip(encode.media, encode.rows, strict=True):
                assert len(set(rows.tolist())) == medium.length and rows.min() >= 1
                self.rows |= {row: medium.digest + bytes((at,)) for at, row in enumerate(rows.tolist())}
        if (embed := plan.part(Embed)) is not None:
            for seat in embed.seats:
                self.standing = {place: row for place, row in self.standing.items() if place[0] != seat.slot}
            for stretch in embed.stretches:
                for at, row in enumerate(stretch.tokens.tolist(), stretch.start):
                    self.standing[stretch.slot, at] = row
        for slot, start, count in zip(
            plan.slots_R.tolist(), plan.starts_R.tolist(), plan.counts_R.tolist(), strict=True
        ):
            one = self.slots.of(slot)
            for span in one.spans:
                for at in range(max(span.start, start), min(span.end, start + count)):
                    wanted = one.media[span.index].digest + bytes((span.offset + at - span.start,))
                    assert self.rows[self.standing[slot, at]] == wanted


def crowd(world: Watched, seed: int) -> list[tuple[int, int, int]]:
    rng = random.Random(seed)
    added = []
    for _ in range(14):
        prompt, media, spans = [rng.randrange(1, 50) for _ in range(rng.randint(1, 5))], list[Media](), list[Span]()
        for _ in range(rng.randint(0, 3)):
            kind = rng.randrange(5)
            media.append(image(kind, 4 + 2 * kind))
            half = media[-1].length // 2
            for offset in (0, half):
                spans.append(Span(len(prompt), half, len(media) - 1, offset))
                prompt += [7] * half + [rng.randrange(1, 50) for _ in range(rng.randint(1, 4))]
        length = rng.randint(1, 12)
        added.append((world.add(prompt, length, media=media, spans=spans), len(prompt), length))
        world.step()
        if rng.random() < 0.3:
            world.encoding.flush()  # while some are amid a span
    world.run()
    for id, prompt_len, length in added:
        tokens = world.requests[id].spelled[:prompt_len].tolist()
        assert world.output[id] == expected(tokens, prompt_len + length, (), 50)
    return added


def test_what_is_computed_finds_its_results() -> None:
    """Little and much room, small and large budgets, steps and pages, with drafts and without."""
    for seed, (room, budget, tokens, pages) in enumerate(
        [(12, 4, 8, 64), (30, 100, 16, 64), (14, 12, 5, 40), (200, 20, 16, 40)]
    ):
        world = Watched(
            room, budget, truth=(None, 0.7)[seed % 2], drafting=3, max_num_batched_tokens=tokens, num_pages=pages
        )
        crowd(world, seed)
        assert world.most_encoded <= max(budget, 12)


def test_what_makes_way_comes_back_from_the_host() -> None:
    """Within the attic's bound, whatever makes way when; what comes back is not encoded again, but after all has been forgotten."""
    for seed, (room, attic, tokens) in enumerate([(12, 20, 8), (14, 24, 16), (12, 500, 5), (30, 500, 40)]):
        world = Watched(room, 12, attic=attic, max_num_batched_tokens=tokens, num_pages=50)
        crowd(world, seed)
        counts, _ = world.encoding.gauges()
        assert world.most_aside <= attic and counts["encoder_host_hits"] > 0
        without = Watched(room, 12, max_num_batched_tokens=tokens, num_pages=50)
        crowd(without, seed)
        assert counts["encoded_media"] < without.encoding.gauges()[0]["encoded_media"]
        world.encoding.emptied()
        (carry,) = [part for part in world.encoding.parts(None) if isinstance(part, Carry)]  # type: ignore[arg-type]
        assert carry.kinds == ("clear",)


def test_an_attic_keeps_what_came_last() -> None:
    attic = Attic(10)
    assert attic.put(b"a", 6) == (1, []) and attic.put(b"b", 4) == (2, []) and attic.put(b"c", 11) == (None, [])
    assert attic.put(b"d", 5) == (3, [1]) and attic.taken == 9 and b"a" not in attic and b"d" in attic
    assert attic.take(b"b") == 2 and attic.take(b"b") is None and attic.taken == 5


def test_more_than_there_is_room_for() -> None:
    stake = EncodeStake(Slots(1, 20), Room(3), budget=100)
    assert isinstance(stake.ready(request(5, [image(0, 4)], [Span(0, 4, 0)])), Refusal)
    assert not isinstance(stake.ready(request(5, [image(0, 3)], [Span(0, 3, 0)])), Refusal)


def test_inputs_are_shared_within_a_namespace_alone() -> None:
    stake = InputStake("tokens", entries=4, longest=8, budget=99)
    heard = Media.of("tokens", {"ids": np.arange(5, dtype=np.int32)}, 5)
    for id, namespace in enumerate(("a", "a", "b")):
        one = Request(id, np.ones(1, np.int32), SamplingParams(), limit=9, media=[heard], namespace=namespace)
        assert stake.enter(one, 1)
    stake.parts(None)  # type: ignore[arg-type]  # which it does not look at
    assert stake.counters["encoder_inputs_read"] == 2 and stake.counters["encoder_inputs_reused"] == 1
    assert stake.flush() == 0, "all are somebody's"
    stake.drop(one, 2, trusted=True)
    assert stake.flush() == 1
    assert stake.enter(one, 3)
    stake.parts(None)  # type: ignore[arg-type]
    assert stake.counters["encoder_inputs_read"] == 3, "it is read again"
