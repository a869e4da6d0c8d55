"""Engines whose experts are on ranks of their own say what one rank says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from sapwood.base.errors import ConfigError
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.parallel.balance import place
from tests import models
from tests.engine.whole import MAX_TOKENS, drain, greedy, prompts_that_share

PROMPTS = prompts_that_share(6)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save("qwen2-moe", tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def wanted(model: Path) -> list[list[int]]:
    return greedy(model, PROMPTS, device="cpu", threads=1)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"enable_expert_parallel": True, "max_total_tokens": 320, "speculation": "ngram"},
        pytest.param({"ep_size": 2, "pipeline_parallel_size": 2}, marks=pytest.mark.slow),
    ],
    ids=["preemption and drafts", "two stages"],
)
def test_two_ranks_say_what_one_says(
    model: Path, wanted: list[list[int]], options: dict[str, Any], tmp_path: Path
) -> None:
    base = {"model": str(model), "device": "cpu", "threads": 1, "max_model_len": 200, "max_num_seqs": 8}
    engine, *_ = launch(from_options(base | {"tensor_parallel_size": 2, "max_total_tokens": 4096} | options))
    for id, prompt in enumerate(PROMPTS):
        assert engine.submit(Submit(id, prompt, SamplingParams(max_tokens=MAX_TOKENS, temperature=0))) is None
    assert drain(engine, len(PROMPTS)) == wanted
    counters, told = engine.stats().counters, engine.control("experts")
    last = {name: one for name, one in load_file(next(model.glob("*.safetensors"))).items() if ".experts.11." in name}
    save_file(last, tmp_path / "last.safetensors")  # of these the first rank has nothing
    answer = engine.control("update_weights", {"path": str(tmp_path / "last.safetensors"), "whole": False})
    assert answer.get("error") is None and last
    engine.executor.shutdown()
    assert counters["cached_tokens"] > 0
    tokens = np.array(told["tokens"])
    assert told["ranks"] == 2 and tokens.shape[1] == 12 and (tokens.sum(1) == tokens[0].sum()).all()
    assert counters["expert_tokens"] == tokens.sum() and counters["expert_tokens_of_busiest"] >= tokens.sum() / 2
    loads = tokens.reshape(len(tokens), 2, 6).sum(2)
    assert told["balance"] == [pytest.approx(one.mean() / one.max(), abs=1e-4) for one in loads]
    replicated = [place(one, num_places=14, num_ranks=2).balance(one) for one in tokens]
    assert told["balance_with_replicas"] == pytest.approx(replicated, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"enable_expert_parallel": True}, "set --tensor-parallel-size"),
        ({"ep_size": 3, "tensor_parallel_size": 2}, "must be 1 or as many as"),
    ],
)
def test_what_is_refused(model: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        launch(from_options({"model": str(model), "device": "cpu", **options}))


def test_a_model_without_experts_is_refused(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="has no experts"):
        launch(from_options({"model": str(tiny_model), "device": "cpu", "tp": 2, "enable_expert_parallel": True}))
