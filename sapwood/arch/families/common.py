"""What the families share: the reads that every config has, and the blocks that most models are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from sapwood.arch.experts import Experts
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Activation, Attention, Block, Decoder, Embedding, Linear, Mlp, Norm, Part, Rope, Tied
from sapwood.arch.rope import read_rope
from sapwood.base.errors import ModelError

EMBEDDING, HEAD = "model.embed_tokens", "lm_head"  # their names in every checkpoint
SLIDING = "sliding_attention"
LAYER_TYPES = ("full_attention", SLIDING)
ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
    {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
)


def decoder(
    c: HfConfig, blocks: Sequence[Block], *, embed_scale: float = 1.0, norm_offset: float = 0.0, tied: bool = False
) -> Decoder:
    """Embedding, blocks, norm, head. `tied` is the family's default of tie_word_embeddings."""
    hidden, vocab = c.integer("hidden_size"), c.integer("vocab_size")
    head = Linear(hidden, (Part(HEAD, vocab),), "out")
    stored = [c.string(name) for name in ("dtype", "torch_dtype") if c.has(name)]
    return Decoder(
        architecture=c.strings("architectures")[0],
        max_positions=c.integer("max_position_embeddings"),
        dtype=stored[0].removeprefix("torch.") if stored else None,
        embed=Embedding(EMBEDDING, vocab, hidden, embed_scale),
        blocks=tuple(blocks),
        block_prefix="model.layers.{}.",
        norm=Norm("model.norm", hidden, c.number("rms_norm_eps"), norm_offset),
        head=Tied(HEAD) if c.boolean("tie_word_embeddings", tied) else head,
    )


def block(c: HfConfig, attention: Attention, mlp: Mlp | Experts) -> Block:
    """A norm before attention and one before the MLP."""
    hidden, eps = c.integer("hidden_size"), c.number("rms_norm_eps")
    return Block(
        mixer_norm=Norm("input_layernorm", hidden, eps),
        mixer=attention,
        ffn_norm=Norm("post_attention_layernorm", hidden, eps),
        ffn=mlp,
    )


def gqa(
    c: HfConfig,
    *,
    window: int | None = None,
    rope: Rope | None = None,
    scale: float | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: bool = False,
    norm_offset: float = 0.0,
    fused: str | None = None,
) -> Attention:
    """Grouped-query attention.

    `rope` and `scale` are by default what the config says and head_dim ** -0.5; `fused` is the name of the tensor that
    holds queries, keys and values, for checkpoints that have them in one.
    """
    hidden, heads = c.integer("hidden_size"), c.integer("num_attention_heads")
    kv_heads = c.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})."
        )
    if not c.has("head_dim") and hidden % heads:
        raise ModelError(f"config.json: hidden_size ({hidden}) is no multiple of num_attention_heads ({heads}).")
    dim = c.integer("head_dim", hidden // heads)
    names = (fused,) * 3 if fused else ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    sizes = (heads * dim, kv_heads * dim, kv_heads * dim)
    parts = tuple(Part(name, size, unit=dim) for name, size in zip(names, sizes, strict=True))
    eps = c.number("rms_norm_eps")
    return Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        qkv=Linear(hidden, parts, "out", bias=qkv_bias),
        out=Linear(heads * dim, (Part("self_attn.o_proj", hidden),), "in", unit=dim, bias=out_bias),
        rope=rope or read_rope(c, head_dim=dim),
        scale=scale or dim**-0.5,
        window=window if window is not None and window < c.integer("max_position_embeddings") else None,
        q_norm=Norm("self_attn.q_norm", dim, eps, norm_offset) if qk_norm else None,
        k_norm=Norm("self_attn.k_norm", dim, eps, norm_offset) if qk_norm else None,
    )


def mlp(c: HfConfig, *, activation: Activation | None = None, bias: bool = False, fused: str | None = None) -> Mlp:
    """A gated MLP. `fused` is the name of the tensor that holds gate and up, for checkpoints that have them in one."""
    hidden, inner = c.integer("hidden_size"), c.integer("intermediate_size")
    kind: Activation = c.choice("hidden_act", ACTIVATIONS, "silu") if activation is None else activation
    names = (fused,) * 2 if fused else ("mlp.gate_proj", "mlp.up_proj")
    return Mlp(
        gate_up=Linear(hidden, tuple(Part(name, inner) for name in names), "out", bias=bias),
        down=Linear(inner, (Part("mlp.down_proj", hidden),), "in", bias=bias),
        activation=kind,
    )


def layer_types(c: HfConfig, default: Sequence[str]) -> tuple[str, ...]:
    """The kind of each layer, from the config or, where it does not say, `default`."""
    kinds = c.strings("layer_types") if c.has("layer_types") else tuple(default)
    if len(kinds) != c.integer("num_hidden_layers"):
        raise ModelError(
            f"config.json: layer_types has {len(kinds)} entries, num_hidden_layers is {c.integer('num_hidden_layers')}."
        )
    for kind in kinds:
        if kind not in LAYER_TYPES:
            raise ModelError(
                f"config.json: layer_types: {kind!r} is not supported; these are: {', '.join(LAYER_TYPES)}."
            )
    return kinds
