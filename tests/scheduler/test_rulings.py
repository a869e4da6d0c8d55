"""What a stake may say to tokens that have landed, and what becomes of the request: in the simulated world, which checks
every invariant after each step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from sapwood.base.request import Request
from sapwood.base.slots import Slots
from sapwood.base.stake import LATER, NOW, Landed, Ready, Refusal, Ruling, Stake
from sapwood.draft import DraftStake
from sapwood.scheduler.roster import having
from tests.sim.drafter import ToyDrafter
from tests.sim.world import World, expected

Says = Callable[[Landed, int], Ruling | None]


class Judge(Stake):
    """Rules on one request: `says` is given what has landed and how many tokens had before."""

    rules = True

    def __init__(self, id: int, says: Says) -> None:
        self.id, self.says = id, says
        self.seen: list[int] = []
        self.asked = 0

    def concerns(self, request: Request) -> bool:
        return request.id == self.id

    def ready(self, request: Request) -> Ready:
        self.asked += 1
        return NOW if not self.seen or self.asked % 3 == 0 else LATER

    def land(self, landed: Sequence[Landed]) -> Mapping[int, Ruling]:
        rulings = {}
        for one in landed:
            assert one.request.id == self.id and one.tokens
            ruling = self.says(one, len(self.seen))
            kept = one.tokens if ruling is None or ruling.taken is None else one.tokens[: ruling.taken]
            self.seen += [*kept, *(ruling.forced if ruling else ())]
            if ruling is not None:
                rulings[one.row] = ruling
        return rulings


def world(judge: Judge, *, depth: int = 1, drafts: bool = False) -> World:
    def stakes(slots: object) -> Sequence[Stake]:
        oracle = lambda request: plain(request.tokens[: request.prompt_len].tolist(), 24)  # noqa: E731
        drafter = DraftStake(slots, (ToyDrafter(oracle, truth=0.8, vocab_size=50),), most=3)  # type: ignore[arg-type]
        return (judge, drafter) if drafts else (judge,)

    made = World(max_model_len=64, depth=depth, stakes=stakes)
    made.add(range(10, 20), 24)
    made.add(range(30, 36), 24)
    return made


def run(made: World) -> None:
    """To the end: while all who are left are not ready, the loop asks again."""
    for _ in range(1000):
        if not made.step() and not made.scheduler.num_waiting:
            return
    raise AssertionError("the world does not come to rest")


def plain(prompt: Sequence[int], max_tokens: int) -> list[int]:
    return expected(prompt, len(prompt) + max_tokens, (), 50)


ALONE = plain(range(10, 20), 24)
OTHER = plain(range(30, 36), 24)
ways = pytest.mark.parametrize(
    ("depth", "drafts"), [(0, False), (1, False), (2, False), (0, True), (1, True), (2, True)]
)


class Lapsing(Stake):
    """Lets a request in only after it has said LATER to it a second time."""

    def __init__(self) -> None:
        self.asked = 0

    def concerns(self, request: Request) -> bool:
        return request.id == 1

    def ready(self, request: Request) -> Ready:
        self.asked += 1
        return LATER if 1 < self.asked < 12 else NOW

    def enter(self, request: Request, number: int) -> bool:
        return self.asked >= 12


@pytest.mark.parametrize("depth", [0, 1])
def test_one_that_is_not_ready_any_more_holds_nobody_up(depth: int) -> None:
    stake = Lapsing()
    made = World(max_model_len=64, depth=depth, stakes=lambda slots: (stake,))
    made.add(range(10, 20), 24)
    made.add(range(30, 36), 24)
    made.step()
    made.step()
    assert made.scheduler.num_running == 1, "the other one runs"
    run(made)
    assert (made.output[1], made.output[2]) == (ALONE, OTHER)
    made.check_rest()


def test_who_has_nothing_to_say_is_not_asked_in_every_step() -> None:
    judge, lapsing = Judge(1, lambda landed, before: None), Lapsing()
    drafting = DraftStake(Slots(2, 8), (), most=3)
    assert having((judge, drafting, lapsing), "land") == (judge,)
    assert having((judge, drafting, lapsing), "drafts", "land") == (judge, drafting)


@ways
def test_an_error_ends_the_request_and_no_other(depth: int, drafts: bool) -> None:
    made = world(
        Judge(1, lambda landed, before: Ruling(error="enough") if before >= 5 else None), depth=depth, drafts=drafts
    )
    run(made)
    assert made.finish[1] == "error" and made.output[1] == ALONE[: len(made.output[1])]
    assert 5 <= len(made.output[1]) < 24
    assert made.finish[2] == "length" and made.output[2] == OTHER
    made.check_rest()


@ways
def test_forced_tokens_are_known_at_once_and_followed(depth: int, drafts: bool) -> None:
    """Another continuation than the model's own: what follows is what follows these."""
    forced = (3, 1, 4, 1, 5)
    judge = Judge(1, lambda landed, before: Ruling(taken=1, forced=forced) if before == 0 else None)
    made = world(judge, depth=depth, drafts=drafts)
    run(made)
    head = [ALONE[0], *forced]
    assert made.output[1] == head + plain([*range(10, 20), *head], 24 - len(head))
    assert made.output[1] == judge.seen, "it has seen all of them, in order"
    assert made.output[2] == OTHER
    made.check_rest()


