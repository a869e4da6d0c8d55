"""Models that see, of which only the text is computed, as those of `tests.breadth`: their own sections are whole."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_TEXT = {
    "vocab_size": 199, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 24, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
_SEEN = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
}  # fmt: skip
_TILES = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
_DELTA = {
    **_TEXT, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "head_dim": 32,
    "linear_num_value_heads": 4, "linear_key_head_dim": 24, "linear_value_head_dim": 16,
}  # fmt: skip
_EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
}
_QWEN25 = {name: value for name, value in _TEXT.items() if name != "head_dim"}

WITHIN: Mapping[str, tuple[str, str, dict[str, Any]]] = MappingProxyType({
    "gemma3-whole": (
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {"text_config": {**_TEXT, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
         "vision_config": _TILES, "mm_tokens_per_image": 4},
    ),
    "mistral3": (
        "Mistral3Config",
        "Mistral3ForConditionalGeneration",
        {"text_config": {**_TEXT, "model_type": "mistral", "sliding_window": None},
         "vision_config": {**_TILES, "model_type": "pixtral", "head_dim": 16}, "tie_word_embeddings": False},
    ),
    "qwen2-vl": (
        "Qwen2VLConfig",
        "Qwen2VLForConditionalGeneration",
        {"text_config": {**_QWEN25, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
         "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}},
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLConfig",
        "Qwen2_5_VLForConditionalGeneration",
        {"text_config": {**_QWEN25, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
         "vision_config": _SEEN},
    ),
    "qwen3-vl": (
        "Qwen3VLConfig",
        "Qwen3VLForConditionalGeneration",
        {"text_config": {**_TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4]}},
         "vision_config": {**_SEEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}},
    ),
    "qwen3-vl-moe": (
        "Qwen3VLMoeConfig",
        "Qwen3VLMoeForConditionalGeneration",
        {"text_config": {**_TEXT, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48,
                         "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4]}},
         "vision_config": {**_SEEN, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}},
    ),
    "qwen3.5-whole": (
        "Qwen3_5Config",
        "Qwen3_5ForConditionalGeneration",
        {"text_config": _DELTA, "vision_config": {**_SEEN, "num_position_embeddings": 16}},
    ),
    "qwen3.5-moe-whole": (
        "Qwen3_5MoeConfig",
        "Qwen3_5MoeForConditionalGeneration",
        {"text_config": {**_DELTA, **_EXPERTS}, "vision_config": {**_SEEN, "num_position_embeddings": 16}},
    ),
})  # fmt: skip
