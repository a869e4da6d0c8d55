"""Several ranks with stores: pages of all of them come back together, token for token; nobody else finds them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood.base.errors import ConfigError, Lost
from sapwood.executor.pages import Layout
from sapwood.executor.ranks import Ranks
from sapwood.parallel.segment import unnamed
from tests import models
from tests.stores.test_engine import PROMPTS, forget, say, started
from tests.waiting import eventually

ALL = [(len(prompt) - 1) // 16 * 16 for prompt in PROMPTS]
TWO = {"tensor_parallel_size": 2, "threads": 1}


def test_restored_by_other_ranks_and_by_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, options = models.save("llama", tmp_path / "model"), {"kv_store": f"file:{tmp_path / 'kv'}?size=64M"}
    engine = started(model, **TWO, **options)
    cold, _ = say(engine, PROMPTS)
    forget(engine)
    warm, cached = say(engine, PROMPTS)
    assert warm == cold and cached == ALL
    monkeypatch.setattr(engine.executor, "_apart", True)
    with pytest.raises(ConfigError, match="go together on CPUs alone yet"):
        engine.executor.pager([8])
    engine.shutdown()

    engine = started(model, **TWO, **options, kv_store_write="back")
    warm, cached = say(engine, [*PROMPTS, [1] * 200])
    assert warm[:-1] == cold and cached[0] == ALL[0]
    executor: Any = engine.executor
    assert isinstance(executor, Ranks)
    other = executor._others[1]
    os.kill(other._process.pid, signal.SIGKILL)
    assert eventually(other.poll) == -signal.SIGKILL
    engine.shutdown()  # what would have gone to the directory is lost too

    engine = started(model, **options)
    _, cached = say(engine, PROMPTS[:1])
    assert cached == [0]
    engine.shutdown()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("gemma3", TWO | {"kv_store_write": "back", "max_total_tokens": 320}),
        ("llama", {"pipeline_parallel_size": 2, "threads": 1}),
    ],
    ids=["windows, what is evicted", "stages"],
)
def test_restored_from_host_memory(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    engine = started(models.save(family, tmp_path), kv_store="host:64M", **options)
    cold, _ = say(engine, PROMPTS[:1])
    for turn in range(4):
        say(engine, [[turn + 1] * 200])
    if "kv_store_write" not in options:
        forget(engine)
    warm, cached = say(engine, PROMPTS[:1])
    assert warm == cold and cached == ALL[:1]
    assert engine.stats().counters["store_hits_host"] > 0
    engine.shutdown()


def test_parts_of_a_row(tmp_path: Path) -> None:
    path, let_go = unnamed(3 * 10 + 2 * 7)
    layout = Layout(str(path), [3, 2], [[4, 3], [6, 4]])
    mine, others = layout.rows(), layout.rows()
    let_go()
    for rank, rows in ((0, mine), (1, others)):
        sizes = list(zip(layout.num_blocks, layout.page_bytes[rank], strict=True))
        for group, part in enumerate(layout.room(rows, rank)(sizes)):
            part[1] = 10 * rank + group
    assert mine[0][1].tolist() == [0] * 4 + [10] * 6 and mine[1][1].tolist() == [1] * 3 + [11] * 4
    assert not mine[0][[0, 2]].any() and np.array_equal(mine[0], others[0])
    with pytest.raises(Lost, match="pages of rank 1 are of other sizes"):
        layout.room(mine, 1)([(3, 5), (2, 4)])
