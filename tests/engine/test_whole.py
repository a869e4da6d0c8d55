"""Everything together on the CPU: greedy tokens of whole engines are those of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import models
from tests.engine.whole import MAX_TOKENS, greedy, prompts_that_share


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


@pytest.mark.parametrize("family", ["llama", "gemma3", "mistral"])
@pytest.mark.parametrize("depth", [0, 2])
def test_memory_pressure_changes_nothing(family: str, depth: int, tmp_path: Path) -> None:
    """A pool that holds two or three of the requests: they are preempted and resumed, and say the same."""
    prompts = prompts_that_share(8)
    model = models.save(family, tmp_path)
    roomy, _ = greedy(model, prompts)
    # Too small for the growth that a start foresees, so growth has to be preempted.
    tight, engine = greedy(model, prompts, max_total_tokens=208, page_size=4, depth=depth, max_num_batched_tokens=32)
    assert tight == roomy
    assert engine.scheduler.kv.tree.num_evicted > 0
