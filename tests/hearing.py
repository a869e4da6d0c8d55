"""Small models that hear, what transformers makes of a recording for them, and what it says to prompts with recordings."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sapwood.arch import declare
from sapwood.base.media import Media
from sapwood.hub.files import open_files
from sapwood.images.hearing import Hearing
from sapwood.images.look import Expansion
from tests.seeing import built

AUDIO = 290  # the token that stands for one
BINS, POSITIONS = 16, 50  # a window has one second
SETTINGS = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": BINS,
    "chunk_length": 1,
    "n_samples": 16000,
}
_TEXT = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "bos_token_id": None, "eos_token_id": None, "head_dim": 16,
}  # fmt: skip
_SOUND = {"num_mel_bins": BINS, "max_source_positions": POSITIONS}
_NAMED = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, **_SOUND}


class Heard(NamedTuple):
    """A family: its classes, and the fields of its config."""

    config: str
    model: str
    fields: dict[str, Any]


HEARING: Mapping[str, Heard] = MappingProxyType({
    "qwen2-audio": Heard(
        "Qwen2AudioConfig", "Qwen2AudioForConditionalGeneration",
        {"text_config": {"model_type": "qwen2", **_TEXT}, "audio_token_index": AUDIO,
         "audio_config": {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, **_SOUND}},
    ),
    "audio-flamingo": Heard(
        "AudioFlamingo3Config", "AudioFlamingo3ForConditionalGeneration",
        {"text_config": {"model_type": "qwen2", **_TEXT}, "audio_token_id": AUDIO,
         "audio_config": {**_NAMED, "intermediate_size": 48}},
    ),
    "voxtral": Heard(
        "VoxtralConfig", "VoxtralForConditionalGeneration",
        {"text_config": {"model_type": "llama", **_TEXT}, "audio_token_id": AUDIO,
         "audio_config": {**_NAMED, "intermediate_size": 64}},
    ),
})  # fmt: skip


@functools.cache
def make(family: str) -> Any:
    heard = HEARING[family]
    return built(heard.config, heard.model, heard.fields)


def save(family: str, path: Path) -> Path:
    make(family).save_pretrained(path)
    return path


class Prepared:
    """What prepares recordings for a model that was saved, each in its turn."""

    def __init__(self, family: str, path: Path) -> None:
        self._made = Hearing(declare(open_files(path, name=family).config).encoder, SETTINGS, AUDIO)  # type: ignore[arg-type]
        self.token = AUDIO

    def prepare(self, samples: np.ndarray) -> Media:
        return self._made.prepare(samples, 1000)

    def expand(self, media: Media) -> Expansion:
        return self._made.expand(media)


def recording(seconds: float, seed: int = 0) -> np.ndarray:
    """Tones that come and go, and noise: int16 [N]."""
    draw = np.random.default_rng(seed)
    times = np.arange(int(16000 * seconds)) / 16000
    tones = np.sin(2 * np.pi * (220 + 200 * seed) * times) * (np.sin(times * (9 + seed)) > 0)
    return np.int16(6000 * tones + draw.normal(0, 300, len(times)))


def processed(family: str, recordings: Sequence[np.ndarray]) -> dict[str, Tensor]:
    """What transformers' processors make of them, which want tokenizers."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(feature_size=BINS, chunk_length=1)
    sounds = [one.astype(np.float32) / 32768 for one in recordings]
    if family == "voxtral":
        how = {"padding": True, "truncation": False, "pad_to_multiple_of": 16000, "sampling_rate": 16000}
        features = [
            torch.tensor(extractor(one, **how)["input_features"]).view(BINS, -1, 100).transpose(0, 1) for one in sounds
        ]
        return {"input_features": torch.cat(features)}
    cuts = [one[at : at + 16000] for one in sounds for at in range(0, len(one), 16000)]
    how = {"sampling_rate": 16000, "padding": "max_length", "return_attention_mask": True, "return_tensors": "pt"}
    found = extractor(cuts, **how)
    name = "feature_attention_mask" if family == "qwen2-audio" else "input_features_mask"
    return {"input_features": found["input_features"], name: found["attention_mask"]}


@torch.inference_mode()
def logprobs(family: str, tokens: Sequence[int], recordings: Sequence[np.ndarray]) -> Tensor:
    """float32 [position, vocabulary] of what transformers expects behind each token."""
    given = processed(family, recordings) if recordings else {}
    return make(family)(input_ids=torch.tensor([list(tokens)]), **given).logits[0].float().log_softmax(-1)
