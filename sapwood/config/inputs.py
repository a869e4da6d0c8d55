"""How many inputs the encoder of an encoder-decoder has room for, and how long they may be."""

from __future__ import annotations

from typing import NamedTuple

from sapwood.arch.groups import fixed_of
from sapwood.arch.network import Network
from sapwood.arch.parts import Decoder
from sapwood.arch.reader import Reader
from sapwood.base.errors import ConfigError
from sapwood.base.kv import Fixed
from sapwood.config import adapters
from sapwood.config.devices import rules_of
from sapwood.config.flags import flag_of
from sapwood.config.options import Config
from sapwood.config.weights import ITEMSIZE

_USUAL = 1024
"""Positions of an input where a model names no end and nobody asks for more."""
_SHARES = {False: 1 << 30, True: 4 << 30}
"""Bytes that inputs may take in the host's memory, and in a device's own, where nobody says how many they are."""


class Room(NamedTuple):
    """For `entries` inputs of at most `longest` positions, of which each of `layers` keeps a `kind`."""

    kind: Fixed
    layers: int
    entries: int
    longest: int

    def num_bytes(self, itemsize: int) -> int:
        return (self.entries + 1) * self.layers * self.kind.bytes_per_page(self.longest, itemsize, 0)


def room_of(config: Config, decoder: Network) -> Room | None:
    """None for a model that reads no inputs. `config` is resolved. Raises ConfigError."""
    found = fixed_of(decoder)
    if found is None:
        for field in ("max_encoder_inputs", "max_encoder_len"):
            if getattr(config.cache, field) is not None:
                raise ConfigError(f"{flag_of(field)} is for encoder-decoders, and this model is none. Leave it out.")
        return None
    assert isinstance(decoder, Decoder) and isinstance(decoder.encoder, Reader), "whose layers look at inputs"
    _check(config)
    asked, most = config.cache.max_encoder_len, decoder.encoder.longest
    if asked is not None and asked > most:
        raise ConfigError(
            f"{flag_of('max_encoder_len')} ({asked}) is beyond the {most} positions that the model's encoder has."
        )
    if asked is not None and asked < most and decoder.encoder.stem is not None:
        raise ConfigError(
            f"{flag_of('max_encoder_len')} ({asked}): the encoder's inputs always have {most} positions. Leave it out."
        )
    longest = asked or (most if decoder.encoder.positions is not None else min(most, _USUAL))
    seqs = config.scheduler.max_num_seqs
    assert seqs is not None, "a resolved configuration"
    entries = config.cache.max_encoder_inputs
    if entries is None:
        kind, layers = found
        each = layers * kind.bytes_per_page(longest, ITEMSIZE[config.model.dtype], 0)
        entries = max(1, min(seqs, _SHARES[rules_of(config.device.device).own_memory] // each))
    return Room(*found, entries, longest)


def _check(config: Config) -> None:
    """What does not go with layers that look at inputs."""
    for field in ("max_encoder_inputs", "max_encoder_len"):
        if (value := getattr(config.cache, field)) is not None and value < 1:
            raise ConfigError(f"{flag_of(field)} must be at least 1, got {value}.")
    if (config.parallel.tensor_parallel_size or 1) > 1:
        raise ConfigError(f"{flag_of('tensor_parallel_size')}: encoder-decoders are not cut over ranks. Leave it out.")
    if config.speculation.speculative_model is not None:
        raise ConfigError(
            f"{flag_of('speculative_model')}: a model that drafts sees nothing of an encoder's input. Leave it out."
        )
    if adapters.enabled(config):
        raise ConfigError("--enable-lora: adapters do not change encoder-decoders. Leave it out.")
    if config.model.quantization is not None:
        raise ConfigError(
            f"{flag_of('quantization')}: the weights of encoder-decoders are computed as they are. Leave it out."
        )
