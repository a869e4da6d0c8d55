"""Whose modules run a model."""

from __future__ import annotations

from sapwood.config.facts import DeviceFacts, ModelShape
from sapwood.config.options import Config


def model_impl(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[str, str]:
    """The rule for the option: which it is, and why."""
    if model.foreign:
        return "transformers", "no family of ours: its own modules, slower; plain weights only, no heads that draft"
    return "sapwood", "its family is known"
