"""Tiny random models that read texts, made by transformers, and what they make of texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

_MODERN = {"num_hidden_layers": 3, "local_attention": 12, "global_attn_every_n_layers": 2}
_LABELS = {"id2label": {0: "bad", 1: "good", 2: "so so"}, "label2id": {"bad": 0, "good": 1, "so so": 2}}
_ONE = {"num_labels": 1}

READERS: Mapping[str, tuple[str, str, dict[str, Any]]] = MappingProxyType({
    "bert": ("BertConfig", "BertModel", {}),
    "roberta": ("RobertaConfig", "RobertaModel", {"pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRobertaConfig", "XLMRobertaModel", {"pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1}),
    "distilbert": ("DistilBertConfig", "DistilBertModel", {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4}),
    "modernbert": ("ModernBertConfig", "ModernBertModel", _MODERN),
    "nomic": ("NomicBertConfig", "NomicBertModel", {}),
    "gte": ("GteConfig", "GteModel", {}),
    "gte-untyped": ("GteConfig", "GteModel", {"type_vocab_size": 0, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "gte-labels": ("GteConfig", "GteForSequenceClassification", _LABELS),
    "mpnet": ("MPNetConfig", "MPNetModel", {"pad_token_id": 1, "bos_token_id": 0}),
    "mpnet-labels": ("MPNetConfig", "MPNetForSequenceClassification", {"pad_token_id": 1, "bos_token_id": 0, **_LABELS}),
    "qwen3-base": ("Qwen3Config", "Qwen3Model", {"head_dim": 32}),
    "mistral-base": ("MistralConfig", "MistralModel", {"head_dim": 32, "sliding_window": 16}),
    "bert-pairs": ("BertConfig", "BertForSequenceClassification", _ONE),
    "bert-labels": ("BertConfig", "BertForSequenceClassification", _LABELS),
    "roberta-labels": ("RobertaConfig", "RobertaForSequenceClassification", {"pad_token_id": 1, "bos_token_id": 0, "type_vocab_size": 1, **_LABELS}),
    "distilbert-labels": ("DistilBertConfig", "DistilBertForSequenceClassification", {"dim": 64, "hidden_dim": 96, "n_layers": 2, "n_heads": 4, **_LABELS}),
    "modernbert-labels": ("ModernBertConfig", "ModernBertForSequenceClassification", {**_MODERN, "classifier_pooling": "mean", **_LABELS}),
    "qwen3-labels": ("Qwen3Config", "Qwen3ForSequenceClassification", {"head_dim": 32, **_LABELS}),
})  # fmt: skip


def states(family: str, tokens: list[int], types: list[int] | None = None) -> Any:
    """transformers' last hidden states [len(tokens), hidden size], float32."""
    import torch

    from tests import models

    more = {} if types is None else {"token_type_ids": torch.tensor([types])}
    with torch.inference_mode():
        return models.make(family)(torch.tensor([tokens]), **more).last_hidden_state[0]


def scores(family: str, tokens: list[int], types: list[int] | None = None) -> Any:
    """transformers' scores of the labels."""
    import torch

    from tests import models

    more = {} if types is None else {"token_type_ids": torch.tensor([types])}
    with torch.inference_mode():
        return models.make(family)(torch.tensor([tokens]), **more).logits[0]


def write_words(path: Path) -> None:
    """A vocabulary of BERT's kind, of letters: what older directories have for a tokenizer."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *".,?!"]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
