"""Adapters of random numbers for the tiny model, beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file


def adapters_for(model: Path) -> list[Path]:
    """Random ones of several ranks, the last of the head too, written once."""
    paths = [model.parent / f"{model.name}-adapter-{rank}" for rank in (2, 3, 5)]
    for path, rank in zip(paths, (2, 3, 5), strict=True):
        if path.exists():
            continue
        path.mkdir()
        (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 8}))
        shapes = {"self_attn.q_proj": (64, 64), "self_attn.v_proj": (32, 64), "mlp.down_proj": (64, 96)}
        random = np.random.default_rng(rank)
        config = json.loads((model / "config.json").read_text())
        vocab = config["vocab_size"] if "vocab_size" in config else config["text_config"]["vocab_size"]
        head = {"A": (rank, 64), "B": (vocab, rank)} if rank == 5 else {}
        tensors = {
            f"base_model.model.model.layers.{layer}.{name}.lora_{kind}.weight": random.normal(0, 0.2, shape).astype(
                "f4"
            )
            for layer in range(2)
            for name, (out, inp) in shapes.items()
            for kind, shape in (("A", (rank, inp)), ("B", (out, rank)))
        }
        tensors |= {
            f"base_model.model.lm_head.lora_{kind}.weight": random.normal(0, 0.2, shape).astype("f4")
            for kind, shape in head.items()
        }
        save_file(tensors, path / "adapter_model.safetensors")
    return paths
