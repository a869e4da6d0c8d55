"""How the Linears of a model are stored and multiplied: by its checkpoint's own section, or rounded as the user asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from sapwood.arch.experts import Stack
from sapwood.arch.network import Network
from sapwood.arch.parts import Linear, walk
from sapwood.base.errors import ConfigError, ModelError
from sapwood.quant import methods
from sapwood.quant.base import Choice, everywhere
from sapwood.quant.formats.base import Quantised
from sapwood.quant.methods import METHODS, ReadSection
from sapwood.quant.plain import Plain
from sapwood.quant.rounding import rounding


def choice_of(
    decoder: Network,
    rounded: str | None,
    known: Mapping[str, ReadSection] = METHODS,
    otherwise: Choice | None = None,
) -> Choice:
    """`otherwise` is how weights are kept of which neither says anything: by default plain.

    Raises ModelError for a section that cannot be read, ConfigError for one whose weights are to be rounded besides.
    """
    plain = everywhere(Plain())
    if rounded is not None and decoder.quantization is not None:
        raise ConfigError(f"--quantization {rounded}: the checkpoint's weights are quantised already; leave it out.")
    kept = (otherwise or plain) if rounded is None else rounding(rounded, plain)
    choice = methods.of(decoder.quantization, kept, known)
    if decoder.quantization is not None:
        _check_experts(decoder, choice)
    return choice


def of_whole(choice: Choice, decoder: Network) -> Choice:
    """Of a rank's portion: its Linears are stored as those of the whole are, whatever would suit their own sizes."""
    if decoder.portion is None:
        return choice
    places = {place.path: place for place in walk(decoder.portion[0]) if isinstance(place.leaf, Linear | Stack)}
    return lambda place: choice(places.get(place.path, place))


def _check_experts(decoder: Network, choice: Choice) -> None:
    """Raises ModelError where the section means some experts of a layer and not others, or in ways that are for Linears only."""
    for place in walk(decoder):
        if isinstance(place.leaf, Stack):
            stack, first = place.leaf, choice(place)
            together = isinstance(first, Plain | Quantised)
            for expert in range(stack.count):
                linear = stack.of_one(expert)
                if not together or choice(replace(place, leaf=replace(stack, linear=linear))) != first:
                    names = ", ".join(place.prefix + part.name for part in linear.parts)
                    raise ModelError(
                        f"config.json: quantization_config stores {names} otherwise than the experts beside, which is not "
                        "supported: quantise all experts of a layer alike, or except all of them."
                    )


def told(decoder: Network, choice: Choice) -> list[tuple[int, str]]:
    """What is multiplied in how many of a model's Linears, those of experts too, most first."""
    found: Counter[str] = Counter()
    for place in walk(decoder):
        if isinstance(place.leaf, Linear | Stack):
            found[choice(place).shown] += place.leaf.count if isinstance(place.leaf, Stack) else 1
    return [(count, shown) for shown, count in found.most_common()]
