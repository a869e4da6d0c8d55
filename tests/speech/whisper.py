"""A small random Whisper over bytes, made by transformers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tests.speech import voices
from tests.speech.voices import VOCABULARY as V

CONTEXT = 64


def write(path: Path) -> WhisperForConditionalGeneration:
    """Write one that hears windows of 30 s and says marks now and then, with its tokenizer; return it."""
    voices.make_text(path)
    torch.manual_seed(5)
    config = WhisperConfig(
        vocab_size=voices.SIZE, num_mel_bins=80, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=48, max_target_positions=CONTEXT, pad_token_id=V.end,
        eos_token_id=V.end, bos_token_id=V.end, decoder_start_token_id=V.start, suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name and "encoder.embed_positions" not in name:
                weight.normal_(std=0.25)
    model.save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"suppress_tokens": [3, 5]}))
    return model
