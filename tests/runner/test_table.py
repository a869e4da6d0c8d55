"""The table, the frames that tell of plans, and the batches made from both, against a naive reading of the plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from sapwood.attention.base import RowLimits
from sapwood.base.plan import Drafts, Pages, Plan, Runs, Stretch
from sapwood.base.sampling import SamplingParams
from sapwood.runner import frame as frames
from sapwood.runner import shared
from sapwood.runner.batch import Batcher, Heads
from sapwood.runner.frame import REJECTED, Frame, Kind
from sapwood.runner.table import Table
from sapwood.sampling.settings import Need, Settings
from tests import kv
from tests.runner.plans import admit, ints, make_plan
from tests.runner.twin import fill, settle

GROUPS = [
    kv.group(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, window=window, page_size=page_size)
    for window, page_size in ((None, 4), (6, 8))
]
CPU = torch.device("cpu")


def make_table(num_slots: int = 6, device: torch.device = CPU) -> Table:
    return Table(num_slots=num_slots, max_len=40, groups=GROUPS, device=device)


def test_admits_and_pages_land_in_their_slots() -> None:
    table = make_table()
    params = SamplingParams(temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, presence_penalty=1.5)
    first = admit(4, [5, 6, 7], fed=2, prompt_len=1, seed=2**63 + 5, min_len=9, params=params)
    table.install([first, admit(0, range(10, 21), fed=0, seed=-1)])
    assert table.fed_S.tolist() == [0, 0, 0, 0, 2, 0, 0]
    plan = make_plan([(4, 2, 1, True)], pages=[{4: {0: 3, 1: 9}, 0: {2: 1}}, {4: {0: 8}}])
    batch(plan, table)
    assert table.fed_S.tolist() == [0, 0, 0, 0, 3, 0, 0]
    assert table.tokens_SL[4, :4].tolist() == [5, 6, 7, 0]
    assert table.tokens_SL[0, :12].tolist() == [*range(10, 21), 0]
    assert table.tables_GSP[0, 4, :3].tolist() == [3, 9, 0]
    assert table.tables_GSP[0, 0, :3].tolist() == [0, 0, 1]
    assert table.tables_GSP[1, 4, :2].tolist() == [8, 0]
    settings = Settings(table.settings_SK[[4, 0]])
    assert settings["seed"].tolist() == [5 - 2**63, -1]
    assert {name: settings[name][0].item() for name in ("prompt_len", "min_len", "top_k")} == {
        "prompt_len": 1,
        "min_len": 9,
        "top_k": 7,
    }
    assert settings["temperature"].tolist() == [0.5, 0.0]
    assert [settings[name][0].item() for name in ("top_p", "min_p", "presence", "frequency")] == [0.25, 0.125, 1.5, 0.0]
    assert Need(int(table.needs_S[4])) == Need.RANDOM | Need.TOP_K | Need.TOP_P | Need.MIN_P | Need.PENALTY
    assert table.needs_S[0] == 0
    assert table.special_S.tolist() == [False, False, False, False, True, False]
    assert table.admit(4) is first


def batch(plan: Plan, table: Table) -> tuple[Any, Heads]:
    spans = int((plan.counts_R > 1).sum())
    limits = RowLimits(decodes=plan.num_rows - spans, spans=spans)
    return Batcher(table, GROUPS).make(frames.exact(plan, table), plan.num_tokens, limits=limits)


@dataclass
class Scene:
    """A table with pages and tokens, and a plan of five rows."""

    table: Table
    plan: Plan
    known: dict[int, list[int]]
    pages: list[dict[int, dict[int, int]]]
    rows: list[tuple[int, int, int, bool]]


def scene(device: torch.device = CPU) -> Scene:
    draw = np.random.default_rng(0)
    table = make_table(device=device)
    known = {slot: draw.integers(0, 99, 30).tolist() for slot in range(6)}
    fed = {slot: int(draw.integers(0, 20)) for slot in range(6)}
    pages = [
        {slot: {i: int(draw.integers(1, 50)) for i in range(-(-40 // group.page_size))} for slot in range(6)}
        for group in GROUPS
    ]
    rows = [
        (5, fed[5], 1, True),
        (2, fed[2], 1, True),
        (0, fed[0], 7, False),
        (3, fed[3], 1, True),
        (1, fed[1], 3, True),
    ]
    penalised = SamplingParams(temperature=0, presence_penalty=1)
    admits = [admit(slot, known[slot], fed=fed[slot], params=penalised if slot == 1 else None) for slot in range(6)]
    table.install(admits)
    return Scene(table, make_plan(rows, admits=admits, pages=pages, num_steady=2), known, pages, rows)


def test_a_batch_says_of_every_token_where_it_is() -> None:
    made = scene()
    found, heads = batch(made.plan, made.table)
    tokens = [(slot, position) for slot, start, count, _ in made.rows for position in range(start, start + count)]
    assert found.positions_T.tolist() == [position for _, position in tokens]
    assert found.ids_T.tolist() == [made.known[slot][position] for slot, position in tokens]
    for group, table_of, cells_T in zip(GROUPS, made.pages, found.cells_GT, strict=True):
        size = group.page_size
        assert cells_T.tolist() == [table_of[s][p // size] * size + p % size for s, p in tokens]
    assert found.starts_R.tolist() == [start for _, start, _, _ in made.rows]
    assert found.counts_R.tolist() == [1, 1, 7, 1, 3]
    assert found.offsets_R1.tolist() == [0, 1, 2, 9, 10, 13]
    assert {found.ids_T.dtype, found.positions_T.dtype, found.cells_GT[0].dtype} == {torch.int64}
    assert {x.dtype for x in (found.slots_R, found.starts_R, found.counts_R, found.offsets_R1)} == {torch.int32}
    yielding = [row for row in made.rows if row[3]]
    assert heads.last_N.tolist() == [0, 1, 9, 12]
    assert heads.slots_N.tolist() == [slot for slot, *_ in yielding]
    assert heads.draws_N.tolist() == [5, 2, 3, made.table.nobody]
    assert heads.ends_N.tolist() == [start + count for _, start, count, _ in yielding]
    assert made.table.fed_S[[5, 2, 0, 3, 1]].tolist() == [start + count for _, start, count, _ in made.rows]

    drawn_N = torch.tensor([70, -1, 72, 73], dtype=torch.int32)
    before = made.table.tokens_SL.clone()
    settle(made.table, frames.exact(made.plan, made.table), heads, drawn_N, Kind.DRAWN)
    changed = (before != made.table.tokens_SL).nonzero().tolist()
    ends = {slot: start + count for slot, start, count, _ in yielding}
    assert sorted(changed) == sorted([slot, ends[slot]] for slot in (5, 2, 3))
    assert made.table.tokens_SL[2, ends[2]] == 0  # not finite, but still a token


KERNELS = ["plain", "numpy", "triton-interpreted", pytest.param("triton-gpu", marks=pytest.mark.gpu)]


def choose(batcher: Batcher, kernels: str) -> None:
    if kernels == "plain":
        batcher._fill, batcher._settle = fill, settle
    elif kernels != "numpy":
        from sapwood.runner import batch_triton

        batcher._fill, batcher._settle = batch_triton.fill, batch_triton.settle


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("num_rows", [5, 6, 40])
def test_padding_changes_nothing_and_runs_again(kernels: str, num_rows: int) -> None:
    if kernels == "triton-interpreted" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    device = torch.device("cuda" if kernels == "triton-gpu" else "cpu")
    made, exact = scene(device), scene()
    wanted, wanted_heads = batch(exact.plan, exact.table)
    words = np.concatenate(
        [
            frames.rows(made.plan, made.table, num_rows, pad_heads=True),
            *(np.pad(part, (0, 130 - len(part)), constant_values=-1)
              for part in frames.changes(made.plan.part(Pages), made.table)),
        ]
    )  # fmt: skip
    frame = Frame(torch.from_numpy(words).to(device), num_rows, num_rows, False)
    batcher = Batcher(made.table, GROUPS)
    choose(batcher, kernels)
    limits = RowLimits(decodes=num_rows, spans=num_rows)
    found, heads = batcher.make(frame, 20, limits=limits)
    assert (made.table.tables_GSP.cpu() == exact.table.tables_GSP).all()
    assert made.table.fed_S.tolist() == exact.table.fed_S.tolist()
    for name in ("ids_T", "positions_T"):
        assert getattr(found, name).tolist() == getattr(wanted, name).tolist() + [0] * 7
    for cells_T, wanted_T in zip(found.cells_GT, wanted.cells_GT, strict=True):
        assert cells_T.tolist() == wanted_T.tolist() + [0] * 7
    assert found.starts_R[:5].tolist() == wanted.starts_R.tolist()
    assert found.counts_R.tolist() == wanted.counts_R.tolist() + [0] * (num_rows - 5)
    assert found.offsets_R1.tolist() == wanted.offsets_R1.tolist() + [13] * (num_rows - 5)
    for name in ("last_N", "slots_N", "draws_N", "ends_N"):
        assert getattr(heads, name)[:4].tolist() == getattr(wanted_heads, name).tolist()
    assert set(heads.slots_N[4:].tolist()) == {made.table.nobody}
    assert set(heads.last_N[4:].tolist()) | set(heads.ends_N[4:].tolist()) == {0}

    drawn_N = torch.arange(70, 70 + num_rows, dtype=torch.int32, device=device)
    batcher.settle(frame, heads, drawn_N, Kind.DRAWN)
    settle(exact.table, frames.exact(exact.plan, exact.table), wanted_heads, drawn_N.cpu()[:4], Kind.DRAWN)
    assert (made.table.tokens_SL.cpu()[:6] == exact.table.tokens_SL[:6]).all()

    # The same frame again: pages have been turned once and for all, steady rows move on by themselves.
    made.table.tables_GSP.zero_()
    again, _ = batcher.make(frame, 20, limits=limits)
    assert not made.table.tables_GSP.any()
    assert again.starts_R[:2].tolist() == [start + 1 for start in wanted.starts_R[:2].tolist()]
    assert again.ids_T[:2].tolist() == [70, 71]
    assert again.starts_R[2:5].tolist() == wanted.starts_R[2:].tolist()


@pytest.mark.parametrize("kernels", KERNELS)
def test_rows_of_one_token_are_found_without_a_search(kernels: str) -> None:
    if kernels == "triton-interpreted" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    device = torch.device("cuda" if kernels == "triton-gpu" else "cpu")
    made = scene(device)
    table = made.table
    batch(make_plan([(0, 0, 1, False)], pages=made.pages), table)
    steady = [4, 1, 3]
    plan = make_plan([(slot, 0, 1, True) for slot in steady], pages=[{}, {}], num_steady=3)
    starts = table.fed_S[[4, 1, 3]].tolist()
    words = np.concatenate([frames.rows(plan, table, 8, pad_heads=True), np.full(32, -1, np.int32)])
    batcher = Batcher(table, GROUPS)
    choose(batcher, kernels)
    found, heads = batcher.make(
        Frame(torch.from_numpy(words).to(device), 8, 8, False), 8, limits=RowLimits(decodes=8, spans=0)
    )
    assert found.positions_T.tolist() == [*starts, 0, 0, 0, 0, 0]
    assert found.ids_T[:3].tolist() == [made.known[s][p] for s, p in zip(steady, starts, strict=True)]
    assert heads.last_N.tolist() == [0, 1, 2, 0, 0, 0, 0, 0]
    assert heads.draws_N.tolist() == [4, table.nobody, 3] + [table.nobody] * 5


def test_numpy_does_as_the_plain_functions_when_every_row_yields() -> None:
    """With nothing padded, which is how steps come on a CPU."""
    steady = [4, 1, 3]
    found = []
    for kernels in ("plain", "numpy"):
        made = scene()
        batch(make_plan([(0, 0, 1, False)], pages=made.pages), made.table)
        plan = make_plan([(slot, 0, 1, True) for slot in steady], pages=[{}, {}], num_steady=3)
        batcher = Batcher(made.table, GROUPS)
        choose(batcher, kernels)
        frame = frames.exact(plan, made.table)
        new, heads = batcher.make(frame, 3, limits=RowLimits(decodes=3, spans=0))
        batcher.settle(frame, heads, torch.tensor([70, -1, 72], dtype=torch.int32), Kind.DRAWN)
        parts = [new.ids_T, new.positions_T, new.starts_R, new.offsets_R1, *new.cells_GT, made.table.fed_S]
        parts += [heads.last_N, heads.slots_N, heads.draws_N, heads.ends_N, made.table.tokens_SL]
        found.append([part.tolist() for part in parts])
    assert found[0] == found[1]


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("padding", [0, 3])
def test_rows_with_drafts_yield_up_to_the_first_wrong_one(kernels: str, padding: int) -> None:
    """A row of four heads, one of two, a plain one and one of kind SPECIAL, beside a prompt chunk."""
    if kernels == "triton-interpreted" and torch.cuda.is_available():
        pytest.skip("compiled on this machine")
    made = scene(device := torch.device("cuda" if kernels == "triton-gpu" else "cpu"))
    table, fed = made.table, {slot: start for slot, start, *_ in made.rows} | {4: int(made.table.fed_S[4])}
    table.draft(Drafts((Stretch(5, fed[5] + 1, ints([60, 61, 62])), Stretch(1, fed[1] + 1, ints([63])))))
    # Nothing is drafted at or before a slot's last token.
    table.draft(Drafts((Stretch(2, fed[2] - 1, ints([90, 91])), Stretch(3, fed[3], ints([92, 64])))))
    rows = [(5, 99, 4, 4), (2, 99, 1, 1), (3, 99, 2, 2), (1, 99, 2, 2), (0, fed[0], 7, 0), (4, fed[4], 2, 1)]
    plan = make_plan(rows, pages=made.pages, num_steady=4)
    words = frames.rows(plan, table, len(rows) + padding, pad_heads=padding > 0)
    entries = frames.changes(plan.part(Pages), table)
    frame = Frame(torch.from_numpy(np.concatenate([words, *entries])).to(device), 6 + padding, 10 + padding, True)
    batcher = Batcher(table, GROUPS)
    choose(batcher, kernels)
    found, heads = batcher.make(frame, 18 + padding, limits=RowLimits(decodes=6 + padding, spans=6))
    places = [fed[5] + i for i in range(4)] + [fed[2]] + [fed[3], fed[3] + 1] + [fed[1], fed[1] + 1]
    assert found.positions_T[:9].tolist() == places
    assert found.ids_T[1:4].tolist() == [60, 61, 62] and found.ids_T[6] == 64 and found.ids_T[8] == 63
    assert found.ids_T[4] == made.known[2][fed[2]] and found.ids_T[5] == made.known[3][fed[3]]
    assert found.heads_R is not None and found.heads_R[:6].tolist() == [4, 1, 2, 2, 0, 1]
    assert heads.last_N[:10].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 17]
    assert heads.ends_N[:10].tolist() == [place + 1 for place in places] + [fed[4] + 2]
    assert heads.draws_N[:10].tolist() == [5] * 4 + [2] + [3] * 2 + [table.nobody] * 2 + [4]
    assert set(heads.draws_N[10:].tolist()) <= {table.nobody}

    drawn_N = torch.tensor([60, 61, 70, 71, 72, 64, 73, 63, 74, 75, *range(padding)], dtype=torch.int32, device=device)
    batcher.settle(frame, heads, drawn_N, Kind.DRAWN)
    assert drawn_N[:10].tolist() == [60, 61, 70, REJECTED, 72, 64, 73, 63, 74, 75]
    assert table.tokens_SL[5, fed[5] + 1 : fed[5] + 4].tolist() == [60, 61, 70]
    assert table.tokens_SL[3, fed[3] + 1 : fed[3] + 3].tolist() == [64, 73]
    assert table.tokens_SL[4, fed[4] + 2] == 75
    assert table.fed_S[[5, 2, 3, 0, 4]].tolist() == [fed[5] + 3, fed[2] + 1, fed[3] + 2, fed[0] + 7, fed[4] + 2]
    # The other kind, later.
    drawn_N[7] = 80
    batcher.settle(frame, heads, drawn_N, Kind.SPECIAL)
    assert drawn_N[7:9].tolist() == [80, REJECTED]
    assert table.fed_S[1] == fed[1] + 1 and table.tokens_SL[1, fed[1] + 1] == 80


def runs_of(members: list[Any]) -> Runs:
    return Runs(
        version=0,
        lows_U=ints([0, 16, 0]),
        highs_U=ints([32, 48, 16]),
        offsets_U1=ints([0, *np.cumsum([len(some) for some in members])]),
        slots_M=ints([slot for some in members for slot in some]),
    )


def test_runs_are_cut_into_tiles() -> None:
    steady = [9, 4, 30, *range(10, 28)]
    runs = runs_of([range(10, 28), [9, 4], [4, 9, 30]])
    plan = make_plan([(slot, 99, 1, 1) for slot in steady], num_steady=len(steady))
    members = shared.members(runs, plan)
    assert shared.num_tiles(members, 16) == 4
    for size in (shared.Size(4, 21, 16), shared.Size(9, 40, 16)):
        assert size.holds(members) and not size._replace(tiles=3).holds(members)
        found = shared.shared(torch.from_numpy(shared.words(runs, members, size)), size)
        padding = [0] * (size.tiles - 4)
        assert found.lows_I.tolist() == [0, 0, 16, 0, *padding]
        assert found.highs_I.tolist() == [32, 32, 48, 16, *padding]
        assert found.firsts_I.tolist() == [0, 16, 18, 20, *padding]
        assert found.sizes_I.tolist() == [16, 2, 2, 3, *padding]
        assert found.slots_I.tolist() == [10, 10, 9, 4, *padding]
        assert found.tokens_M[:23].tolist() == [*range(3, 21), 0, 1, 1, 0, 2]
        assert found.privates_Q[:21].tolist() == [48, 48, 16, *[32] * 18]
        assert not found.privates_Q[21:].any()
        assert [sorted(row) for row in found.members_QL[:4].tolist()] == [
            [-1, -1, 18, 21], [-1, -1, 19, 20], [-1, -1, -1, 22], [-1, -1, -1, 0]
        ]  # fmt: skip
        assert (found.members_QL[21:] == -1).all()


def test_drafts_are_members_like_the_tokens_before_them() -> None:
    counts = {9: 3, 4: 1, 30: 2, 7: 1}
    rows = [(slot, 99, count, count) for slot, count in counts.items()]
    runs = runs_of([[7, 9], [9, 4], [4, 9, 30]])
    plan = make_plan([*rows, (1, 0, 5, 0)], num_steady=4)
    members = shared.members(runs, plan)
    size = shared.Size(8, plan.num_tokens, 4)
    found = shared.shared(torch.from_numpy(shared.words(runs, members, size)), size)
    # Tokens 0 1 2 are those of slot 9, 3 that of slot 4, 4 5 those of slot 30, 6 that of slot 7.
    assert found.tokens_M[:14].tolist() == [6, 0, 1, 2, 0, 1, 2, 3, 3, 0, 1, 2, 4, 5]
    assert found.sizes_I.tolist() == [4, 4, 4, 2, 0, 0, 0, 0]
    assert found.firsts_I[:4].tolist() == [0, 4, 8, 12]
    assert found.slots_I[:4].tolist() == [7, 9, 4, 4]
    assert found.privates_Q.tolist() == [48, 48, 48, 48, 16, 16, 32, 0, 0, 0, 0, 0]
    assert sorted(found.members_QL[1].tolist()) == [-1, 2, 5, 10]
