"""How rotary positions are stretched beyond those of a model's first training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's: long wavelengths divided by `factor`, short ones kept, a ramp between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al., 2023); `attention_factor` multiplies cos and sin."""

    factor: float
    beta_fast: float
    beta_slow: float
    original_max_positions: int
    attention_factor: float
    truncate: bool


@dataclass(frozen=True)
class LongScaling:
    """LongRoPE (Ding et al., 2024): every pair's frequency divided by a factor of its own, one list for sequences within
    the first training's positions and one for longer ones; `attention_factor` multiplies cos and sin."""

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_max_positions: int
    attention_factor: float


Scaling = LinearScaling | Llama3Scaling | YarnScaling | LongScaling


@dataclass(frozen=True)
class Sharpening:
    """What queries are multiplied by, so that scores stay sharp among many keys: at position p
    1 + `slope` * ln(1 + floor((p + `ahead`) / `every`))."""

    slope: float
    every: int
    ahead: int = 0
