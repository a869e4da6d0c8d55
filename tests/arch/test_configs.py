"""Configs as transformers 4 and 5 write them, and what is refused, by name."""

from __future__ import annotations

from typing import Any

import pytest

from sapwood.arch import declare
from sapwood.arch.groups import KVPlace, kv_groups, kv_places
from sapwood.arch.memory import num_parameters
from sapwood.arch.parts import Rope, Tied
from sapwood.arch.rope import frequencies
from sapwood.arch.scaling import LinearScaling, Llama3Scaling, YarnScaling
from sapwood.base.errors import ModelError
from tests import models
from tests.breadth import BREADTH, RENAMED
from tests.recurrent import RECURRENT

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 100,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
GEMMA3 = LLAMA | {
    "architectures": ["Gemma3ForCausalLM"],
    "head_dim": 16,
    "sliding_window": 32,
    "num_hidden_layers": 4,
    "query_pre_attn_scalar": 16,
}


def rope(config: dict[str, Any], layer: int = 0) -> Rope:
    return declare(config).blocks[layer].mixer.rope


def test_ropes_of_both_styles_are_equal() -> None:
    old = LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}}
    new = LLAMA | {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}}
    older = LLAMA | {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"type": "llama3"}}
    assert rope(old) == rope(new) == rope(older) == Rope(16, 5e5, Llama3Scaling(8.0, 1.0, 4.0, 64))
    assert rope(LLAMA) == Rope(16, 1e4)
    assert rope(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2}}) == Rope(16, 1e4, LinearScaling(2.0))


def test_yarn_reads_its_attention_factor_or_derives_it() -> None:
    fields = {"rope_type": "yarn", "factor": 4.0}
    scaling = rope(LLAMA | {"rope_scaling": fields}).scaling
    assert isinstance(scaling, YarnScaling)
    assert scaling.original_max_positions == 512
    assert scaling.attention_factor == pytest.approx(1.1386294)
    given = rope(LLAMA | {"rope_scaling": fields | {"attention_factor": 0.5}})
    assert frequencies(given).factor == 0.5
    equal = rope(LLAMA | {"rope_scaling": fields | {"mscale": 0.7, "mscale_all_dim": 0.7}})
    assert frequencies(equal).factor == 1.0


def test_the_first_length_at_the_top_counts_before_the_section_s() -> None:
    top = LLAMA | {"original_max_position_embeddings": 32}
    for fields in (LLAMA3 | {"rope_type": "llama3"}, {"rope_type": "yarn", "factor": 4.0}):
        for section in ("rope_scaling", "rope_parameters"):
            scaling = rope(top | {section: fields}).scaling
            assert isinstance(scaling, Llama3Scaling | YarnScaling)
            assert scaling.original_max_positions == 32
    ratio = rope(top | {"rope_scaling": {"rope_type": "yarn"}}).scaling
    assert isinstance(ratio, YarnScaling)
    assert ratio.factor == 512 / 32, "where it is not said"
    assert rope(top) == Rope(16, 1e4)


def test_gemma3_may_have_one_kind_of_layers() -> None:
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": None, "sliding_window_pattern": 6}
    assert {block.mixer.rope for block in declare(GEMMA3 | old).blocks} == {Rope(16, 1e4)}
    assert {block.mixer.rope for block in declare(GEMMA3 | old | {"sliding_window_pattern": 1}).blocks} == {
        Rope(16, 1e6)
    }


