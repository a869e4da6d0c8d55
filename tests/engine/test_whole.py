"""Everything together on the CPU: greedy tokens of whole engines are those of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sapwood.bench import workloads
from tests import models
from tests.engine.whole import MAX_TOKENS, greedy, prompts_that_share, replay


def likeliest(family: str, prompt: list[int], output: list[int]) -> list[int]:
    """What transformers finds likeliest after the prompt and each token of the output."""
    logits = models.logits(family, prompt + output[:-1])
    return torch.argmax(logits[len(prompt) - 1 :], dim=-1).tolist()


@pytest.mark.parametrize("family", sorted(models.MODELS))
def test_greedy_tokens_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    """Chunked prompts, shared prefixes, mixed batches and a step in flight, all at once."""
    prompts = prompts_that_share(8)
    outputs, engine = greedy(models.save(family, tmp_path), prompts, max_num_batched_tokens=48, depth=1)
    assert engine.counters["cached_tokens"] > 0
    for prompt, output in zip(prompts, outputs, strict=True):
        assert len(output) == MAX_TOKENS
        assert output == likeliest(family, prompt, output)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral", "llama4"])
@pytest.mark.parametrize("depth", [0, 2])
def test_memory_pressure_changes_nothing(family: str, depth: int, tmp_path: Path) -> None:
    """A pool that holds two or three of the requests: they are preempted and resumed, and say the same."""
    prompts = prompts_that_share(8)
    model = models.save(family, tmp_path)
    roomy, _ = greedy(model, prompts)
    # Too small for the growth that a start foresees, so growth has to be preempted.
    tight, engine = greedy(model, prompts, max_total_tokens=208, page_size=4, depth=depth, max_num_batched_tokens=32)
    assert tight == roomy
    assert engine.stats().counters["evicted_pages"] > 0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("name", ["uniform", "general", "shared", "agent"])
def test_workloads_say_what_the_plain_path_says(name: str, device: str, tmp_path: Path) -> None:
    """Lengths and sharing of the benchmarks, shrunk: everything on, against one request at a time without a cache."""
    model = models.save("llama", tmp_path)
    (spec,) = workloads.NAMED[name]
    workload = spec.make(0.005 if device == "cuda" else 0.001)
    plain = {"attention_backend": "reference", "depth": 0, "max_num_seqs": 1, "prefix_caching": False}
    expected, _ = replay(model, workload, device="cpu", **plain)
    found, engine = replay(model, workload, device=device, max_num_batched_tokens=128)
    assert found == expected
    assert name in ("uniform", "general") or engine.counters["cached_tokens"] > 0
