"""Models that hear: Qwen2-Audio, Audio Flamingo 3 and Voxtral: another family's text, and Whisper's encoder in front of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sapwood.arch.families.llama import llama
from sapwood.arch.families.qwen import qwen2
from sapwood.arch.families.sight import ACTIVATIONS
from sapwood.arch.families.within import text_of
from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder
from sapwood.arch.sight import begun
from sapwood.arch.sound import SoundTower
from sapwood.base.errors import ModelError

_VOXTRAL = {
    "vocab_size": 131072,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 30,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000000.0,
    "head_dim": 128,
}
"""What Voxtral's configs leave out of their text."""
_QWEN = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}
"""The same of Qwen2-Audio's and Audio Flamingo's."""


def _hearing(
    text: Callable[[HfConfig], Decoder], read: Callable[[HfConfig, SoundTower], SoundTower]
) -> Callable[[HfConfig], Decoder]:
    """A family that is a text's, and an encoder's, of which `read` changes what is not Qwen2-Audio's."""

    def whole(c: HfConfig) -> Decoder:
        made, sound = text(c), c.section("audio_config")
        c.ignore("vocab_size", "hidden_size", "ignore_index", "pad_token_id")  # those of its text are in the section
        tower = read(c, _tower(sound, made.hidden_size))
        sound.refuse_unread()
        return replace(made, encoder=tower)

    return whole


def _tower(a: HfConfig, out: int) -> SoundTower:
    """Fields have Whisper's names, or those of other models."""
    a.ignore("initializer_range", "vocab_size", "model_type", "init_std", "use_cache")
    a.ignore("dropout", "attention_dropout", "activation_dropout", "layerdrop", "encoder_layerdrop")
    a.must("scale_embedding", False)
    hidden, heads = (
        _either(a, "d_model", "hidden_size", 1280),
        _either(a, "encoder_attention_heads", "num_attention_heads", 20),
    )
    if hidden % heads:
        raise ModelError(f"config.json: audio_config: {heads} heads must divide {hidden}, the size of a state.")
    positions = a.integer("max_source_positions", 1500)
    if positions % 2:
        raise ModelError(f"config.json: audio_config.max_source_positions ({positions}) must be even.")
    return SoundTower(
        out=out,
        roots=begun(("tower", "audio_tower."), ("joiner", "multi_modal_projector.")),
        others=(begun(("tower", "model.audio_tower."), ("joiner", "model.multi_modal_projector.")),),
        hidden=hidden,
        inner=_either(a, "encoder_ffn_dim", "intermediate_size", 5120),
        layers=_either(a, "encoder_layers", "num_hidden_layers", 32),
        heads=heads,
        bins=a.integer("num_mel_bins", 128),
        positions=positions,
        activation=a.choice("activation_function", ACTIVATIONS, "gelu"),
    )


def _either(a: HfConfig, name: str, other: str, default: int) -> int:
    """The field of the first name that is there. Configs may have both, of which Whisper's holds."""
    a.ignore(name, other)
    return a.integer(name if a.has(name) else other, default)


def _qwen(c: HfConfig, tower: SoundTower) -> SoundTower:
    return tower


def _flamingo(c: HfConfig, tower: SoundTower) -> SoundTower:
    return replace(
        tower,
        between=c.choice("projector_hidden_act", ACTIVATIONS, "gelu"),
        bias=c.boolean("projector_bias", True),
        most_windows=20,
    )


def _voxtral(c: HfConfig, tower: SoundTower) -> SoundTower:
    if tower.inner % tower.hidden or tower.positions % (tower.inner // tower.hidden):
        raise ModelError(
            f"config.json: audio_config.intermediate_size ({tower.inner}) must be a multiple of the size of a state ({tower.hidden}) "
            f"by a number that divides {tower.positions}, the positions of a window."
        )
    return replace(
        tower,
        between=c.choice("projector_hidden_act", ACTIVATIONS, "gelu"),
        bias=False,
        group=tower.inner // tower.hidden,
        joined=True,
        whole=True,
        most_windows=None,
    )


_APART = {"model.": "language_model.model.", "lm_head": "language_model.lm_head"}


def _family(
    name: str,
    text: Callable[[HfConfig], Decoder],
    read: Callable[[HfConfig, SoundTower], SoundTower],
    **assumed: Any,
) -> Family:
    return Family(architecture=name, declare=_hearing(text_of(text, _APART, (), **assumed), read))


FAMILIES = (
    _family("Qwen2AudioForConditionalGeneration", qwen2, _qwen, **_QWEN),
    _family("AudioFlamingo3ForConditionalGeneration", qwen2, _flamingo, **_QWEN),
    _family("VoxtralForConditionalGeneration", llama, _voxtral, **_VOXTRAL),
)
