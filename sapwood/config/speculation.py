"""What drafts tokens, and how many: the spellings of the options, and what is decided where they are left open."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from sapwood.base.errors import ConfigError
from sapwood.config.facts import DeviceFacts, ModelShape
from sapwood.config.flags import flag_of, replace
from sapwood.config.options import Config, SpeculationConfig

OFF, AUTO = "off", "auto"
DRAFTERS = ("prediction", "tree", "ngram", "draft")
"""All drafters, the one first whose drafts cost least and are most often right. The last is a model of its own."""

MODEL = "draft"
"""The drafter that is a model."""

LONGEST_LOOKUP = 8
"""Tokens that a lookup can want in common."""

_ALIASES: Mapping[str, str] = MappingProxyType(
    {"none": OFF, "suffix": "tree,ngram", "draft_model": MODEL, "standalone": MODEL, "eagle": MODEL, "eagle3": MODEL}
)


class _Given(msgspec.Struct, forbid_unknown_fields=True):
    """What `--speculative-config` may hold. `prompt_lookup_max` is there for those who bring it: however many tokens two places have
    in common, the one with most of them counts."""

    method: str | None = None
    model: str | None = None
    num_speculative_tokens: int | None = None
    prompt_lookup_min: int | None = None
    prompt_lookup_max: int | None = None


def spelled(config: Config) -> Config:
    """The same with one spelling of what drafts: what the JSON says has become options of their own, names are small."""
    options = config.speculation
    values = _of_json(config) if options.speculative_config is not None else {}
    method = values.get("speculation", options.speculation)
    if method is not None:
        values["speculation"] = _names(method)
    config = replace(config, "speculation", **values) if values else config
    _check_model(config.speculation)
    return config


def _check_model(options: SpeculationConfig) -> None:
    """A model that drafts is given where it is asked for, and nowhere else."""
    names, flag = (options.speculation or AUTO).split(","), flag_of("speculative_model")
    if options.speculative_model is None and MODEL in names:
        raise ConfigError(f"{flag_of('speculation')} {MODEL} needs a model: give {flag} MODEL.")
    if options.speculative_model is not None and not {AUTO, MODEL} & set(names):
        raise ConfigError(
            f"{flag} is given, and {flag_of('speculation')} {options.speculation} does not use it: leave it out, or add "
            f"{MODEL}."
        )


def _of_json(config: Config) -> dict[str, Any]:
    """What the JSON says, by options. No option may be set beside it."""
    options, flag = config.speculation, flag_of("speculative_config")
    try:
        given = msgspec.json.decode(options.speculative_config or "", type=_Given)
    except msgspec.MsgspecError as error:
        raise ConfigError(
            f"{flag} takes a JSON object with method, and maybe model, num_speculative_tokens and prompt_lookup_min; got "
            f"{options.speculative_config}: {error}."
        ) from None
    if given.prompt_lookup_max is not None and given.prompt_lookup_max < (given.prompt_lookup_min or 1):
        raise ConfigError(
            f"{flag}: prompt_lookup_max ({given.prompt_lookup_max}) must not be below prompt_lookup_min, or 1."
        )
    if given.method is None and given.model is None:
        raise ConfigError(f"{flag} takes a JSON object with method, or with model; got {options.speculative_config}.")
    said = {
        "speculation": given.method or MODEL,
        "speculative_model": given.model,
        "num_speculative_tokens": given.num_speculative_tokens,
        "prompt_lookup_min": given.prompt_lookup_min,
    }
    found = {field: value for field, value in said.items() if value is not None}
    for field in found:
        if getattr(options, field) != getattr(SpeculationConfig, field):
            raise ConfigError(f"{flag} and {flag_of(field)} say the same: leave one out.")
    return {**found, "speculative_config": None}


def _names(method: str) -> str:
    method = method.lower().replace(" ", "")
    method = _ALIASES.get(method, method)
    names = method.split(",")
    if method in (OFF, AUTO) or (set(names) <= set(DRAFTERS) and len(set(names)) == len(names)):
        return method
    raise ConfigError(
        f"{flag_of('speculation')} takes {OFF}, {AUTO}, or some of {', '.join(DRAFTERS)}, each once and the first one "
        f"preferred; got {method!r}."
    )


def drafters(config: Config) -> tuple[str, ...]:
    """The names of those that draft, of a resolved configuration, the first one preferred."""
    method = config.speculation.speculation
    assert method is not None, "a resolved configuration"
    return () if method == OFF else tuple(method.split(","))


def drafter_rule(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[str, str]:
    if config.speculation.speculative_model is not None:
        return ",".join(DRAFTERS), "the first are right most often, and a model has an idea where they have none"
    method, reason = AUTO, "none needs a model of its own, and the first are right most often"
    if config.speculation.speculation is None:
        method, reason = device.rules.drafting
        other = OFF if method == AUTO else AUTO
        reason += f"; {flag_of('speculation')} {other} changes no answer"
    return (OFF if method == OFF else ",".join(DRAFTERS[:-1])), reason


def count_rule(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    if not drafters(config):
        return 0, "nothing is drafted"
    most, reason = device.rules.drafts
    return most, f"at most, {reason}; how many of them pay, acceptance and load decide"
