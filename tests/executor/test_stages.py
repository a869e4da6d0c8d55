"""Engines whose layers are in several stages say what one says, whatever is asked of them, and end as one."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from sapwood import LLM
from sapwood.base.errors import ConfigError, ModelError
from sapwood.base.plan import Drafts, Known, Plan, Stretch
from sapwood.executor.ranks import Ranks
from sapwood.executor.stages import _touched
from tests.executor.test_ranks import GREEDY, OPTIONS, PROMPTS, said
from tests.waiting import eventually


@pytest.fixture(scope="module")
def wanted(tiny_model: Path) -> list[tuple[list[int], str]]:
    return said(LLM(str(tiny_model), **OPTIONS))


@pytest.fixture(scope="module")
def vector(tiny_model: Path) -> np.ndarray[Any, Any]:
    return np.array(LLM(str(tiny_model), **OPTIONS).embed(PROMPTS[0])[0].vector)


@pytest.mark.parametrize(
    "options",
    [
        {"max_total_tokens": 320, "speculation": "ngram"},
        {"depth": 2, "max_num_batched_tokens": 16, "chunked_prefill_size": 8},
        pytest.param({"tensor_parallel_size": 2, "depth": 1}, marks=pytest.mark.slow),
    ],
    ids=["preemption and drafts", "several plans in flight", "two ranks each"],
)
def test_two_stages_say_what_one_says(
    tiny_model: Path, wanted: list[tuple[list[int], str]], vector: Any, options: dict[str, Any]
) -> None:
    """With grammars, penalties and logprobs, behind prefixes that are there, and vectors too."""
    llm = LLM(str(tiny_model), pipeline_parallel_size=2, **(OPTIONS | options))
    assert said(llm) == wanted
    assert said(llm) == wanted
    assert llm._engine.stats().counters["cached_tokens"] > 0
    assert np.allclose(llm.embed(PROMPTS[0])[0].vector, vector, atol=1e-5)
    llm._engine.shutdown()


def test_a_stage_that_is_killed_ends_the_engine(tiny_model: Path) -> None:
    llm = LLM(str(tiny_model), pipeline_parallel_size=2, **OPTIONS)
    executor = llm._engine.executor
    assert isinstance(executor, Ranks)
    other: Any = executor._others[1]
    os.kill(other._process.pid, signal.SIGKILL)
    assert eventually(other.poll) == -signal.SIGKILL
    (generation,) = llm.generate(["Hello"], [GREEDY])
    assert "rank 1 has ended (signal 9)" in str(generation.outputs[0].error)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"pipeline_parallel_size": 3}, "has 2 layers only"),
        ({"pipeline_parallel_size": 0}, "at least 1"),
        ({"pipeline_parallel_size": 2, "speculative_model": "itself"}, "which no stage has"),
        ({"pipeline_parallel_size": 2, "model_impl": "transformers"}, "are not taken apart"),
    ],
)
def test_what_is_refused(tiny_model: Path, options: dict[str, Any], says: str) -> None:
    if options.get("speculative_model") == "itself":
        options = options | {"speculative_model": str(tiny_model)}
    with pytest.raises(ConfigError, match=says):
        LLM(str(tiny_model), **OPTIONS, **options)


def test_what_a_plan_touches() -> None:
    stretch = Stretch(5, 0, np.zeros(1, np.int32))
    one = np.array([3], np.int32)
    plan = Plan(
        num_steady=1,
        version=1,
        slots_R=one,
        starts_R=one,
        counts_R=one,
        heads_R=one,
        owners_R=one.astype(np.int64),
        number=1,
        parts=(Known((stretch,)), Drafts((Stretch(6, 0, np.zeros(1, np.int32)),))),
    )
    assert _touched(plan) == {3, 5, 6}


def test_weights_of_a_later_stage_are_taken_or_refused_as_a_whole(tiny_model: Path, tmp_path: Path) -> None:
    """The first rank has nothing of these layers, and answers for those that do."""
    llm, alone = LLM(str(tiny_model), pipeline_parallel_size=2, **OPTIONS), LLM(str(tiny_model), **OPTIONS)
    before, name = said(llm), "model.layers.1.self_attn.q_proj.weight"
    tensors = load_file(tiny_model / "model.safetensors")
    weight, head = tensors[name], tensors["lm_head.weight"]
    with pytest.raises(ModelError, match=r"of another shape: model\.layers\.1"):
        llm.update_weights([(name, weight[:8])])
    with pytest.raises(ModelError, match=r"left over: model\.layers\.2"):
        llm.update_weights([(name.replace("1", "2"), weight)])
    whole = shutil.copytree(tiny_model, tmp_path / "less")
    save_file({name: weight}, whole / "model.safetensors")
    with pytest.raises(ModelError, match="missing"):
        llm.update_weights(whole)
    assert said(llm) == before
    for one in (llm, alone):
        one.update_weights([("lm_head.weight", head.roll(1, 0))])
    assert said(llm) == said(alone) != before
    llm._engine.shutdown()
