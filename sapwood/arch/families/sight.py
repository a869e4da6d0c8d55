"""Models that see: LLaVA 1.5, with Pixtral's tower too, Idefics 3 and SmolVLM, InternVL, Qwen2-VL and Qwen2.5-VL: another family's text, and a tower in front of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from sapwood.arch.families.llama import llama, mistral
from sapwood.arch.families.qwen import qwen2, qwen3
from sapwood.arch.families.within import text_of
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder, ropes
from sapwood.arch.sight import (
    InternTower,
    LlavaTower,
    QwenTower,
    ShuffledTower,
    SightActivation,
    Tower,
    Vit,
    begun,
    looking,
)
from sapwood.arch.sight_pixtral import PixtralTower
from sapwood.base.errors import ModelError

ACTIVATIONS: Mapping[str, SightActivation] = MappingProxyType({
    "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu",
})  # fmt: skip
_TEXTS: Mapping[str, Callable[[HfConfig], Decoder]] = MappingProxyType(
    {
        "llama": llama,
        "mistral": mistral,
        "qwen2": qwen2,
        "qwen3": qwen3,
    }
)
LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
}
"""What LLaVA's configs leave out of their text."""


def seeing(
    text: Callable[[HfConfig], Decoder], tower: Callable[[HfConfig, HfConfig, int], Tower]
) -> Callable[[HfConfig], Decoder]:
    """A family that is a text's, and what `tower` reads from the config, its section for vision, and the size of a token's vector."""

    def whole(c: HfConfig) -> Decoder:
        made, sight = text(c), c.section("vision_config")
        sight.ignore("initializer_range", "initializer_factor", "model_type")
        found = tower(c, sight, made.hidden_size)
        sight.refuse_unread()
        if found.turns and any(rope.sections is None for rope in ropes(made)):
            raise ModelError(
                "config.json: rope_scaling needs an mrope_section, of which the numbers add up to half of a head."
            )
        return replace(looking(made, ahead=True) if found.ahead else made, encoder=found)

    whole.__module__ = tower.__module__  # whose file says what the family is
    return whole


def any_text(c: HfConfig) -> Decoder:
    """By the kind that its section says."""
    kind = c.string("model_type", "llama")
    if kind not in _TEXTS:
        raise ModelError(
            f"config.json: text_config.model_type = {kind!r} is not supported here; these are: {', '.join(_TEXTS)}."
        )
    return _TEXTS[kind](c)


def vit_of(v: HfConfig, *, clip: bool) -> Vit:
    """With the defaults of CLIP's or SigLIP's configs."""
    v.must("num_channels", 3)
    v.ignore("projection_dim", "vocab_size", "attention_dropout", "vision_use_head")
    v.refuse("use_head", because="its vectors are those of patches")
    return Vit(
        hidden=v.integer("hidden_size", 768),
        inner=v.integer("intermediate_size", 3072),
        layers=v.integer("num_hidden_layers", 12),
        heads=v.integer("num_attention_heads", 12),
        image=v.integer("image_size", 224),
        patch=v.integer("patch_size", 32 if clip else 16),
        activation=v.choice("hidden_act", ACTIVATIONS, "quick_gelu" if clip else "gelu_pytorch_tanh"),
        eps=v.number("layer_norm_eps", 1e-5 if clip else 1e-6),
        clip=clip,
    )


def llava(c: HfConfig, v: HfConfig, hidden: int) -> LlavaTower:
    c.ignore("vocab_size")  # that of its text is in the section
    kind = v.string("model_type", "clip_vision_model")
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        raise ModelError(
            f"config.json: vision_config.model_type = {kind!r} is not supported; clip_vision_model, siglip_vision_model and pixtral are."
        )
    vit = vit_of(v, clip=kind == "clip_vision_model")
    features = features_of(c, vit.layers + 1, -2)
    strategy = c.choice("vision_feature_select_strategy", {"default": False, "full": True}, "default")
    if not vit.clip and not strategy:
        raise ModelError(
            "config.json: vision_feature_select_strategy must be 'full' for a tower of SigLIP, which has no vector of the whole."
        )
    return LlavaTower(
        out=hidden,
        roots=begun(("tower", "vision_tower.vision_model."), ("joiner", "multi_modal_projector.")),
        others=(begun(("tower", "vision_tower."), ("joiner", "multi_modal_projector.")),),
        vit=vit,
        features=features,
        full=strategy,
        activation=c.choice("projector_hidden_act", ACTIVATIONS, "gelu"),
        bias=c.boolean("multimodal_projector_bias", True),
    )