@ways
def test_done_ends_behind_what_is_forced(depth: int, drafts: bool) -> None:
    judge = Judge(1, lambda landed, before: Ruling(taken=1, forced=(7, 8), done=True) if before == 0 else None)
    made = world(judge, depth=depth, drafts=drafts)
    run(made)
    assert (made.finish[1], made.output[1]) == ("stop", [ALONE[0], 7, 8])
    assert made.output[2] == OTHER
    made.check_rest()


def test_forced_tokens_beyond_the_limit_are_cut_by_length() -> None:
    judge = Judge(1, lambda landed, before: Ruling(forced=tuple(range(40)), done=True) if before == 0 else None)
    made = world(judge)
    run(made)
    assert (made.finish[1], made.output[1]) == ("length", [ALONE[0], *range(23)])
    made.check_rest()


@ways
def test_later_gives_the_slot_up_and_comes_back(depth: int, drafts: bool) -> None:
    """Tokens in flight are lost, and drawn again when the request goes on."""
    judge = Judge(1, lambda landed, before: Ruling(later=True) if before >= 3 and judge.asked < 6 else None)
    made = world(judge, depth=depth, drafts=drafts)
    run(made)
    assert made.output[1] == ALONE == judge.seen and judge.asked >= 6
    assert made.finish[1] == "length" and made.output[2] == OTHER
    made.check_rest()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_of_a_run_only_what_is_taken_counts(depth: int) -> None:
    """A stake that takes one token at a time: drafts that were right are drawn again, and nothing changes."""
    judge = Judge(1, lambda landed, before: Ruling(taken=1, later=True) if len(landed.tokens) > 1 else None)
    made = world(judge, depth=depth, drafts=True)
    run(made)
    assert made.output[1] == ALONE == judge.seen
    assert made.output[2] == OTHER
    made.check_rest()


def test_a_refusal_ends_a_request_before_it_starts() -> None:
    class No(Stake):
        def ready(self, request: Request) -> Ready:
            return Refusal("not today") if request.id == 1 else NOW

    made = World(stakes=lambda slots: (No(),))
    refused, other = made.add(range(10, 14), 4), made.add(range(20, 24), 4)
    run(made)
    assert made.finish[refused] == "error" and made.output[refused] == []
    assert made.finish[other] == "length"
    made.check_rest()


def test_the_first_stake_that_says_anything_counts() -> None:
    first = Judge(1, lambda landed, before: Ruling(error="first") if before == 2 else None)
    second = Judge(1, lambda landed, before: Ruling(forced=(9,), done=True) if before == 2 else None)
    made = World(stakes=lambda slots: (first, second))
    made.add(range(10, 20), 24)
    run(made)
    assert made.finish[1] == "error"
