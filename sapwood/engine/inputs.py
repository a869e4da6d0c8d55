"""Encoder-decoders: what reads inputs, what fronts have to know of it, and how a prompt becomes one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sapwood.arch.foreign import Foreign
from sapwood.arch.parts import Decoder
from sapwood.base.wire import Reading
from sapwood.config import Config
from sapwood.config.flags import flag_of
from sapwood.config.inputs import room_of
from sapwood.config.resolve import Decision, gib
from sapwood.config.weights import ITEMSIZE
from sapwood.encode import InputStake
from sapwood.engine.loop import Gauges
from sapwood.hub.files import ModelFiles


class InputsOf(NamedTuple):
    """What an engine has for inputs; nothing, if its model reads none."""

    stakes: tuple[InputStake, ...] = ()
    gauges: tuple[Gauges, ...] = ()
    decisions: tuple[Decision, ...] = ()
    reading: Reading | None = None


def inputs_of(config: Config, decoder: Decoder | Foreign, files: ModelFiles) -> InputsOf:
    """`config` is resolved, and the model has been built as it says."""
    if isinstance(decoder, Foreign) or decoder.encoder is None or (room := room_of(config, decoder)) is None:
        return InputsOf()
    budget, (kind,) = config.scheduler.max_num_batched_tokens, decoder.encoder.kinds
    assert budget is not None, "a resolved configuration"
    stake = InputStake(kind, entries=room.entries, longest=room.longest, budget=budget)
    taken = gib(room.num_bytes(ITEMSIZE[config.model.dtype]))
    told = Decision(
        "encoder_inputs", f"{room.entries} of {room.longest} positions", f"{taken}; {flag_of('max_encoder_inputs')}"
    )
    starts = starts_of(files.config, files.generation_config)
    return InputsOf((stake,), (stake.gauges,), (told,), Reading(kind, room.longest, starts))


def starts_of(config: Mapping[str, Any], generation: Mapping[str, Any]) -> list[int]:
    """What the decoder begins with: its start, and the token that is forced behind that, if one is."""

    def told(name: str) -> int | None:
        found = [fields[name] for fields in (generation, config) if isinstance(fields.get(name), int)]
        return found[0] if found else None

    first = next(
        (one for one in map(told, ("decoder_start_token_id", "bos_token_id", "pad_token_id")) if one is not None), 0
    )
    forced = told("forced_bos_token_id")
    return [first] if forced is None else [first, forced]
