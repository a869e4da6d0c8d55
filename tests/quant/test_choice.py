"""What is multiplied, in words: what `explain` prints."""

from __future__ import annotations

from typing import Any

import pytest

from sapwood.arch import declare
from sapwood.base.errors import ConfigError, ModelError
from sapwood.quant.choice import choice_of, told
from sapwood.quant.methods import METHODS
from tests import models


def said(section: dict[str, Any] | None, rounded: str | None = None, family: str = "llama") -> list[tuple[int, str]]:
    config = models.config(family) | ({} if section is None else {"quantization_config": section})
    decoder = declare(config, methods=METHODS)
    return told(decoder, choice_of(decoder, rounded))


def test_linears_are_counted_by_what_they_are_multiplied_in() -> None:
    assert said(None) == [(9, "plain weights")]
    assert said({"quant_method": "fp8"}) == [
        (8, "fp8 weights with a scale each, inputs rounded token by token"),
        (1, "plain weights"),
    ]
    found = said(None, "int4")
    assert found[0] == (
        8,
        "4-bit integer weights with a scale for 32 inputs and a zero point, inputs as they are; rounded from plain ones",
    )
    assert found[1] == (1, "plain weights")


def test_what_a_section_says_of_single_modules_counts() -> None:
    four = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}
    eight = {"num_bits": 8, "type": "float", "strategy": "channel"}
    section = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            "all": {"targets": ["Linear"], "weights": four, "format": "pack-quantized"},
            "values": {"targets": ["re:.*v_proj"], "weights": eight, "format": "float-quantized"},
        },
        "ignore": ["lm_head", "re:.*layers.1.*"],
    }
    assert said(section) == [
        (5, "plain weights"),
        (3, "4-bit integer weights with a scale for 32 inputs, inputs as they are"),
        (
            1,
            "4-bit integer weights with a scale for 32 inputs, inputs as they are; "
            "beside them fp8 weights with a scale an output, inputs as they are",
        ),
    ]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"quant_method": "awq", "version": "marlin"}, r"quantization_config\.version = 'marlin' .*only gemm"),
        ({"quant_method": "gptq", "bits": 3}, r"quantization_config\.bits = 3 .*4, 8"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, r"checkpoint_format = 'marlin'"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"weight_block_size = \[64, 64\] .*128 by 128"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, r"quant_algo = 'W4A8_AWQ'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "af4"}, r"bnb_4bit_quant_type"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, r"default\._type"),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:marlin"}, r"packing_format"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 2}}}},
            r"config_groups\.g\.weights\.num_bits = 2",
        ),
    ],
)
def test_what_cannot_be_read_is_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        said(section)


def test_quantised_weights_are_not_rounded_again() -> None:
    with pytest.raises(ConfigError, match="leave it out"):
        said({"quant_method": "fp8"}, "int8")


def test_routers_and_heads_are_never_rounded_and_experts_are() -> None:
    found = said(None, "fp8", "qwen3-moe")
    assert found[0][1].startswith("fp8") and found[0][0] == 2 * (2 + 2 * 12)
    assert found[1] == (3, "plain weights"), "the head and routers"


@pytest.mark.parametrize("method", ["fp8", "gptq"])
def test_routers_stay_plain_where_a_section_does_not_speak_of_them(method: str) -> None:
    found = said({"quant_method": method, "bits": 4, "group_size": 32}, family="qwen3-moe")
    assert found[0][0] == 2 * (2 + 2 * 12) and found[1] == (3, "plain weights")


def test_experts_may_be_excepted() -> None:
    excepted = ["re:.*mlp.experts.*", "re:.*mlp.gate$"]
    found = said({"quant_method": "fp8", "modules_to_not_convert": excepted}, family="qwen3-moe")
    assert found[0] == (2 * (1 + 2 * 12) + 1, "plain weights")
