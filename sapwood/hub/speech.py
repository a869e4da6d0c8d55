"""What the files of a model of speech say of how it hears and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sapwood.base.errors import ModelError

_MELS = 80
_MOST_MELS = 512


@dataclass(frozen=True)
class Speech:
    """`num_mels` of its spectra; `silent` are the tokens that no transcript has, None where the files do not say; `aligns` heads of the decoder,
    each a layer and a head, that look at what is being said."""

    num_mels: int = _MELS
    silent: tuple[int, ...] | None = None
    aligns: tuple[tuple[int, int], ...] = ()


def speech_of(config: Mapping[str, Any], generation_config: Mapping[str, Any]) -> Speech | None:
    """Of a model that transcribes, by config.json and generation_config.json; None of any other. Raises ModelError."""
    if config.get("model_type") != "whisper":
        return None
    num_mels, silent = config.get("num_mel_bins", _MELS), generation_config.get("suppress_tokens")
    if isinstance(num_mels, bool) or not isinstance(num_mels, int) or not 1 <= num_mels <= _MOST_MELS:
        raise ModelError(f"config.json: num_mel_bins must be in [1, {_MOST_MELS}], got {num_mels!r}.")
    if silent is not None and not (isinstance(silent, list) and all(isinstance(id, int) for id in silent)):
        raise ModelError(f"generation_config.json: suppress_tokens must be a list of tokens' ids, got {silent!r}.")
    aligns = _aligns(config, generation_config.get("alignment_heads"))
    return Speech(num_mels, None if silent is None else tuple(silent), aligns)


def _aligns(config: Mapping[str, Any], told: Any) -> tuple[tuple[int, int], ...]:
    """As the files say; all heads of the upper half of the layers where they say nothing, as in openai-whisper."""
    layers, heads = config.get("decoder_layers", 4), config.get("decoder_attention_heads", 6)
    if told is None:
        return tuple((layer, head) for layer in range(layers // 2, layers) for head in range(heads))
    pairs: list[Any] = told if isinstance(told, list) and told else [None]
    for pair in pairs:
        sound = isinstance(pair, list) and len(pair) == 2 and all(type(one) is int for one in pair)
        if not sound or not (0 <= pair[0] < layers and 0 <= pair[1] < heads):
            raise ModelError(
                f"generation_config.json: alignment_heads must be pairs of one of {layers} layers and one of {heads} heads, got {pair!r}."
            )
    return tuple((layer, head) for layer, head in pairs)
