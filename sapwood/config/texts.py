"""What holds of models whose tokens see those behind them."""

from __future__ import annotations

from sapwood.base.errors import ConfigError
from sapwood.config.facts import ModelShape
from sapwood.config.flags import flag_of
from sapwood.config.options import Config
from sapwood.config.speculation import drafters

WHOLE = "a text is computed in one step"


def step_tokens(config: Config, model: ModelShape, base: tuple[int, str]) -> tuple[int, str]:
    """Tokens of a step, and why: as many as the longest text has, if that is more than a device's own."""
    longest = config.model.max_model_len or model.max_positions
    return base if model.chunks or longest <= base[0] else (longest, WHOLE)


def check(config: Config, model: ModelShape) -> None:
    """Raise ConfigError for texts of a length that no step holds, and for drafts of what is not written. `config` is resolved."""
    if model.chunks:
        return
    if drafters(config):
        raise ConfigError(
            f"{flag_of('speculation')} is for models that write, and {model.default_name} only reads. Leave it out."
        )
    length, step = config.model.max_model_len, config.scheduler.max_num_batched_tokens
    if length is not None and step is not None and length > step:
        raise ConfigError(
            f"{flag_of('max_model_len')} ({length}) must not be above {flag_of('max_num_batched_tokens')} ({step}): {WHOLE}. Lower "
            "the first or raise the second."
        )
