"""Small models that see, what transformers makes of an image for them, and what it says to prompts with images."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sapwood.arch import declare
from sapwood.base.media import Media, Span
from sapwood.hub.files import open_files
from sapwood.images.anyres import Anyres
from sapwood.images.framed import Framed
from sapwood.images.grid import Grid
from sapwood.images.look import Preparer
from sapwood.images.patches import Patches
from sapwood.images.rows import Rows
from sapwood.images.square import Square
from sapwood.images.tiles import Tiles

IMAGE = 290  # the token that stands for one
_TEXT = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_VIT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 7,
}  # fmt: skip
_WOVEN = {
    **_TEXT, "head_dim": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4]},
}  # fmt: skip
_DEEP = {
    "depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64, "num_position_embeddings": 25,
}  # fmt: skip
_PATCHED = {
    "size": {"shortest_edge": 64 * 64, "longest_edge": 160 * 160}, "patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
_GRIDS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84], [84, 84]]
_TURNED = {**_TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}


class Seen(NamedTuple):
    """A family: its classes, the fields of its config, its image processor's class and fields, and what prepares images here."""

    config: str
    model: str
    fields: dict[str, Any]
    processor: str
    settings: dict[str, Any]
    preparer: Callable[[Any, Mapping[str, Any]], Preparer]


def tiles(tower: Any, settings: Mapping[str, Any]) -> Tiles:
    """With made-up ids for what stands around tiles."""
    names = {"<fake_token_around_image>": 291, "<global-img>": 292, "\n": 293, "<image>": IMAGE}

    def encode(text: str) -> list[int]:
        found = []
        while text:
            name = next((name for name in names if text.startswith(name)), None) or text[: text.index(">") + 1]
            found.append(names.get(name, 294))
            text = text.removeprefix(name)
        return found

    return Tiles(tower, settings, IMAGE, encode)