def llava_or_pixtral(c: HfConfig, v: HfConfig, hidden: int) -> LlavaTower | PixtralTower:
    """By what its section for vision says."""
    if v.string("model_type", "clip_vision_model") != "pixtral":
        return llava(c, v, hidden)
    c.must("vision_feature_select_strategy", "full")
    c.ignore("vocab_size")
    return pixtral(c, v, hidden)


def pixtral(c: HfConfig, v: HfConfig, hidden: int) -> PixtralTower:
    """Without a merge of its states."""
    v.must("num_channels", 3)
    v.ignore("vocab_size")
    size, heads = v.integer("hidden_size", 1024), v.integer("num_attention_heads", 16)
    v.must("head_dim", size // heads)
    layers = v.integer("num_hidden_layers", 24)
    return PixtralTower(
        out=hidden,
        roots=begun(("tower", "vision_tower."), ("joiner", "multi_modal_projector.")),
        others=(begun(("tower", "model.vision_tower."), ("joiner", "model.multi_modal_projector.")),),
        hidden=size,
        inner=v.integer("intermediate_size", 4096),
        layers=layers,
        heads=heads,
        image=_square(v, "image_size", 1024),
        patch=_square(v, "patch_size", 16),
        features=features_of(c, layers + 1, -1),
        activation=v.choice("hidden_act", ACTIVATIONS, "gelu"),
        join=c.choice("projector_hidden_act", ACTIVATIONS, "gelu"),
        bias=c.boolean("multimodal_projector_bias", True),
        theta=axial(v),
    )


def features_of(c: HfConfig, count: int, default: int) -> tuple[int, ...]:
    """Which of a tower's so many hidden states are seen."""
    several = isinstance(c.field("vision_feature_layer"), list)
    chosen = c.integers("vision_feature_layer") if several else (c.index("vision_feature_layer", count, default),)
    if not all(-count <= index < count for index in chosen):
        raise ModelError(f"config.json: vision_feature_layer = {list(chosen)}: the tower has {count} hidden states.")
    return tuple(index % count for index in chosen)


def _shuffled(c: HfConfig, v: HfConfig, hidden: int) -> ShuffledTower:
    vit = vit_of(v, clip=False)
    v.ignore("max_image_size", "size", "tie_word_embeddings")
    factor = c.integer("scale_factor", 2)
    if vit.side % factor:
        raise ModelError(f"config.json: scale_factor ({factor}) must divide {vit.side}, the patches of a side.")
    return ShuffledTower(
        out=hidden,
        roots=begun(("tower", "model.vision_model."), ("joiner", "model.connector.modality_projection.")),
        vit=vit,
        factor=factor,
        most_tiles=17,
    )


def _intern(c: HfConfig, v: HfConfig, hidden: int) -> InternTower:
    v.must("num_channels", 3)
    v.must("use_absolute_position_embeddings", True)
    v.ignore(
        "hidden_dropout_prob", "attention_dropout", "projection_dropout", "layer_scale_init_value", "use_mask_token"
    )
    c.must("vision_feature_layer", -1)
    c.must("vision_feature_select_strategy", "default")
    image, patch = _square(v, "image_size", 448), _square(v, "patch_size", 14)
    ratio = c.number("downsample_ratio", 0.5)
    factor = round(1 / ratio)
    if factor < 1 or factor * ratio != 1 or image // patch % factor:
        raise ModelError(
            f"config.json: downsample_ratio ({ratio}) must be one by a number that divides {image // patch}, the patches of a side."
        )
    return InternTower(
        out=hidden,
        roots=begun(("tower", "vision_tower."), ("joiner", "multi_modal_projector.")),
        others=(begun(("tower", "model.vision_tower."), ("joiner", "model.multi_modal_projector.")),),
        hidden=v.integer("hidden_size", 1024),
        inner=v.integer("intermediate_size", 4096),
        layers=v.integer("num_hidden_layers", 24),
        heads=v.integer("num_attention_heads", 16),
        image=image,
        patch=patch,
        factor=factor,
        activation=v.choice("hidden_act", ACTIVATIONS, "gelu"),
        join=c.choice("projector_hidden_act", ACTIVATIONS, "gelu"),
        eps=v.number("layer_norm_eps", 1e-6),
        squared=v.choice("norm_type", {"layer_norm": False, "rms_norm": True}, "layer_norm"),
        normed=v.boolean("use_qk_norm", False),
        bias=v.boolean("attention_bias", False),
        final=not v.boolean("use_mean_pooling", True),
    )


def axial(v: HfConfig) -> float:
    """The base of a tower's turns, by row and column."""
    if not v.has("rope_parameters"):
        return v.number("rope_theta", 10000.0)
    rope = v.section("rope_parameters")
    rope.must("rope_type", "axial")
    theta = rope.number("rope_theta", 10000.0)
    rope.refuse_unread()
    return theta


def _square(v: HfConfig, name: str, default: int) -> int:
    """A number, or two that are equal."""
    if isinstance(v.field(name), list | tuple):
        both = set(v.integers(name))
        if len(both) == 1 and min(both) > 0:
            return both.pop()
        raise ModelError(f"config.json: vision_config.{name} = {v.field(name)}: both must be the same.")
    return v.integer(name, default)


def _qwen2(c: HfConfig, v: HfConfig, hidden: int) -> QwenTower:
    dim = v.integer("embed_dim", 1280)
    made = _qwen(c, v, hidden, v.integer("hidden_size", 3584), dim)
    activation = v.choice("hidden_act", ACTIVATIONS, "quick_gelu")
    return replace(made, inner=int(dim * v.number("mlp_ratio", 4)), activation=activation)


def _qwen25(c: HfConfig, v: HfConfig, hidden: int) -> QwenTower:
    v.ignore("tokens_per_second")  # of videos
    made = _qwen(c, v, hidden, v.integer("out_hidden_size", 3584), v.integer("hidden_size", 3584))
    window = v.integer("window_size", 112)
    if window % (made.merge * made.patch):
        raise ModelError(
            f"config.json: vision_config.window_size ({window}) must be a multiple of {made.merge * made.patch}."
        )
    return replace(
        made,
        inner=v.integer("intermediate_size", 3420),
        activation=v.choice("hidden_act", ACTIVATIONS, "silu"),
        window=window,
        whole=v.integers("fullatt_block_indexes") if v.has("fullatt_block_indexes") else (7, 15, 23, 31),
    )


def _qwen(c: HfConfig, v: HfConfig, hidden: int, out: int, dim: int) -> QwenTower:
    """What both have; `out` is the size of a vector as the config says."""
    v.must("in_channels", 3)
    v.must("in_chans", 3)
    if out != hidden:
        raise ModelError(f"config.json: the tower's vectors have {out} numbers, those of tokens {hidden}.")
    patch = v.integer("patch_size", 14)
    v.must("spatial_patch_size", patch)
    return QwenTower(
        out=out,
        roots=begun(("tower", "visual.")),
        others=(begun(("tower", "model.visual.")),),
        hidden=dim,
        layers=v.integer("depth", 32),
        heads=v.integer("num_heads", 16),
        patch=patch,
        merge=v.integer("spatial_merge_size", 2),
        frames=v.integer("temporal_patch_size", 2),
        theta=axial(v),
    )


APART = {"model.": "language_model.model.", "lm_head": "language_model.lm_head"}
_SMOL = {"model.": "model.text_model."}
IDS = ("vision_tower.vision_model.embeddings.position_ids", "vision_tower.vision_model.head.", "vision_tower.head.")

FAMILIES = (
    Family(
        architecture="LlavaForConditionalGeneration",
        declare=seeing(text_of(any_text, APART, IDS, **LLAMA), llava_or_pixtral),
    ),
    *(
        Family(
            architecture=name,
            declare=seeing(text_of(any_text, _SMOL, ("model.vision_model.embeddings.position_ids",)), _shuffled),
        )
        for name in ("Idefics3ForConditionalGeneration", "SmolVLMForConditionalGeneration")
    ),
    Family(architecture="InternVLForConditionalGeneration", declare=seeing(text_of(any_text, APART, ()), _intern)),
    Family(architecture="Qwen2VLForConditionalGeneration", declare=seeing(text_of(qwen2, {}, ()), _qwen2)),
    Family(architecture="Qwen2_5_VLForConditionalGeneration", declare=seeing(text_of(qwen2, {}, ()), _qwen25)),
)
