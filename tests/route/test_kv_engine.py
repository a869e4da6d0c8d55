"""A router that listens to a real engine."""

from __future__ import annotations

from pathlib import Path

import msgspec

from sapwood.route.kv import packed
from tests import models
from tests.route.mock import until
from tests.route.test_kv import listening
from tests.route.test_proxy import run
from tests.stores.test_engine import PROMPTS, say, started


def test_an_engine_has_what_it_is_thought_to_have(tmp_path: Path) -> None:
    """A real one, by its own events: what is held of each prompt is what turns out to be cached."""

    async def case() -> None:
        model, pub = models.save("llama", tmp_path / "model"), f"ipc://{tmp_path}/pub"
        asked = msgspec.json.encode({"endpoint": pub, "replay_endpoint": f"ipc://{tmp_path}/again"}).decode()
        engine = started(model, kv_events_config=asked)
        with listening(events=pub, events_replay=f"ipc://{tmp_path}/again") as (ears, index, _, _):
            ears.tend()
            await until(
                lambda: index.num_blocks() == {"a": 0} and all(book.whole for book in index._books["a"].values())
            )
            for prompt in (*PROMPTS, *PROMPTS):
                before = index.held(packed(prompt), None, ["a"])["a"]
                _, (cached,) = say(engine, [prompt])
                assert (
                    min(before, len(prompt) - 1) <= cached < before + 16
                )  # a part of a page is not told of, and the last token is computed
                await until(
                    lambda prompt=prompt: index.held(packed(prompt), None, ["a"])["a"] == len(prompt) // 16 * 16
                )  # type: ignore[misc]
            await ears.close()
        engine.shutdown()

    run(case())
