"""Encoder-decoders of BART's kind: BART, mBART, Marian, M2M100 with NLLB, and Whisper, whose encoder reads recordings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from sapwood.arch.families.common import ACTIVATIONS
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
    Norm,
    Part,
    PlainMlp,
    Tied,
)
from sapwood.arch.positions import Positions, Sinusoids
from sapwood.arch.reader import (
    AudioReader,
    AudioStem,
    Conv,
    CrossAttention,
    Offsets,
    Partial,
    TextReader,
    Twofold,
)
from sapwood.base.errors import ModelError

_EPS = 1e-5
_NAMES = ("q_proj", "k_proj", "v_proj")
_TRAINED = (
    "init_std", "encoder_layerdrop", "decoder_layerdrop", "apply_spec_augment", "mask_feature_length", "mask_feature_min_masks",
    "mask_feature_prob", "mask_time_length", "mask_time_min_masks", "mask_time_prob", "median_filter_width", "classifier_projection_size",
    "classifier_proj_size", "num_hidden_layers", "is_encoder_decoder", "static_position_embeddings", "extra_pos_embeddings",
    "add_bias_logits", "classif_dropout", "gradient_checkpointing", "save_step", "max_length", "num_beams", "torch_dtype", "output_past",
    "tokenizer_class", "length_penalty", "early_stopping", "no_repeat_ngram_size", "force_bos_token_to_be_generated", "do_blenderbot_90_layernorm",
    "vocab_size_teacher", "normalize_embedding", "begin_suppress_tokens", "suppress_tokens",
)  # fmt: skip
"""Fields about training and generation, and some that old checkpoints have and nothing follows from."""


class _Style(NamedTuple):
    """In what these families differ. `summed`: norms are of sums, and none is behind the last block."""

    positions: Literal["learned", "marian", "m2m"]
    summed: bool
    embed_norm: bool


_BART = _Style("learned", summed=True, embed_norm=True)
_MBART = _Style("learned", summed=False, embed_norm=True)
_MARIAN = _Style("marian", summed=True, embed_norm=False)
_M2M = _Style("m2m", summed=False, embed_norm=False)


class _Side(NamedTuple):
    """The encoder or the decoder: sizes, and how its tensors are named."""

    name: str
    hidden: int
    heads: int
    inner: int
    layers: int
    activation: Activation

    @property
    def dim(self) -> int:
        return self.hidden // self.heads

    def linear(self, module: str, names: tuple[str, ...], *, bare: bool) -> Linear:
        """Products of the hidden states for all heads; of `bare` ones keys have no bias."""
        parts = tuple(Part(f"{module}.{name}", self.hidden, unit=self.dim) for name in names)
        without = tuple(index for index, name in enumerate(names) if bare and name == "k_proj")
        return Partial(self.hidden, parts, "out", bias=True, bare=without)

    def out(self, module: str) -> Linear:
        return Linear(self.hidden, (Part(f"{module}.out_proj", self.hidden),), "in", unit=self.dim, bias=True)

    def attention(self, *, causal: bool, bare: bool) -> Attention:
        return Attention(
            num_heads=self.heads,
            num_kv_heads=self.heads,
            head_dim=self.dim,
            qkv=self.linear("self_attn", _NAMES, bare=bare),
            out=self.out("self_attn"),
            rope=STILL,
            scale=self.dim**-0.5,
            causal=causal,
        )

    def cross(self, *, bare: bool) -> CrossAttention:
        return CrossAttention(
            num_heads=self.heads,
            head_dim=self.dim,
            query=self.linear("encoder_attn", _NAMES[:1], bare=bare),
            keys_values=self.linear("encoder_attn", _NAMES[1:], bare=bare),
            out=self.out("encoder_attn"),
            scale=self.dim**-0.5,
        )

    def norm(self, name: str) -> Norm:
        return Norm(name, self.hidden, _EPS, center=True, bias=True)

    def block(self, *, summed: bool, causal: bool, bare: bool = False) -> Block:
        """With cross-attention where it is `causal`."""
        attention = self.attention(causal=causal, bare=bare)
        norms = self.norm("self_attn_layer_norm"), self.norm("final_layer_norm")
        mixer: Attention | Twofold = attention
        if causal:
            between = self.norm("encoder_attn_layer_norm")
            first, second = (norms[0], between) if summed else (between, norms[0])
            mixer = Twofold(attention, first, self.cross(bare=bare), summed)
            norms = second, norms[1]
        ffn = PlainMlp(
            up=Linear(self.hidden, (Part("fc1", self.inner),), "out", bias=True),
            down=Linear(self.inner, (Part("fc2", self.hidden),), "in", bias=True),
            activation=self.activation,
        )
        if summed:
            return Block(None, mixer, None, ffn, after_mixer=norms[0], after_ffn=norms[1], summed=True)
        return Block(norms[0], mixer, norms[1], ffn)

    def positions(self, style: _Style, count: int) -> Positions | Sinusoids:
        match style.positions:
            case "learned":
                return Positions(f"model.{self.name}.embed_positions", count, self.hidden, offset=2)
            case "marian":
                return Sinusoids(count, self.hidden)
            case "m2m":
                return Sinusoids(count, self.hidden, offset=2, whole=False)


def _side(c: HfConfig, name: str) -> _Side:
    hidden, heads = c.integer("d_model"), c.integer(f"{name}_attention_heads")
    if hidden % heads:
        raise ModelError(f"config.json: d_model ({hidden}) is no multiple of {name}_attention_heads ({heads}).")
    layers, inner = c.integer(f"{name}_layers"), c.integer(f"{name}_ffn_dim")
    return _Side(name, hidden, heads, inner, layers, c.choice("activation_function", ACTIVATIONS, "gelu"))


def _stored(c: HfConfig) -> str | None:
    stored = [c.string(name) for name in ("dtype", "torch_dtype") if c.has(name)]
    return stored[0].removeprefix("torch.") if stored else None


def _translator(c: HfConfig, style: _Style) -> Decoder:
    c.ignore(*_TRAINED)
    c.must("tie_word_embeddings", True)
    if style.positions == "learned":
        c.must("normalize_before", not style.summed)
        c.must("add_final_layer_norm", not style.summed)
    read, write = _side(c, "encoder"), _side(c, "decoder")
    vocab, count = c.integer("vocab_size"), c.integer("max_position_embeddings")
    scale = write.hidden**0.5 if c.boolean("scale_embedding", style is _M2M) else 1.0
    last = not style.summed
    encoder = TextReader(
        longest=count,
        blocks=(read.block(summed=style.summed, causal=False),) * read.layers,
        block_prefix="model.encoder.layers.{}.",
        norm=read.norm("model.encoder.layer_norm") if last else None,
        positions=read.positions(style, count),
        embed_norm=read.norm("model.encoder.layernorm_embedding") if style.embed_norm else None,
    )
    same = ("embed_tokens.", *(() if style.positions == "learned" else ("embed_positions.",)))
    return Decoder(
        architecture=c.strings("architectures")[0],
        max_positions=count,
        dtype=_stored(c),
        embed=Embedding("model.shared", vocab, write.hidden, scale),
        blocks=(write.block(summed=style.summed, causal=True),) * write.layers,
        block_prefix="model.decoder.layers.{}.",
        norm=write.norm("model.decoder.layer_norm") if last else None,
        head=Tied("lm_head"),
        positions=write.positions(style, count),
        embed_norm=write.norm("model.decoder.layernorm_embedding") if style.embed_norm else None,
        logit_offsets=None if style is _M2M else Offsets("final_logits_bias", vocab),
        encoder=encoder,
        root="model.",
        aside=tuple(f"model.{side}.{name}" for side in ("encoder", "decoder") for name in same),
    )


def bart(c: HfConfig) -> Decoder:
    return _translator(c, _BART)


def mbart(c: HfConfig) -> Decoder:
    return _translator(c, _MBART)


def marian(c: HfConfig) -> Decoder:
    c.must("share_encoder_decoder_embeddings", True)
    c.must("decoder_vocab_size", c.integer("vocab_size"))
    return _translator(c, _MARIAN)


def m2m(c: HfConfig) -> Decoder:
    return _translator(c, _M2M)


def whisper(c: HfConfig) -> Decoder:
    c.ignore(*_TRAINED)
    c.must("tie_word_embeddings", True)
    c.refuse("scale_embedding", "use_weighted_layer_sum", because="Whisper models have none")
    read, write = _side(c, "encoder"), _side(c, "decoder")
    hidden, bins = read.hidden, c.integer("num_mel_bins")
    heard, said = c.integer("max_source_positions"), c.integer("max_target_positions")
    stem = AudioStem(
        bins=bins,
        first=Conv("model.encoder.conv1", bins, hidden, 3, 1),
        second=Conv("model.encoder.conv2", hidden, hidden, 3, 2),
        activation="gelu",
    )
    encoder = AudioReader(
        longest=heard,
        blocks=(read.block(summed=False, causal=False, bare=True),) * read.layers,
        block_prefix="model.encoder.layers.{}.",
        norm=read.norm("model.encoder.layer_norm"),
        stem=stem,
        positions=Positions("model.encoder.embed_positions", heard, hidden),
    )
    return Decoder(
        architecture=c.strings("architectures")[0],
        max_positions=said,
        dtype=_stored(c),
        embed=Embedding("model.decoder.embed_tokens", c.integer("vocab_size"), hidden),
        blocks=(write.block(summed=False, causal=True, bare=True),) * write.layers,
        block_prefix="model.decoder.layers.{}.",
        norm=write.norm("model.decoder.layer_norm"),
        head=Tied("proj_out"),
        positions=Positions("model.decoder.embed_positions", said, hidden),
        encoder=encoder,
    )


_OF: dict[str, Callable[[HfConfig], Decoder]] = {
    "BartForConditionalGeneration": bart,
    "MBartForConditionalGeneration": mbart,
    "MarianMTModel": marian,
    "M2M100ForConditionalGeneration": m2m,
    "WhisperForConditionalGeneration": whisper,
}
FAMILIES = tuple(Family(architecture=name, declare=declare) for name, declare in _OF.items())
