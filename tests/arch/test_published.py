"""Configs as the repositories of models that many people run have them: declared as they stand, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sapwood.arch import declare
from sapwood.arch.memory import num_parameters
from sapwood.base.errors import ModelError

PUBLISHED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "published.json").read_text())
"""Written down, not fetched; of some models that see the sizes below are those of their text. Lists of factors of long ropes are of the
right length, with other numbers; sections about quantisation are left out, and so is most of what models see with."""

COMPARED = {
    "Qwen/Qwen3-8B", "microsoft/phi-2", "tiiuae/Falcon-H1-0.5B-Base", "google/gemma-3-4b-it", "google/gemma-3-27b-it",
    "google/gemma-3n-E4B-it", "meta-llama/Llama-4-Scout-17B-16E", "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
    "ai21labs/Jamba-v0.1", "Qwen/Qwen3.5-27B",
}  # fmt: skip
"""Whose fields and sizes have been compared with copies, some of them of a part, in other public repositories."""

SIZES = {  # parameters in millions
    "openai-community/gpt2": 124, "Qwen/Qwen2.5-7B-Instruct": 7616, "Qwen/Qwen3-8B": 8191,
    "meta-llama/Llama-3.1-8B-Instruct": 8030, "meta-llama/Llama-3.2-1B-Instruct": 1236,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1100, "mistralai/Mistral-7B-Instruct-v0.3": 7248, "facebook/opt-125m": 125,
    "google/gemma-2-2b-it": 2614, "google/gemma-3-1b-it": 1000, "google/gemma-2b-it": 2506, "microsoft/phi-2": 2780,
    "microsoft/phi-4": 14660, "microsoft/Phi-4-mini-instruct": 3836, "HuggingFaceTB/SmolLM2-135M-Instruct": 135,
    "HuggingFaceTB/SmolLM3-3B": 3075, "EleutherAI/pythia-160m": 162, "bigscience/bloom-560m": 559,
    "tiiuae/falcon-7b-instruct": 6922, "CohereForAI/c4ai-command-r7b-12-2024": 8028, "THUDM/GLM-4-9B-0414": 9400,
    "internlm/internlm2_5-7b-chat": 7738, "bigcode/starcoder2-3b": 3030, "mosaicml/mpt-7b": 6649,
    "ByteDance-Seed/Seed-OSS-36B-Instruct": 36151, "Qwen/Qwen3-30B-A3B": 30532,
    "tiiuae/Falcon-H1-0.5B-Base": 521, "Qwen/Qwen3.5-27B": 27357, "Qwen/Qwen3.5-35B-A3B": 35107,
    "google/gemma-3-4b-it": 4300, "google/gemma-3-27b-it": 27432, "meta-llama/Llama-4-Scout-17B-16E": 107770,
    "meta-llama/Llama-4-Maverick-17B-128E-Instruct": 400712, "ai21labs/Jamba-v0.1": 51570,
    "zai-org/GLM-4.7-Flash": 29943, "state-spaces/mamba-130m-hf": 129, "tiiuae/falcon-mamba-7b-instruct": 7273, "Qwen/Qwen2.5-VL-7B-Instruct": 8292,
    "llava-hf/llava-1.5-7b-hf": 7063,
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": 24011,
    "deepseek-ai/DeepSeek-V2-Lite": 15706, "deepseek-ai/DeepSeek-V3": 671026,
    "moonshotai/Kimi-K2-Instruct": 1026408, "moonshotai/Kimi-K2.5": 1026408,
    "openai/gpt-oss-20b": 20915,
}  # fmt: skip

REFUSED = {
    "BlinkDL/rwkv7-g1": ({"architectures": ["RWKV7ForCausalLM"]}, "architectures"),
    "Qwen/Qwen2.5-7B-Instruct-1M": (
        PUBLISHED["Qwen/Qwen2.5-7B-Instruct"]
        | {"dual_chunk_attention_config": {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}},
        "dual_chunk_attention_config",
    ),
    "facebook/opt-350m": (
        PUBLISHED["facebook/opt-125m"] | {"do_layer_norm_before": False, "word_embed_proj_dim": 512},
        "do_layer_norm_before",
    ),
}  # fmt: skip


@pytest.mark.parametrize("model", list(PUBLISHED))
def test_what_is_published_is_declared(model: str) -> None:
    decoder = declare(PUBLISHED[model])
    if model in SIZES:
        assert num_parameters(decoder) / 1e6 == pytest.approx(SIZES[model], rel=0.005)


@pytest.mark.parametrize("model", list(REFUSED))
def test_what_is_not_there_yet_is_refused_by_name(model: str) -> None:
    config, named = REFUSED[model]
    with pytest.raises(ModelError, match=named):
        declare(config)


@pytest.mark.parametrize("field", ["first_k_dense_replace", "n_shared_experts"])
def test_none_of_something_is_a_number_too(field: str) -> None:
    """As the config of a model without it may say."""
    declare(PUBLISHED["deepseek-ai/DeepSeek-V2-Lite"] | {field: 0})


def test_what_is_compared_is_there() -> None:
    assert PUBLISHED.keys() >= COMPARED
