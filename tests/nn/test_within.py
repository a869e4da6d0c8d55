"""Logits of the text of models that see against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import models
from tests.nn import forward
from tests.within import WITHIN

TOKENS = np.random.default_rng(0).integers(3, 199, size=60).tolist()


@pytest.mark.parametrize("family", list(WITHIN))
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    path = models.save(family, tmp_path)
    ours, theirs = forward.logits(forward.load(path), TOKENS), models.logits(family, TOKENS)
    assert theirs.std() > 0.1, "logits this flat would hide differences"
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("family", ["qwen3-moe", "qwen3.5-moe-whole"])
def test_experts_may_lie_in_one_tensor(family: str, tmp_path: Path) -> None:
    path = models.save(family, tmp_path)
    file = path / "model.safetensors"
    tensors, parts = {}, {}
    for name, tensor in load_file(file).items():
        before, _, behind = name.partition(".experts.")
        if behind:
            number, kind, _ = behind.split(".")
            parts.setdefault(before, {})[int(number), kind] = tensor
        else:
            tensors[name] = tensor
    for before, found in parts.items():
        count = len(found) // 3
        both = [torch.cat([found[i, "gate_proj"], found[i, "up_proj"]]) for i in range(count)]
        tensors[f"{before}.experts.gate_up_proj"] = torch.stack(both)
        tensors[f"{before}.experts.down_proj"] = torch.stack([found[i, "down_proj"] for i in range(count)])
    save_file(tensors, file)
    assert parts
    assert (forward.logits(forward.load(path), TOKENS) - models.logits(family, TOKENS)).abs().max() < 1e-4


def test_kimi_k25_is_the_text_of_its_section(tmp_path: Path) -> None:
    """A DeepSeek's tensors under other names, beside those of a tower, which are passed by."""
    path = models.save("deepseek-v3", tmp_path)
    file, config = path / "model.safetensors", path / "config.json"
    tensors = {f"language_model.{name}": tensor for name, tensor in load_file(file).items()}
    tensors |= {
        f"{name}.weight": torch.zeros(2, 2) for name in ("vision_tower.patch_embed.proj", "mm_projector.proj.0")
    }
    save_file(tensors, file)
    outer = {
        "architectures": ["KimiK25ForConditionalGeneration"],
        "model_type": "kimi_k25",
        "media_placeholder_token_id": 4,
        "vision_config": {"vt_num_hidden_layers": 2},
    }
    text = json.loads(config.read_text()) | {"model_type": "kimi_k2"}
    config.write_text(json.dumps(outer | {"text_config": text}))
    assert (forward.logits(forward.load(path), TOKENS) - models.logits("deepseek-v3", TOKENS)).abs().max() < 1e-4
