"""The wider families through whole engines: drafts, prefix hits and both ways to compute on CPUs change no token."""

from __future__ import annotations

from pathlib import Path

import pytest

from sapwood.base.sampling import SamplingParams
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.kernels.cpu.library import find
from tests import models
from tests.engine.test_drafts import drafted, same, say
from tests.engine.whole import prompts_that_share

FAMILIES = ["gemma2", "cohere", "gpt2", "bloom", "deepseek-v3", "lfm2", "qwen3-next"]
"""Which together have the parts that reach farthest: caps, windows, distances, learned positions, blocks side by side, latents, states."""

MINE = [(prompt, SamplingParams(max_tokens=16, temperature=0, logprobs=1)) for prompt in prompts_that_share(5)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_is_said_in_every_way(family: str, tmp_path: Path) -> None:
    model = models.save(family, tmp_path)
    wanted, _ = say(model, MINE, prefix_caching=False)
    same(say(model, MINE, cpu_kernels="off")[0], wanted)
    same(say(model, MINE, stakes=drafted(wanted, truth=0.7))[0], wanted)


def test_what_computes_is_told(tmp_path: Path) -> None:
    model = models.save("lfm2", tmp_path)
    for options, said in (
        ({"cpu_kernels": "off"}, "modules of PyTorch (the CPU kernels are not used: it is turned off)"),
        ({}, ""),
    ):
        launched = launch(from_options({"model": str(model), "dtype": "float32", "max_model_len": 200, **options}))
        launched.engine.executor.shutdown()
        (told,) = (line for line in launched.facts.decisions if line.startswith("computed_by = "))
        assert said in told if said or isinstance(find(), str) else "the CPU kernels (the whole model" in told
