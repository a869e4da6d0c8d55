"""Adapters of tiny models as PEFT makes and saves them, and what PEFT's own model says with them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save(model: Any, path: Path, *, seed: int = 0, **fields: Any) -> Path:
    """Write an adapter of random numbers for a model of transformers, which stays as it is; return `path`."""
    import torch
    from peft import LoraConfig, get_peft_model

    fields = {"r": 4, "lora_alpha": 16, "target_modules": ALL, "task_type": "CAUSAL_LM", **fields}
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**fields))
    random = torch.Generator().manual_seed(seed)
    for name, weight in adapted.named_parameters():
        if "lora_magnitude" in name:
            weight.data.mul_(1 + torch.rand(weight.shape, generator=random))
        elif "lora_" in name:
            weight.data.normal_(std=0.2, generator=random)
    adapted.save_pretrained(path)
    return path


def load(model: Any, path: Path | None) -> Any:
    """PEFT's model with the adapter; without one the model itself."""
    from peft import PeftModel

    return model if path is None else PeftModel.from_pretrained(copy.deepcopy(model), str(path)).eval()


def logits(model: Any, path: Path | None, tokens: list[int]) -> Any:
    """PEFT's float32 logits [len(tokens), vocabulary] of a model with the adapter, or without one."""
    import torch

    with torch.inference_mode():
        return load(model, path)(input_ids=torch.tensor([tokens]), use_cache=False).logits[0]
