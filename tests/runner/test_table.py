"""The table and the batches made from it, against a naive reading of the same plans."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sapwood.base.kv import KVGroup
from sapwood.base.sampling import SamplingParams
from sapwood.runner import batch as batch_module
from sapwood.runner import table as table_module
from sapwood.runner.batch import Batcher
from sapwood.runner.table import Table
from sapwood.sampling.settings import Need, Settings
from tests.runner.plans import admit, ints, make_plan

GROUPS = [
    KVGroup(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=4, window=window, page_size=page_size)
    for window, page_size in ((None, 4), (6, 8))
]
CPU = torch.device("cpu")


def make_table(num_slots: int = 6) -> Table:
    return Table(num_slots=num_slots, max_len=40, groups=GROUPS, device=CPU)


def test_admits_and_pages_land_in_their_slots() -> None:
    table = make_table()
    params = SamplingParams(temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, presence_penalty=1.5)
    first = admit(4, [5, 6, 7], fed=2, prompt_len=1, seed=2**63 + 5, min_len=9, params=params)
    table.apply(
        make_plan(
            [(4, 2, 1, True)],
            admits=[first, admit(0, range(10, 21), fed=0, seed=-1)],
            pages=[{4: {0: 3, 1: 9}, 0: {2: 1}}, {4: {0: 8}}],
        )
    )
    assert table.fed_S.tolist() == [0, 0, 0, 0, 2, 0]
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
    assert table.admit(4) is first


def test_a_batch_says_of_every_token_where_it_is() -> None:
    draw = np.random.default_rng(0)
    table = make_table()
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
    plan = make_plan(
        rows,
        admits=[admit(slot, known[slot], fed=fed[slot]) for slot in range(6)],
        pages=pages,
        steady=ints([5, 2]),
    )
    table.apply(plan)
    batch = Batcher(table, GROUPS, max_tokens=32).make(plan)

    tokens = [(slot, position) for slot, start, count, _ in rows for position in range(start, start + count)]
    assert batch.positions_T.tolist() == [position for _, position in tokens]
    assert batch.ids_T.tolist() == [known[slot][position] for slot, position in tokens]
    for group, table_of, cells_T in zip(GROUPS, pages, batch.cells_GT, strict=True):
        size = group.page_size
        assert cells_T.tolist() == [table_of[s][p // size] * size + p % size for s, p in tokens]
    assert batch.starts_R.tolist() == [start for _, start, _, _ in rows]
    assert batch.counts_R.tolist() == [1, 1, 7, 1, 3]
    assert batch.offsets_R1.tolist() == [0, 1, 2, 9, 10, 13]
    assert {batch.ids_T.dtype, batch.positions_T.dtype, batch.cells_GT[0].dtype} == {torch.int64}
    assert {x.dtype for x in (batch.slots_R, batch.starts_R, batch.counts_R, batch.offsets_R1)} == {torch.int32}


def test_unchanged_steady_rows_upload_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table()
    batcher = Batcher(table, GROUPS, max_tokens=8)
    steady = ints([3, 1])
    admits = [admit(3, [7, 8, 9], fed=2), admit(1, [4, 5], fed=1)]
    plan = make_plan([(3, 2, 1, True), (1, 1, 1, True)], admits=admits, pages=[{}, {}], steady=steady)
    table.apply(plan)
    assert batcher.make(plan).ids_T.tolist() == [9, 5]

    def refuse(*_: object) -> None:
        raise AssertionError("nothing has changed")

    monkeypatch.setattr(batch_module, "upload", refuse)
    monkeypatch.setattr(table_module, "upload", refuse)
    table.fed_S[[3, 1]] += 1
    table.tokens_SL[[3, 1], [3, 2]] = torch.tensor([50, 60], dtype=torch.int32)
    plan = make_plan([(3, 3, 1, True), (1, 2, 1, True)], pages=[{}, {}], steady=steady)
    table.apply(plan)
    batch = batcher.make(plan)
    assert batch.ids_T.tolist() == [50, 60]
    assert batch.positions_T.tolist() == [3, 2]
