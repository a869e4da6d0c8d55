"""Rotary positions: how a config spells them, and the frequencies that follow.

transformers up to 4 writes `rope_theta` and `rope_scaling`, from 5 on `rope_parameters`, which for models with two
kinds of layers holds one object per kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Rope
from sapwood.arch.scaling import LinearScaling, Llama3Scaling, LongScaling, Scaling, Sharpening, YarnScaling
from sapwood.base.errors import ModelError


def read_rope(c: HfConfig, *, head_dim: int, theta: float = 10000.0, partial: float = 1.0) -> Rope:
    """The rope of a model whose layers all have the same; `theta` is the family's default base, `partial` what is turned of
    a head where the config does not say."""
    partial = c.number("partial_rotary_factor", partial)
    theta = c.number("rope_theta", theta)
    for name in ("rope_parameters", "rope_scaling"):
        if c.has(name):
            return parse_rope(c, c.section(name), head_dim=head_dim, theta=theta, partial=partial)
    return Rope(_rotated(head_dim, partial), theta)


def rope_of_kind(c: HfConfig, kind: str, *, head_dim: int, theta: float = 10000.0) -> Rope | None:
    """The rope of one kind of layers, where `rope_parameters` has an object for each; else None."""
    if not c.has("rope_parameters") or not (parameters := c.section("rope_parameters")).has(kind):
        return None
    return parse_rope(c, parameters.section(kind), head_dim=head_dim, theta=theta)


def parse_rope(c: HfConfig, r: HfConfig, *, head_dim: int, theta: float, partial: float = 1.0) -> Rope:
    """The rope that the section `r` of the config `c` describes."""
    theta = r.number("rope_theta", theta)
    dim = _rotated(head_dim, r.number("partial_rotary_factor", partial))
    kind = r.string("rope_type", r.string("type", "default"))
    scaling: Scaling | None
    sections = r.integers("mrope_section") if r.has("mrope_section") else None
    woven = r.boolean("mrope_interleaved", False)
    match kind:
        case "default" | "mrope":
            r.ignore("factor", "original_max_position_embeddings")  # written by some, used by none
            scaling = None
        case "dynamic":  # changes angles beyond max_position_embeddings only, which nothing here reaches
            r.ignore("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")
            theta *= r.number("alpha", 1.0) ** (dim / max(dim - 2, 1))
            scaling = None
        case "linear":
            r.ignore("original_max_position_embeddings")
            scaling = LinearScaling(r.number("factor"))
        case "llama3":
            scaling = Llama3Scaling(
                factor=r.number("factor"),
                low_freq_factor=r.number("low_freq_factor"),
                high_freq_factor=r.number("high_freq_factor"),
                original_max_positions=_original(c, r),
            )
        case "yarn":
            scaling = _yarn(c, r)
        case "proportional":
            # So many pairs turn as they would if all did.
            divisors = tuple(1.0 if i < dim // 2 else math.inf for i in range(head_dim // 2))
            dim, scaling = head_dim, LongScaling(divisors, divisors, c.integer("max_position_embeddings"), 1.0)
        case "longrope" | "su":
            scaling = _longrope(c, r, dim)
        case _:
            raise ModelError(
                f"config.json: rope type {kind!r} is not supported; these are: default, dynamic, linear, llama3, longrope, "
                "proportional, yarn."
            )
    sharpening = _sharpening(c, r)
    r.refuse_unread()
    if sections is not None and (len(sections) != 3 or (sum(sections) != dim // 2 and not woven)):
        sections = None  # of a text all positions of a token are one; a family with a tower asks for sections
    return Rope(dim, theta, scaling, sharpening=sharpening, sections=sections, woven=woven)


def axes(rope: Rope) -> tuple[int, ...]:
    """Of a rope with sections which of a token's three positions turns each pair: time, row or column."""
    assert rope.sections is not None, "asked only of those"
    if not rope.woven:
        return tuple(axis for axis, size in enumerate(rope.sections) for _ in range(size))
    found = [0] * (rope.dim // 2)
    for axis in (1, 2):
        found[axis : 3 * rope.sections[axis] : 3] = [axis] * len(found[axis : 3 * rope.sections[axis] : 3])
    return tuple(found)


def _rotated(head_dim: int, partial: float) -> int:
    dim = int(head_dim * partial)
    if partial > 1 or dim < 2 or dim % 2:
        raise ModelError(f"config.json: partial_rotary_factor = {partial} rotates {dim} of {head_dim} dimensions.")
    return dim


def _original(c: HfConfig, r: HfConfig) -> int:
    """Positions of the first training. Where both say so, the config's own field counts, as with transformers."""
    within = r.integer("original_max_position_embeddings", c.integer("max_position_embeddings"))
    return c.integer("original_max_position_embeddings", within)


def _sharpening(c: HfConfig, r: HfConfig) -> Sharpening | None:
    """Of Ministral 3: queries grow with each length of the first training."""
    r.ignore("max_position_embeddings")
    if not r.has("llama_4_scaling_beta"):
        return None
    return Sharpening(r.number("llama_4_scaling_beta"), _original(c, r))


def _yarn(c: HfConfig, r: HfConfig) -> YarnScaling:
    original = _original(c, r)
    factor = r.number("factor", c.integer("max_position_embeddings") / original)
    if r.has("attention_factor"):
        attention_factor = r.number("attention_factor")
        r.ignore("mscale", "mscale_all_dim")
    elif r.has("mscale") and r.has("mscale_all_dim"):
        mscale, all_dim = (yarn_attention_factor(factor, r.number(name)) for name in ("mscale", "mscale_all_dim"))
        attention_factor = mscale / all_dim
    else:
        attention_factor = yarn_attention_factor(factor)
    return YarnScaling(
        factor=factor,
        beta_fast=r.number("beta_fast", 32.0),
        beta_slow=r.number("beta_slow", 1.0),
        original_max_positions=original,
        attention_factor=attention_factor,
        truncate=r.boolean("truncate", True),
    )


def _longrope(c: HfConfig, r: HfConfig, dim: int) -> LongScaling:
    original = _original(c, r)
    factor = r.number("factor", c.integer("max_position_embeddings") / original)
    default = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    short, long = r.numbers("short_factor", dim // 2), r.numbers("long_factor", dim // 2)
    return LongScaling(short, long, original, r.number("attention_factor", default))


def yarn_attention_factor(factor: float, mscale: float = 1.0) -> float:
    """What YaRN multiplies cos and sin by, where the model does not say."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


@dataclass(frozen=True)
class Frequencies:
    """Radians per position of each of the dim / 2 pairs, and what cos and sin are multiplied by."""

    radians: tuple[float, ...]
    factor: float


def frequencies(rope: Rope, num_positions: int = 0) -> Frequencies:
    """Those of sequences of at most so many positions."""
    plain = [rope.theta ** (-2 * i / rope.dim) for i in range(rope.dim // 2)]
    match rope.scaling:
        case None:
            return Frequencies(tuple(plain), 1.0)
        case LinearScaling(factor):
            return Frequencies(tuple(f / factor for f in plain), 1.0)
        case Llama3Scaling():
            return Frequencies(tuple(f / llama3_divisor(f, rope.scaling) for f in plain), 1.0)
        case LongScaling(short, long, original, factor):
            divisors = long if num_positions > original else short
            return Frequencies(tuple(f / by for f, by in zip(plain, divisors, strict=True)), factor)
        case YarnScaling():
            return Frequencies(_yarn_radians(plain, rope, rope.scaling), rope.scaling.attention_factor)


def llama3_divisor(radians: float, s: Llama3Scaling) -> float:
    """What the rule of Llama 3.1 divides one frequency by."""
    turns = s.original_max_positions * radians / (2 * math.pi)  # over the context of the first training
    if turns > s.high_freq_factor:
        return 1.0
    if turns < s.low_freq_factor:
        return s.factor
    smooth = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
    return 1 / ((1 - smooth) / s.factor + smooth)


def _yarn_radians(plain: list[float], rope: Rope, s: YarnScaling) -> tuple[float, ...]:
    def pair_that_turns(turns: float) -> float:
        return rope.dim * math.log(s.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(s.beta_fast), pair_that_turns(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    width = high - low or 0.001
    ramp = [min(max((i - low) / width, 0.0), 1.0) for i in range(len(plain))]
    return tuple(f * (1 - r) + f / s.factor * r for f, r in zip(plain, ramp, strict=True))
