"""Adapters of random numbers for the tiny model, beside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PLAIN, OF_THE_EMBEDDING = ("some adapters of it",), ("some that change its embedding",)
"""What stands for their paths in `lora_modules`."""


def named(model: Path, given: object) -> dict[str, tuple[str, ...]]:
    """The paths for what stands for them, as an option; nothing for anything else."""
    if given not in (PLAIN, OF_THE_EMBEDDING):
        return {}
    return {"lora_modules": tuple(str(one) for one in adapters_for(model, embedding=given == OF_THE_EMBEDDING))}


def adapters_for(model: Path, *, embedding: bool = False) -> list[Path]:
    """Random ones of several ranks, the last of the head too, or the first two of the `embedding`, written once."""
    kind = "embedding" if embedding else "adapter"
    paths = [model.parent / f"{model.name}-{kind}-{rank}" for rank in (2, 3, 5)]
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
        if embedding and rank < 5:
            tensors |= {
                f"base_model.model.model.embed_tokens.lora_embedding_{kind}": random.normal(0, 0.2, shape).astype("f4")
                for kind, shape in (("A", (rank, vocab)), ("B", (64, rank)))
            }
        save_file(tensors, path / "adapter_model.safetensors")
    return paths