def test_gemma3_of_both_styles_is_equal() -> None:
    old = GEMMA3 | {
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 2,
    }
    new = GEMMA3 | {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    assert declare(old) == declare(new)
    assert rope(old, 0) == Rope(16, 1e4)
    assert rope(old, 1) == Rope(16, 1e6, LinearScaling(8.0))
    assert isinstance(declare(old).head, Tied)


def test_layers_with_a_window_have_a_group_of_their_own() -> None:
    decoder = declare(GEMMA3 | {"sliding_window_pattern": 2})
    everything, window = kv_groups(decoder, 16)
    assert (everything.window, window.window) == (None, 32)
    assert (everything.num_layers, window.num_layers) == (2, 2)
    places = [place for kept in kv_places(decoder) for place in kept.values()]
    assert places == [KVPlace(1, 0), KVPlace(0, 0), KVPlace(1, 1), KVPlace(0, 1)]


def test_a_window_that_the_context_never_fills_is_none() -> None:
    mistral = LLAMA | {"architectures": ["MistralForCausalLM"]}
    assert [g.window for g in kv_groups(declare(mistral | {"sliding_window": 512}), 16)] == [None]
    assert [g.window for g in kv_groups(declare(mistral | {"sliding_window": 511}), 16)] == [511]
    assert [g.window for g in kv_groups(declare(mistral | {"sliding_window": None}), 16)] == [None]


def test_qwen_windows_only_when_switched_on() -> None:
    qwen = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 32, "max_window_layers": 1}
    assert [b.mixer.window for b in declare(qwen | {"use_sliding_window": False}).blocks] == [None, None]
    assert [b.mixer.window for b in declare(qwen | {"use_sliding_window": True}).blocks] == [None, 32]


@pytest.mark.parametrize("family", [*models.MODELS, *BREADTH, *RENAMED, *RECURRENT])
def test_parameters_are_counted_as_transformers_does(family: str) -> None:
    decoder = declare(models.config(family))
    unused = 0 if decoder.positions is None else decoder.positions.offset * decoder.hidden_size
    unused -= sum(block.factor is not None for block in decoder.blocks)  # which are buffers there
    theirs = models.make(family)
    offsets = sum(
        one.numel() for name, one in theirs.named_buffers() if name.endswith(("correction_bias", "expert_bias"))
    )
    assert num_parameters(decoder) + unused == theirs.num_parameters() + offsets


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"architectures": ["RwkvForCausalLM"]}, "architectures"),
        ({"architectures": ["MllamaForConditionalGeneration"]}, "architectures"),
        ({"architectures": None}, "architectures"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size must be a positive integer"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": 5, "num_key_value_heads": 5}, "num_attention_heads"),
        ({"hidden_act": "mish"}, "hidden_act"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "'ntk'"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "short_factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, r"rope_scaling\.factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "warp": 3}}, r"rope_scaling\.warp"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"sliding_window": 128}, "sliding_window"),
        ({"use_mrope": True}, "use_mrope"),
        ({"is_causal": False}, "is_causal = False"),
        ({"position_embedding_type": "alibi"}, "position_embedding_type = 'alibi'"),
        ({"norm_type": "layernorm"}, "norm_type = 'layernorm'"),
        ({"mlp_activation": "relu"}, "mlp_activation = 'relu'"),
        ({"hidden_activation": "silu"}, "hidden_activation = 'silu'"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "method": "ntk"}}, r"rope_scaling\.method = 'ntk'"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        declare(LLAMA | fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"use_bidirectional_attention": True},
        {"layer_types": ["full_attention"]},
        {"layer_types": ["chunked_attention"] * 4},
    ],
)
def test_gemma_fields_that_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=next(iter(fields))):
        declare(GEMMA3 | fields)


def test_harmless_fields_pass() -> None:
    harmless = {
        "auto_map": {"AutoConfig": "x"},
        "bos_token_id": 1,
        "attention_dropout": 0.1,
        "torch_dtype": "bfloat16",
        "is_llama_config": True,
        "rope_interleaved": False,
        "_name_or_path": "x",
        "transformers.js_config": {"dtype": "q4"},
        "some_switch": False,
        "use_mrope": False,
        "some_word": "",
        "is_causal": True,
        "position_embedding_type": "rope",
        "norm_type": "rmsnorm",
        "transformers_version": "4.44.0",
        "attn_implementation": "sdpa",
        "cache_implementation": "hybrid",
        "tokenizer_class": "LlamaTokenizer",
        "unsloth_version": "2025.1",
        "license": "mit",
        "problem_type": "single_label_classification",
    }
    assert declare(LLAMA | harmless).dtype == "bfloat16"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"num_experts_per_tok": 13}, "13 experts"),
        ({"mlp_only_layers": ["a"]}, "mlp_only_layers"),
        ({"use_sliding_window": True}, "use_sliding_window"),
    ],
)
def test_experts_that_cannot_be_are_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        declare(models.config("qwen3-moe") | fields)
