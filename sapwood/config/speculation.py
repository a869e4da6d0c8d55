"""What drafts tokens, and how many: the spellings of the options, and what is decided where they are left open."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from sapwood.base.errors import ConfigError
from sapwood.config.drafting import SpeculationConfig
from sapwood.config.facts import DeviceFacts, ModelShape
from sapwood.config.flags import flag_of, replace
from sapwood.config.options import Config

OFF, AUTO = "off", "auto"
MODEL, MTP = "draft", "mtp"
"""The drafters that compute: a model or a head of its own, and the head that the model's own checkpoint has."""

_HOSTS = ("prediction", "tree", "ngram")
DRAFTERS = (*_HOSTS, MODEL, MTP)
"""All drafters, the one first whose drafts cost least and are most often right."""

LONGEST_LOOKUP = 8
"""Tokens that a lookup can want in common."""

_ALIASES: Mapping[str, str] = MappingProxyType(
    {"none": OFF, "suffix": "tree,ngram", "draft_model": MODEL, "standalone": MODEL, "eagle3": MODEL, "nextn": MTP}
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
        given = values.get("speculative_model", options.speculative_model)
        values["speculation"] = names = _names(method, given)
        if given is not None and given == config.model.model and MTP in names.split(","):
            values["speculative_model"] = None  # some name the model itself
    config = replace(config, "speculation", **values) if values else config
    _check_model(config.speculation)
    return config


def asks_for(config: Config, drafter: str) -> bool:
    """Whether a configuration of one spelling names the drafter."""
    return drafter in (config.speculation.speculation or AUTO).split(",")


def _check_model(options: SpeculationConfig) -> None:
    """A model that drafts is given where it is asked for, and nowhere else."""
    names, flag = (options.speculation or AUTO).split(","), flag_of("speculative_model")
    if MODEL in names and MTP in names:
        raise ConfigError(
            f"{flag_of('speculation')} {options.speculation}: only one model drafts. Leave out {MODEL} or {MTP}."
        )
    if options.speculative_model is None and MODEL in names:
        raise ConfigError(f"{flag_of('speculation')} {MODEL} needs a model: give {flag} MODEL.")
    if options.speculative_model is not None and not {AUTO, MODEL} & set(names):
        raise ConfigError(
            f"{flag} is given, and {flag_of('speculation')} {options.speculation} does not use it: leave it out, or ask for "
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


def _names(method: str, model: str | None) -> str:
    """Of the drafters. Peers have a method for each family that has layers for this, and a head that is in no `model` of its own is one."""
    method = method.lower().replace(" ", "")
    if method.endswith("_mtp"):
        method = MTP
    elif method == "eagle":
        method = MTP if model is None else MODEL
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
        return ",".join(
            (*_HOSTS, MODEL)
        ), "the first are right most often, and a model has an idea where they have none"
    method, reason = AUTO, "none needs a model of its own, and the first are right most often"
    if config.speculation.speculation is None:
        method, reason = device.rules.drafting
        other = OFF if method == AUTO else AUTO
        reason += f"; {flag_of('speculation')} {other} changes no answer"
    return (OFF if method == OFF else ",".join(_HOSTS)), reason


def count_rule(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    if not drafters(config):
        return 0, "nothing is drafted"
    most, reason = device.rules.drafts
    return most, f"at most, {reason}; how many of them pay, acceptance and load decide"
