"""What the families share: the reads that every config has, and the blocks that most models are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from sapwood.arch.experts import Experts
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import (
    Activation,
    Attention,
    Block,
    Decoder,
    Embedding,
    Linear,
    Mixer,
    Mlp,
    Norm,
    Part,
    PlainMlp,
    Rope,
    Tied,
)
from sapwood.arch.rope import read_rope
from sapwood.base.errors import ModelError

SLIDING, FULL = "sliding_attention", "full_attention"
LAYER_TYPES = (FULL, SLIDING)
ACTIVATIONS: Mapping[str, Activation] = MappingProxyType({
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu": "gelu", "relu": "relu", "relu2": "relu2",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a family's checkpoints name what is in them, and of what kind its norms are.

    Names from `mixer_norm` on are relative to `block`. Linears that the checkpoint holds as one tensor have one name;
    `transposed` ones are stored with their inputs first. `eps` is the config's name of it, or its value. Norms are RMS norms,
    or with `center` layer norms, with a `bias` or without.
    """

    embed: str = "model.embed_tokens"
    block: str = "model.layers.{}."
    norm: str = "model.norm"
    head: str = "lm_head"
    mixer_norm: str = "input_layernorm"
    ffn_norm: str = "post_attention_layernorm"
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    out: str = "self_attn.o_proj"
    qk_norm: tuple[str, str] = ("self_attn.q_norm", "self_attn.k_norm")
    up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    transposed: bool = False
    eps: str | float = "rms_norm_eps"
    offset: float = 0.0
    center: bool = False
    bias: bool = False

    def normed(self, c: HfConfig, name: str, size: int | None = None) -> Norm:
        """The norm of that name, by default as wide as the model."""
        eps = c.number(self.eps) if isinstance(self.eps, str) else self.eps
        bias = self.bias and size is None
        return Norm(name, size or c.integer("hidden_size"), eps, self.offset, self.center, bias)


LLAMA = Layout()


def decoder(
    c: HfConfig,
    blocks: Sequence[Block],
    layout: Layout = LLAMA,
    *,
    embed_scale: float = 1.0,
    tied: bool = False,
    max_positions: int | None = None,
    head_bias: bool = False,
) -> Decoder:
    """Embedding, blocks, norm, head. `tied` and `max_positions` are the family's defaults of what the config says."""
    hidden, vocab = c.integer("hidden_size"), c.integer("vocab_size")
    stored = [c.string(name) for name in ("dtype", "torch_dtype") if c.has(name)]
    tied = c.boolean("tie_word_embeddings", tied)
    return Decoder(
        architecture=c.strings("architectures")[0],
        max_positions=c.integer("max_position_embeddings", max_positions),
        dtype=stored[0].removeprefix("torch.") if stored else None,
        embed=Embedding(layout.embed, vocab, hidden, embed_scale),
        blocks=tuple(blocks),
        block_prefix=layout.block,
        norm=layout.normed(c, layout.norm),
        head=Tied(layout.head) if tied else Linear(hidden, (Part(layout.head, vocab),), "out", bias=head_bias),
    )


def block(c: HfConfig, mixer: Mixer, mlp: Mlp | PlainMlp | Experts, layout: Layout = LLAMA) -> Block:
    """A norm before the mixer and one before the MLP."""
    return Block(
        mixer_norm=layout.normed(c, layout.mixer_norm),
        mixer=mixer,
        ffn_norm=layout.normed(c, layout.ffn_norm),
        ffn=mlp,
    )