SEEING: Mapping[str, Seen] = MappingProxyType({
    "llava": Seen(
        "LlavaConfig", "LlavaForConditionalGeneration",
        {"text_config": {"model_type": "llama", **_TEXT}, "vision_config": {"model_type": "clip_vision_model", **_VIT},
         "image_token_index": IMAGE},
        "CLIPImageProcessorPil", {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
        lambda tower, settings: Square(tower, settings, IMAGE),
    ),
    "llava-siglip": Seen(
        "LlavaConfig", "LlavaForConditionalGeneration",
        {"text_config": {"model_type": "llama", **_TEXT}, "vision_config": {"model_type": "siglip_vision_model", **_VIT},
         "image_token_index": IMAGE, "vision_feature_select_strategy": "full", "vision_feature_layer": [-1, 1]},
        "SiglipImageProcessorPil", {"size": {"height": 28, "width": 28}},
        lambda tower, settings: Square(tower, settings, IMAGE),
    ),
    "llava-next": Seen(
        "LlavaNextConfig", "LlavaNextForConditionalGeneration",
        {"text_config": {"model_type": "llama", **_TEXT}, "vision_config": {"model_type": "clip_vision_model", **_VIT},
         "image_token_index": IMAGE, "image_grid_pinpoints": _GRIDS},
        "LlavaNextImageProcessorPil",
        {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "image_grid_pinpoints": _GRIDS},
        lambda tower, settings: Anyres(tower, settings, IMAGE),
    ),
    "llava-onevision": Seen(
        "LlavaOnevisionConfig", "LlavaOnevisionForConditionalGeneration",
        {"text_config": {"model_type": "qwen2", **_TEXT}, "vision_config": {"model_type": "siglip_vision_model", **_VIT},
         "image_token_index": IMAGE, "video_token_index": IMAGE + 1, "image_grid_pinpoints": _GRIDS, "vision_aspect_ratio": "anyres_max_2"},
        "LlavaOnevisionImageProcessorPil", {"size": {"height": 28, "width": 28}, "image_grid_pinpoints": _GRIDS},
        lambda tower, settings: Anyres(tower, settings, IMAGE),
    ),
    "llava-pixtral": Seen(
        "LlavaConfig", "LlavaForConditionalGeneration",
        {"text_config": {"model_type": "mistral", **_TEXT}, "vision_config": {"model_type": "pixtral", **_VIT, "head_dim": 16},
         "image_token_index": IMAGE, "vision_feature_select_strategy": "full", "vision_feature_layer": -1},
        "PixtralImageProcessorPil", {"size": {"longest_edge": 50}, "patch_size": {"height": 7, "width": 7}},
        lambda tower, settings: Rows(tower, settings, IMAGE, lambda written: [296 + len(written) % 3]),
    ),
    "mistral3": Seen(
        "Mistral3Config", "Mistral3ForConditionalGeneration",
        {"text_config": {"model_type": "mistral", **_TEXT, "sliding_window": None}, "tie_word_embeddings": False,
         "vision_config": {"model_type": "pixtral", **_VIT, "head_dim": 16}, "image_token_index": IMAGE, "vision_feature_layer": -2},
        "PixtralImageProcessorPil", {"size": {"longest_edge": 60}, "patch_size": {"height": 14, "width": 14}},
        lambda tower, settings: Rows(tower, settings, IMAGE, lambda written: [296 + len(written) % 3]),
    ),
    "gemma3": Seen(
        "Gemma3Config", "Gemma3ForConditionalGeneration",
        {"text_config": {**_TEXT, "head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
         "vision_config": _VIT, "mm_tokens_per_image": 4, "image_token_index": IMAGE, "boi_token_index": 296, "eoi_token_index": 297},
        "Gemma3ImageProcessorPil", {"size": {"height": 28, "width": 28}, "resample": 2},
        lambda tower, settings: Framed(tower, settings, IMAGE, begin=296, end=297),
    ),
    "smolvlm": Seen(
        "SmolVLMConfig", "SmolVLMForConditionalGeneration",
        {"text_config": {"model_type": "llama", **_TEXT}, "vision_config": _VIT, "image_token_id": IMAGE, "scale_factor": 2},
        "SmolVLMImageProcessorPil", {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}, "resample": 1},
        tiles,
    ),
    "idefics3": Seen(
        "Idefics3Config", "Idefics3ForConditionalGeneration",
        {"text_config": {"model_type": "llama", **_TEXT}, "vision_config": _VIT, "image_token_id": IMAGE, "scale_factor": 2},
        "Idefics3ImageProcessorPil",
        {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}, "resample": 1, "do_image_splitting": False},
        tiles,
    ),
    "internvl": Seen(
        "InternVLConfig", "InternVLForConditionalGeneration",
        {"text_config": {"model_type": "qwen2", **_TEXT}, "vision_config": {**_VIT, "use_mean_pooling": False, "attention_bias": True},
         "image_token_id": IMAGE},
        "GotOcr2ImageProcessorPil", {"size": {"height": 28, "width": 28}, "crop_to_patches": True, "max_patches": 5},
        lambda tower, settings: Grid(tower, settings, IMAGE, lambda written: [295]),
    ),
    "internvl-rms": Seen(
        "InternVLConfig", "InternVLForConditionalGeneration",
        {"text_config": {"model_type": "qwen2", **_TEXT}, "image_token_id": IMAGE, "tie_word_embeddings": False,
         "vision_config": {**_VIT, "use_qk_norm": True, "norm_type": "rms_norm", "image_size": [28, 28], "patch_size": [7, 7]}},
        "GotOcr2ImageProcessorPil", {"size": {"height": 28, "width": 28}, "crop_to_patches": True, "min_patches": 2, "max_patches": 6},
        lambda tower, settings: Grid(tower, settings, IMAGE, lambda written: [295]),
    ),
    "qwen2-vl": Seen(
        "Qwen2VLConfig", "Qwen2VLForConditionalGeneration",
        {"text_config": _TURNED, "image_token_id": IMAGE,
         "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}},
        "Qwen2VLImageProcessorPil", {"min_pixels": 56 * 56, "max_pixels": 140 * 140},
        lambda tower, settings: Patches(tower, settings, IMAGE),
    ),
    "qwen2.5-vl": Seen(
        "Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration",
        {"text_config": _TURNED, "image_token_id": IMAGE,
         "vision_config": {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64,
                           "fullatt_block_indexes": [1], "window_size": 56}},
        "Qwen2VLImageProcessorPil", {"min_pixels": 56 * 56, "max_pixels": 140 * 140},
        lambda tower, settings: Patches(tower, settings, IMAGE),
    ),
    "qwen3-vl": Seen(
        "Qwen3VLConfig", "Qwen3VLForConditionalGeneration",
        {"text_config": _WOVEN, "image_token_id": IMAGE, "vision_config": {**_DEEP, "deepstack_visual_indexes": [2, 0]}},
        "Qwen2VLImageProcessorPil", _PATCHED, lambda tower, settings: Patches(tower, settings, IMAGE),
    ),
    "qwen3-vl-moe": Seen(
        "Qwen3VLMoeConfig", "Qwen3VLMoeForConditionalGeneration",
        {"text_config": {**_WOVEN, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 48},
         "image_token_id": IMAGE, "vision_config": {**_DEEP, "deepstack_visual_indexes": [1]}},
        "Qwen2VLImageProcessorPil", _PATCHED, lambda tower, settings: Patches(tower, settings, IMAGE),
    ),
    "qwen3.5": Seen(
        "Qwen3_5Config", "Qwen3_5ForConditionalGeneration",
        {"text_config": {**_TEXT, "head_dim": 64, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
                         "linear_num_value_heads": 4, "linear_key_head_dim": 24, "linear_value_head_dim": 16},
         "image_token_id": IMAGE, "vision_config": _DEEP},
        "Qwen2VLImageProcessorPil", _PATCHED, lambda tower, settings: Patches(tower, settings, IMAGE),
    ),
})  # fmt: skip


@functools.cache
def make(family: str) -> Any:
    seen = SEEING[family]
    return built(seen.config, seen.model, seen.fields)


def built(config: str, model_name: str, fields: Mapping[str, Any]) -> Any:
    """transformers' model, with random weights that are not small."""
    import transformers

    torch.manual_seed(1)
    model = getattr(transformers, model_name)(getattr(transformers, config)(**fields)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(std=0.1) if weight.dim() > 1 else weight.add_(torch.randn_like(weight) * 0.1)
            if "lm_head" in name:
                weight.normal_(std=0.5)
    return model


def save(family: str, path: Path) -> Path:
    make(family).save_pretrained(path)
    return path


def tower(path: Path) -> Any:
    """Of a model that was saved."""
    return declare(open_files(path, name="seen").config).encoder


def preparer(family: str, path: Path) -> Preparer:
    """Of a model that was saved."""
    return SEEING[family].preparer(tower(path), SEEING[family].settings)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise over a slope."""
    random = np.random.default_rng(seed)
    slope = np.linspace(0, 200, width)[None, :, None] * np.array([1.0, 0.5, 0.2])
    return Image.fromarray((slope + random.integers(0, 56, (height, width, 3))).astype(np.uint8))


def processed(family: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """What transformers' processor on Pillow makes of them."""
    import transformers

    seen = SEEING[family]
    made = getattr(transformers, seen.processor)(**seen.settings)(list(images), return_tensors="pt")
    return {name: value for name, value in made.items() if name not in ("rows", "cols", "num_patches", "num_crops")}


def prompt_of(made: Preparer, parts: Sequence[int | Image.Image]) -> tuple[list[int], list[Media], list[Span]]:
    """Tokens and images in their order, as a request has them."""
    tokens, media, spans = list[int](), list[Media](), list[Span]()
    for part in parts:
        if isinstance(part, int):
            tokens.append(part)
            continue
        media.append(made.prepare(part))
        expansion = made.expand(media[-1])
        spans += [Span(len(tokens) + at, length, len(media) - 1, offset) for at, length, offset in expansion.spans]
        tokens += expansion.ids
    return tokens, media, spans


@torch.inference_mode()
def logprobs(family: str, tokens: Sequence[int], images: Sequence[Image.Image]) -> Tensor:
    """float32 [position, vocabulary] of what transformers expects behind each token."""
    ids = torch.tensor([list(tokens)])
    given = processed(family, images) if images else {}
    if "qwen" in family:
        given["mm_token_type_ids"] = (ids == IMAGE).int()
    if family == "gemma3":
        given["token_type_ids"] = (ids == IMAGE).int()
    return make(family)(input_ids=ids, **given).logits[0].float().log_softmax(-1)
