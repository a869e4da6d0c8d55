"""Who makes vectors: another model, and texts that it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sapwood.route.inner import Refused, Unanswered
from sapwood.route.semantic.meanings import Meanings
from sapwood.route.semantic.table import Meaning
from tests.route.mock import Mock, routed, until
from tests.route.test_proxy import run
from tests.route.test_semantic import Reader, ask, meant, posted


def test_another_model_for_vectors_by_the_same_name_stops_nobody() -> None:
    async def case() -> None:
        reader = Reader("reader", ("vectors", "labels"))
        async with routed(reader, Mock("small", ("small",)), Mock("big", ("big",)), table=meant()) as (client, _):
            await until(lambda: len(reader.bodies) == 2)
            assert (await posted(client, ask("does a cat sleep?")))[2] == "pets; 1.00; pets 1.00"
            reader.words = ("cat", "tax", "poem", "dog")
            assert (await posted(client, ask("a cat, then?")))[::2] == (200, "otherwise; 0.00; no signal")
            while (told := await posted(client, ask("a cat again?")))[2] != "pets; 1.00; pets 1.00":
                assert told[0] == 200  # until examples have vectors of the new one

    run(case())


def test_a_text_that_has_no_vector_keeps_nobody_from_theirs() -> None:
    class Picky:
        async def of(self, texts: Any, timeout: float) -> Any:
            if "odd" in texts:
                raise Refused("it says 400")
            return np.ones((len(texts), 2), np.float32)

    async def case() -> None:
        meanings = Meanings(Picky(), Meaning(model="v"))
        with pytest.raises(Unanswered, match="400"):
            await meanings.of("odd")
        assert (await meanings.of("even")).tolist() == [1, 1]

    run(case())
