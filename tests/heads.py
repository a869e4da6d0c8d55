"""EAGLE's heads as checkpoints: random ones, and ones that know a toy language, with the toy model that speaks it.

In the toy language the token behind t is always NEXT[t]: the model's layers do nothing, and its head looks it up. A head is
told of the tokens before it by hidden states alone, and has to step from one to the next by its block.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "max_position_embeddings": 256,
}
WORDS = 48
FIRST = 5
"""The words from here on follow one another, in one round."""


def _round() -> Any:
    order = FIRST + np.random.default_rng(1).permutation(WORDS - FIRST)
    following = np.arange(WORDS)
    following[order] = np.roll(order, -1)
    return following


NEXT = _round()


def first(hidden: int, vocab: int, *, seed: int = 0, **fields: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of a random head of the first form, named as its makers do."""
    sizes = SIZES | {"hidden_size": hidden}
    tensors = _layer(sizes, hidden, "layers.0.", seed) | _random(
        seed + 1, **{"fc.weight": (hidden, 2 * hidden), "fc.bias": (hidden,)}
    )
    tensors |= _random(seed + 2, **{"embed_tokens.weight": (vocab, hidden)})
    config = {**sizes, "vocab_size": vocab, "num_hidden_layers": 1, "architectures": ["LlamaForCausalLM"], "bias": True}
    return config | fields, tensors


def third(
    hidden: int, vocab: int, words: int, *, seed: int = 0, **fields: Any
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same of the third form, which has the embedding of its model and knows some of its words."""
    sizes = SIZES | {"hidden_size": hidden}
    tensors = _layer(sizes, 2 * hidden, "midlayer.", seed) | _random(
        seed + 1,
        **{
            "fc.weight": (hidden, 3 * hidden),
            "lm_head.weight": (words, hidden),
            "midlayer.input_layernorm.weight": (hidden,),
            "midlayer.hidden_norm.weight": (hidden,),
            "norm.weight": (hidden,),
        },
    )
    known = np.sort(np.random.default_rng(seed).permutation(vocab)[:words])
    tensors["d2t"] = torch.from_numpy(known - np.arange(words))
    tensors["t2d"] = torch.from_numpy(np.isin(np.arange(vocab), known))
    config = {**sizes, "vocab_size": vocab, "draft_vocab_size": words, "num_hidden_layers": 1}
    return config | {"architectures": ["LlamaForCausalLMEagle3"]} | fields, tensors


def write(path: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    return path


def toy(path: Path, *, layers: int = 4) -> Path:
    """The model that speaks the toy language."""
    hidden = SIZES["hidden_size"]
    tensors = {"model.embed_tokens.weight": _one_hot(np.arange(WORDS)), "model.norm.weight": torch.ones(hidden)}
    tensors["lm_head.weight"] = _steps(WORDS, 4.0)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        block = _layer(SIZES, hidden, prefix, layer)
        block |= {f"{prefix}input_layernorm.weight": torch.ones(hidden)}
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            block[f"{prefix}{name}.weight"].zero_()
        tensors |= block
    config = {**SIZES, "vocab_size": WORDS, "num_hidden_layers": layers, "architectures": ["LlamaForCausalLM"]}
    return write(path, config | {"tie_word_embeddings": False}, tensors)


def toy_first(path: Path) -> Path:
    """A head of the first form for it: it looks at nothing but the hidden state before, which is 8 times a token's vector."""
    hidden = SIZES["hidden_size"]
    config, tensors = first(hidden, WORDS)
    tensors["fc.weight"] = torch.cat([torch.zeros(hidden, hidden), torch.eye(hidden)], dim=1)
    tensors["fc.bias"].zero_()
    return write(path, config, _stepping(tensors, "layers.0.", size=8.0))


def toy_third(path: Path) -> Path:
    """A head of the third form: the hidden states before its model's layers are a token's vector."""
    hidden = SIZES["hidden_size"]
    config, tensors = third(hidden, WORDS, WORDS)
    tensors["fc.weight"] = torch.cat(
        [torch.zeros(hidden, hidden), torch.eye(hidden), torch.zeros(hidden, hidden)], dim=1
    )
    tensors["lm_head.weight"], tensors["norm.weight"] = _steps(WORDS, 4.0), torch.ones(hidden)
    return write(path, config, _stepping(tensors, "midlayer.", size=1.0))


def _stepping(tensors: dict[str, Tensor], prefix: str, *, size: float) -> dict[str, Tensor]:
    """A block that turns a token's vector, of that size, into the next one's; silu(8) is nearly 8."""
    hidden, inner = SIZES["hidden_size"], SIZES["intermediate_size"]
    tensors[f"{prefix}self_attn.o_proj.weight"].zero_()
    tensors[f"{prefix}post_attention_layernorm.weight"] = torch.ones(hidden)
    eye, step = torch.eye(inner, hidden), torch.zeros(hidden, inner)
    step[:WORDS, :WORDS] = _steps(WORDS, 1.0)[:, :WORDS] - torch.eye(WORDS)
    tensors |= {f"{prefix}mlp.gate_proj.weight": eye, f"{prefix}mlp.up_proj.weight": eye.clone()}
    tensors[f"{prefix}mlp.down_proj.weight"] = step * size / 64
    return tensors


def _steps(words: int, size: float) -> Tensor:
    """[words, hidden]: row NEXT[t] has its weight at t."""
    made = torch.zeros(words, SIZES["hidden_size"])
    made[torch.from_numpy(NEXT), torch.arange(words)] = size
    return made


def _one_hot(tokens: Any) -> Tensor:
    made = torch.zeros(len(tokens), SIZES["hidden_size"])
    made[torch.arange(len(tokens)), torch.from_numpy(np.asarray(tokens))] = 1.0
    return made


def _layer(sizes: dict[str, Any], inp: int, prefix: str, seed: int) -> dict[str, Tensor]:
    hidden, inner = sizes["hidden_size"], sizes["intermediate_size"]
    heads, kv = (sizes[name] * sizes["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    shapes = {
        "self_attn.q_proj": (heads, inp),
        "self_attn.k_proj": (kv, inp),
        "self_attn.v_proj": (kv, inp),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
        "post_attention_layernorm": (hidden,),
    }
    return _random(seed, **{f"{prefix}{name}.weight": shape for name, shape in shapes.items()})


def _random(seed: int, **shapes: tuple[int, ...]) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    made = {name: torch.empty(shape).normal_(std=0.15, generator=random) for name, shape in shapes.items()}
    return {name: tensor + 1.0 if "norm" in name else tensor for name, tensor in made.items()}
