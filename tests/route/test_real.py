"""Rules that ask a real server: vectors, labels and counts of tokens are those of its models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapwood import LLM
from tests import models
from tests.http.conftest import Server
from tests.readers import write_words
from tests.route.mock import Mock, routed, until
from tests.route.test_proxy import CHAT, run

LIKE, OTHER = "the cat sits outside", "a dog sleeps"


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = models.save("bert-labels", tmp_path_factory.mktemp("labels"))
    write_words(path)
    return path


@pytest.fixture(scope="module")
def reader(labels: Path) -> Iterator[Server]:
    server = Server(labels, "--served-model-name", "labels", "--threads", "1")
    yield server
    assert server.stop() == 0, server.output


def rules(bound: float, label: str) -> dict[str, Any]:
    return {
        "meaning": {"model": "labels", "timeout": 20},
        "signal": {
            "like": {"kind": "examples", "like": [LIKE], "at_least": bound},
            "label": {"kind": "label", "model": "labels", "any": [label], "timeout": 20},
        },
        "auto": {
            "auto": {
                "to": ["m"],
                "rule": [
                    {"name": "like", "all": ["like"], "to": ["m"]},
                    {"name": "label", "all": ["label"], "to": ["m"]},
                ],
            }
        },
    }


@pytest.mark.slow
def test_rules_by_vectors_and_labels_and_budgets_by_tokens(reader: Server, labels: Path) -> None:
    llm = LLM(str(labels), threads=1)
    like, other = (one.vector for one in llm.embed([LIKE, OTHER]))
    near = float(like @ other / np.linalg.norm(like) / np.linalg.norm(other))
    (told,) = llm.classify(OTHER)
    table = rules(min(near + 0.001, 1.0), told.label)

    async def case() -> None:
        m = Mock("m")
        await m.start()
        servers = [{"url": m.url, "name": "m"}, {"url": reader.url, "name": "reader"}]
        async with routed(m, table=table | {"server": servers}) as (client, router):
            await until(lambda: router.fleet.replicas["reader"].models == {"labels"})

            async def explained(text: str) -> dict[str, dict[str, object]]:
                body = {"messages": [{"role": "user", "content": text}]}
                async with client.post("/route/explain", json=body) as answer:
                    signals: dict[str, dict[str, object]] = (await answer.json())["signals"]
                    return signals

            while (found := await explained(LIKE))["like"]["holds"] is None:  # until its examples' vectors are there
                pass
            assert found["like"]["score"] == pytest.approx(1, abs=1e-4)
            found = await explained(OTHER)
            assert found["like"]["score"] == pytest.approx(max(near, 0), abs=1e-3) and found["like"]["holds"] is False
            share = max(told.scores.values())
            assert found["label"]["score"] == pytest.approx(share, abs=1e-3)
            assert found["label"]["holds"] is (share >= 0.5)
            async with client.post(
                CHAT, json={"model": "auto", "messages": [{"role": "user", "content": LIKE}]}
            ) as answer:
                assert answer.headers["x-sapwood-rule"].startswith("like; 1.00")
            message = {"role": "user", "content": LIKE}
            body = {"model": "labels", "messages": [message], "budget": 64, "count": "tokenize"}
            async with client.post("/v1/context/compact", json=body) as answer:
                said = await answer.json()
                assert said["counted"] == "tokenize" and said["before"]["tokens"] == said["after"]["tokens"] > 4

    run(case())
