"""Tiny random encoder-decoders, made by transformers, and what they make of inputs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

_BART = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 40, "vocab_size": 199, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0,
    "decoder_start_token_id": 2,
}  # fmt: skip
_T5 = {
    "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "vocab_size": 199,
    "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "decoder_start_token_id": 0, "pad_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip
_LONG = {"max_position_embeddings": 128}
_WHISPER = {**_BART, "num_mel_bins": 8, "max_source_positions": 24, "max_target_positions": 96}

SEQ2SEQ: Mapping[str, tuple[str, str, dict[str, Any]]] = MappingProxyType({
    "whisper": ("WhisperConfig", "WhisperForConditionalGeneration", _WHISPER),
    "t5": ("T5Config", "T5ForConditionalGeneration", _T5),
    "t5-v1.1": ("T5Config", "T5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("MT5Config", "MT5ForConditionalGeneration", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "bart": ("BartConfig", "BartForConditionalGeneration", {**_BART, **_LONG}),
    "mbart": ("MBartConfig", "MBartForConditionalGeneration", {**_BART, **_LONG, "scale_embedding": True}),
    "marian": ("MarianConfig", "MarianMTModel", {**_BART, **_LONG, "decoder_vocab_size": 199, "scale_embedding": True}),
    "m2m100": ("M2M100Config", "M2M100ForConditionalGeneration", {**_BART, **_LONG}),
})  # fmt: skip


def write_speaking(path: Path) -> Path:
    """A T5 over bytes, with a tokenizer; returns `path`."""
    import torch
    import transformers

    from tests.tiny import write_bytes_model

    write_bytes_model(path)
    (path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    torch.manual_seed(0)
    fields = {**_T5, "vocab_size": 258, "eos_token_id": 257, "num_decoder_layers": 2}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**fields))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    model.save_pretrained(path)
    return path


@functools.cache
def make(family: str) -> Any:
    """The transformers model of a family, float32, in evaluation mode; always the same weights."""
    import torch
    import transformers

    config, kind, fields = SEQ2SEQ[family]
    torch.manual_seed(sum(map(ord, family)))
    settings = getattr(transformers, config)(**{**fields, "attn_implementation": "eager"})
    model = getattr(transformers, kind)(settings).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
            elif "embed_positions" not in name or family in ("bart", "mbart", "whisper"):
                weight.normal_(std=1.0 if "relative" in name else 0.2)
        for name, offsets in model.named_buffers():
            if name == "final_logits_bias":
                offsets.normal_(std=0.5)
    return model


def save(family: str, path: Path) -> Path:
    """Write the model to `path` as a Hugging Face directory; return `path`."""
    make(family).save_pretrained(path)
    return path


def text(seed: int, length: int) -> list[int]:
    """Token ids of an input."""
    found: list[int] = np.random.default_rng(seed).integers(3, 199, size=length).tolist()
    return found


def features(seed: int) -> Any:
    """float32 [8, 48], a recording as `whisper` takes it."""
    return np.random.default_rng(seed).standard_normal((8, 48)).astype(np.float32)


def logits(family: str, heard: Any, tokens: list[int]) -> tuple[Any, Any]:
    """transformers' float32 logits [len(tokens), vocabulary] of the decoder's tokens, and the encoder's last states."""
    import torch

    given = (
        {"input_features": torch.from_numpy(heard)[None]}
        if family == "whisper"
        else {"input_ids": torch.tensor([heard])}
    )
    with torch.inference_mode():
        out = make(family)(**given, decoder_input_ids=torch.tensor([tokens]), use_cache=False)
    return out.logits[0], out.encoder_last_hidden_state[0]


def greedy(family: str, heard: Any, tokens: list[int], count: int) -> list[int]:
    """The likeliest `count` tokens behind those of the decoder, by transformers."""
    found = list(tokens)
    for _ in range(count):
        found.append(int(logits(family, heard, found)[0][-1].argmax()))
    return found[len(tokens) :]