def gqa(
    c: HfConfig,
    layout: Layout = LLAMA,
    *,
    window: int | None = None,
    rope: Rope | None = None,
    scale: float | None = None,
    qkv_bias: bool = False,
    out_bias: bool = False,
    qk_norm: Literal["heads", "each", "all"] | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    by_turns: bool = False,
) -> Attention:
    """Grouped-query attention.

    `rope`, `scale`, `kv_heads` and `head_dim` are by default what the config says, head_dim ** -0.5 for the scale. Queries and keys may be normed head by head,
    with the same weights for all `heads` or their own for `each`, or `all` together. `by_turns`: a fused tensor holds each KV
    head's queries, key and value together.
    """
    hidden, heads = c.integer("hidden_size"), c.integer("num_attention_heads")
    kv_heads = kv_heads or c.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise ModelError(
            f"config.json: num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads})."
        )
    if head_dim is None and not c.has("head_dim") and hidden % heads:
        raise ModelError(f"config.json: hidden_size ({hidden}) is no multiple of num_attention_heads ({heads}).")
    dim = head_dim or head_size(c)
    counts = (heads, kv_heads, kv_heads)
    names = layout.qkv * (3 // len(layout.qkv))
    turns = [count // kv_heads * dim if by_turns else None for count in counts]
    parts = tuple(
        Part(name, count * dim, unit=dim, turn=turn) for name, count, turn in zip(names, counts, turns, strict=True)
    )
    q_norm, k_norm = _qk_norms(c, layout, qk_norm, (heads, kv_heads), dim)
    return Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        qkv=Linear(hidden, parts, "out", bias=qkv_bias, transposed=layout.transposed),
        out=Linear(
            heads * dim, (Part(layout.out, hidden),), "in", unit=dim, bias=out_bias, transposed=layout.transposed
        ),
        rope=rope or read_rope(c, head_dim=dim),
        scale=scale or dim**-0.5,
        window=window if window is not None and window < c.integer("max_position_embeddings") else None,
        q_norm=q_norm,
        k_norm=k_norm,
    )


def head_size(c: HfConfig) -> int:
    """As the config says, or an equal share of the hidden size."""
    return c.integer("head_dim", c.integer("hidden_size") // c.integer("num_attention_heads"))


def window_of(c: HfConfig) -> int | None:
    return c.integer("sliding_window") if c.has("sliding_window") else None


def block_normed_after(c: HfConfig, mixer: Mixer, ffn: Mlp) -> Block:
    """Norms after the halves and none before."""
    return Block(
        mixer_norm=None,
        mixer=mixer,
        after_mixer=LLAMA.normed(c, "post_attention_layernorm"),
        ffn_norm=None,
        ffn=ffn,
        after_ffn=LLAMA.normed(c, "post_feedforward_layernorm"),
    )


def _qk_norms(
    c: HfConfig, layout: Layout, kind: str | None, counts: tuple[int, int], dim: int
) -> tuple[Norm | None, Norm | None]:
    if kind is None:
        return None, None
    norms = [
        replace(
            layout.normed(c, name, dim * (count if kind == "all" else 1)),
            rows=count if kind == "each" else None,
            groups=1 if kind == "all" else None,
        )
        for name, count in zip(layout.qk_norm, counts, strict=True)
    ]
    return norms[0], norms[1]


def mlp(
    c: HfConfig,
    layout: Layout = LLAMA,
    *,
    inner: int | None = None,
    activation: Activation | None = None,
    bias: bool = False,
) -> Mlp:
    """A gated MLP, up(x) times the activation of gate(x); `inner` and `activation` are by default what the config says."""
    hidden, inner = c.integer("hidden_size"), inner or c.integer("intermediate_size")
    names = layout.up * (2 // len(layout.up))
    kind: Activation = c.choice("hidden_act", ACTIVATIONS, "silu") if activation is None else activation
    return Mlp(
        gate_up=Linear(
            hidden, tuple(Part(name, inner) for name in names), "out", bias=bias, transposed=layout.transposed
        ),
        down=Linear(inner, (Part(layout.down, hidden),), "in", bias=bias, transposed=layout.transposed),
        activation=kind,
    )


def plain_mlp(c: HfConfig, layout: Layout, *, activation: Activation | None = None, bias: bool = False) -> PlainMlp:
    """An MLP without a gate."""
    hidden = c.integer("hidden_size")
    inner = c.integer("intermediate_size", 4 * hidden)
    (name,) = layout.up
    kind: Activation = c.choice("hidden_act", ACTIVATIONS) if activation is None else activation
    return PlainMlp(
        up=Linear(hidden, (Part(name, inner),), "out", bias=bias, transposed=layout.transposed),
        down=Linear(inner, (Part(layout.down, hidden),), "in", bias=bias, transposed=layout.transposed),
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


def every(c: HfConfig, pattern: int) -> tuple[str, ...]:
    """The kind of each layer, where nothing says otherwise sliding but for every so many-th one."""
    return layer_types(c, [SLIDING if (i + 1) % pattern else FULL for i in range(c.integer("num_hidden_layers"))])


def alibi_slopes(num_heads: int) -> tuple[float, ...]:
    """What each head's scores lose with a position of distance: a geometric series of so many heads as are a power of two, and
    for others those between, of the series twice as long (Press et al., 2022)."""
    whole = 1 << num_heads.bit_length() - 1
    slopes = [2 ** (-8 * (i + 1) / whole) for i in range(whole)]
    between = [2 ** (-4 * (2 * i + 1) / whole) for i in range(num_heads - whole)]
    return tuple(slopes + between)
