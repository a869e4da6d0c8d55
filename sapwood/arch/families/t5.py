"""T5 with Flan-T5 (v1.0 and v1.1) and mT5: relative positions in scores, RMS norms, MLPs with a gate or without."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import (
    STILL,
    Activation,
    Attention,
    Block,
    Decoder,
    Embedding,
    Linear,
    Mlp,
    Norm,
    Part,
    PlainMlp,
    Tied,
)
from sapwood.arch.reader import CrossAttention, Relative, TextReader, Twofold

_LONGEST = 2048
"""Positions that there may be, of either side: distances have no end here, and configs name none."""

_PROJECTIONS: Mapping[str, tuple[Activation, bool]] = MappingProxyType(
    {
        "relu": ("relu", False),
        "gated-gelu": ("gelu_tanh", True),
        "gated-silu": ("silu", True),
        "gated-relu": ("relu", True),
    }
)


class _Sizes:
    """What all blocks are made with."""

    def __init__(self, c: HfConfig) -> None:
        self.hidden, self.inner, self.dim = c.integer("d_model"), c.integer("d_ff"), c.integer("d_kv")
        self.heads, self.eps = c.integer("num_heads"), c.number("layer_norm_epsilon", 1e-6)
        self.activation, self.gated = c.choice("feed_forward_proj", _PROJECTIONS, "relu")
        self.buckets = c.integer("relative_attention_num_buckets", 32)
        self.farthest = c.integer("relative_attention_max_distance", 128)

    def norm(self, name: str) -> Norm:
        return Norm(name, self.hidden, self.eps)

    def linear(self, module: str, names: str) -> Linear:
        width = self.heads * self.dim
        return Linear(self.hidden, tuple(Part(f"{module}.{name}", width, unit=self.dim) for name in names), "out")

    def out(self, module: str) -> Linear:
        return Linear(self.heads * self.dim, (Part(f"{module}.o", self.hidden),), "in", unit=self.dim)

    def attention(self, *, causal: bool) -> Attention:
        return Attention(
            num_heads=self.heads,
            num_kv_heads=self.heads,
            head_dim=self.dim,
            qkv=self.linear("0.SelfAttention", "qkv"),
            out=self.out("0.SelfAttention"),
            rope=STILL,
            scale=1.0,
            causal=causal,
            relative=True,
        )

    def cross(self) -> CrossAttention:
        module = "1.EncDecAttention"
        query, both = self.linear(module, "q"), self.linear(module, "kv")
        return CrossAttention(self.heads, self.dim, query, both, self.out(module), scale=1.0)

    def mlp(self, layer: int) -> Mlp | PlainMlp:
        module = f"{layer}.DenseReluDense"
        down = Linear(self.inner, (Part(f"{module}.wo", self.hidden),), "in")
        if not self.gated:
            return PlainMlp(Linear(self.hidden, (Part(f"{module}.wi", self.inner),), "out"), down, self.activation)
        both = tuple(Part(f"{module}.{name}", self.inner) for name in ("wi_0", "wi_1"))
        return Mlp(Linear(self.hidden, both, "out"), down, self.activation)

    def block(self, *, causal: bool) -> Block:
        attention = self.attention(causal=causal)
        mixer = Twofold(attention, self.norm("1.layer_norm"), self.cross()) if causal else attention
        last = 2 if causal else 1
        return Block(self.norm("0.layer_norm"), mixer, self.norm(f"{last}.layer_norm"), self.mlp(last))

    def relative(self, side: str) -> Relative:
        name = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"
        return Relative(name, self.buckets, self.heads, self.farthest, both=side == "encoder")


def t5(c: HfConfig) -> Decoder:
    """The products of a head that is tied are scaled, unless the config says otherwise."""
    tied = c.boolean("tie_word_embeddings", True)
    return _t5(c, tied=tied, scaled=c.boolean("scale_decoder_outputs", tied))


def mt5(c: HfConfig) -> Decoder:
    return _t5(c, tied=c.boolean("tie_word_embeddings", False), scaled=False)


def _t5(c: HfConfig, *, tied: bool, scaled: bool) -> Decoder:
    c.ignore(
        "dense_act_fn",
        "is_gated_act",
        "is_encoder_decoder",
        "dropout_rate",
        "n_positions",
        "output_past",
        "tie_encoder_decoder",
    )
    sizes, vocab = _Sizes(c), c.integer("vocab_size")
    layers = c.integer("num_layers")
    stored = [c.string(name) for name in ("dtype", "torch_dtype") if c.has(name)]
    encoder = TextReader(
        longest=_LONGEST,
        blocks=(sizes.block(causal=False),) * layers,
        block_prefix="encoder.block.{}.layer.",
        norm=sizes.norm("encoder.final_layer_norm"),
        relative=sizes.relative("encoder"),
    )
    return Decoder(
        architecture=c.strings("architectures")[0],
        max_positions=_LONGEST,
        dtype=stored[0].removeprefix("torch.") if stored else None,
        embed=Embedding("shared", vocab, sizes.hidden),
        blocks=(sizes.block(causal=True),) * c.integer("num_decoder_layers", layers),
        block_prefix="decoder.block.{}.layer.",
        norm=sizes.norm("decoder.final_layer_norm"),
        head=Tied("lm_head") if tied else Linear(sizes.hidden, (Part("lm_head", vocab),), "out"),
        logit_scale=sizes.hidden**-0.5 if scaled else 1.0,
        relative=sizes.relative("decoder"),
        encoder=encoder,
        aside=(
            "encoder.embed_tokens.",
            "decoder.embed_tokens.",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.",
        ),
    )


FAMILIES = (
    Family(architecture="T5ForConditionalGeneration", declare=t5),
    Family(architecture="MT5ForConditionalGeneration", declare=mt5),
)
