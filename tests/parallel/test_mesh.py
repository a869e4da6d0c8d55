"""Ranks add up, gather and hear the same, however much there is of it, and whoever waits for one that is lost is told."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sapwood.base.errors import Lost, UserError
from sapwood.parallel import Mesh
from sapwood.parallel.collective import Collective
from sapwood.parallel.segment import SLOT_BYTES, Segment
from tests.parallel import meet

WIDTHS = [70_001, 70_002, 69_999]


def meeting(mesh: Mesh) -> list[Tensor]:
    """What a rank has of several exchanges: small ones, and some that are larger than the memory for one."""
    random = torch.Generator().manual_seed(mesh.rank)
    small, large = torch.randn(3, 5, generator=random), torch.randn(300, 2001, generator=random)
    found = [mesh.sum(small.clone()) for _ in range(5)]
    found.append(mesh.sum(large.clone()))
    found.append(mesh.sum(small.double()))
    found.append(mesh.sum(large.bfloat16().t()))
    found.append(mesh.gather(torch.full((9, WIDTHS[mesh.rank]), float(mesh.rank)), WIDTHS))
    found.append(mesh.sum(small[:0]))
    return found


def check(ranks: list[list[Tensor]]) -> None:
    for others in ranks[1:]:
        assert all(torch.equal(one, other) for one, other in zip(ranks[0], others, strict=True)), "to the bit"
    summands = [torch.randn(3, 5, generator=torch.Generator().manual_seed(rank)) for rank in range(3)]
    assert torch.allclose(ranks[0][0], sum(summands), atol=1e-6)
    gathered = torch.cat([torch.full((9, width), float(rank)) for rank, width in enumerate(WIDTHS)], dim=1)
    assert torch.equal(ranks[0][8], gathered)


def test_what_was_asked_is_done_when_all_have_settled() -> None:
    first = Segment.create(2)
    other, woken, done = Segment(first.path, 1, 2), threading.Event(), list[bytes]()

    def follow() -> None:
        while (message := other.receive(woken)) != b"the end":
            time.sleep(0.01)
            done.append(message)

    follower = threading.Thread(target=follow)
    follower.start()
    for turn in (1, 2):
        first.send(b"work", lambda rank: woken.set())
        first.settle(b"done", lambda rank: woken.set())
        assert done.count(b"work") == turn
    first.settle(b"the end", lambda rank: woken.set())
    follower.join()


def test_memory_that_all_share() -> None:
    assert max(WIDTHS) * 9 * 4 > SLOT_BYTES
    check(meet.ranks(3, meeting))


def test_gloo(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        check(list(pool.map(lambda rank: meeting(Collective("gloo", tmp_path / "store", rank, 3)), range(3))))


def test_messages_of_any_length_reach_all() -> None:
    first = Segment.create(3)
    others = [Segment(first.path, rank, 3) for rank in (1, 2)]
    first.forget()
    woken = [threading.Event() for _ in others]
    messages = [bytes([n]) * length for n, length in enumerate((0, 1, 3_000_000, 7, 1 << 20, 100))]
    with ThreadPoolExecutor(2) as pool:
        heard = [
            pool.submit(lambda segment, event: [segment.receive(event) for _ in messages], segment, event)
            for segment, event in zip(others, woken, strict=True)
        ]
        for message in messages:
            first.send(message, lambda rank: woken[rank - 1].set())
        assert [one.result() for one in heard] == [messages, messages]


def test_nothing_is_left_of_ranks_that_are_killed_before_they_have_met() -> None:
    code = "from sapwood.parallel.segment import Segment; s = Segment.create(2); print(s.path, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as one:
        assert one.stdout is not None
        path = Path(one.stdout.readline().strip())
        other = Segment(path, 1, 2)
        other.report(1, b"here")
        one.kill()
        one.wait()
    assert not path.exists() and other.told(1) == b"here"


def test_a_segment_is_forgotten_once() -> None:
    segment = Segment.create(2)
    segment.forget()
    with Path("/dev/null").open():  # which may have its number
        segment.forget()
    assert not segment.path.exists() or segment.path.resolve() == Path("/dev/null")


def test_the_first_reason_is_told_to_whoever_waits() -> None:
    segment = Segment.create(2)
    segment.forget()
    segment.raise_alarm(1, "has ended (signal 9)")
    segment.raise_alarm(1, "is silent")
    with pytest.raises(Lost, match=r"rank 1 has ended \(signal 9\)"):
        segment.arrive(1, range(2))
    with pytest.raises(Lost, match="rank 1 has ended"):
        segment.check()


def test_what_a_user_can_mend_is_told_as_it_is() -> None:
    segment = Segment.create(2)
    segment.forget()
    segment.raise_alarm(1, "--device cuda:1: there is one", mendable=True)
    with pytest.raises(UserError, match=r"^--device cuda:1"):
        segment.told(1) and segment.check()
