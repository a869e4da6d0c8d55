"""Which backend serves a KV group: a table of those that there are, by the kind of KV and by the device."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import torch

from sapwood.attention.base import Backend
from sapwood.attention.cpu import Cpu
from sapwood.attention.latent import LatentReference
from sapwood.attention.native import Native
from sapwood.attention.native_latent import NativeLatent
from sapwood.attention.native_states import NativeStates
from sapwood.attention.native_whole import NativeWhole
from sapwood.attention.reference import Reference
from sapwood.attention.states import States
from sapwood.attention.whole import WholeTexts
from sapwood.base.abilities import Ability
from sapwood.base.errors import ConfigError
from sapwood.base.kv import SCALE_BYTES, Heads, KVGroup, Latent, State, Whole
from sapwood.device import abilities_of
from sapwood.kernels.cpu.library import Machine

Make = Callable[[KVGroup, int, torch.device, torch.dtype], Backend]
"""What makes a backend: see its constructor."""


class Wanted(NamedTuple):
    """What a backend is wanted for. `dtype` is that of what is kept, `scaled` whether with a scale for each position and head;
    `machine` runs the CPU kernels, or says why there are none."""

    group: KVGroup
    device: torch.device
    dtype: torch.dtype
    machine: Machine | str
    scaled: bool = False


class Offer(NamedTuple):
    """A row of the table: `find` returns what makes the backend of that name, or why it cannot be made.

    It is asked only about groups of that kind on devices that have what it needs; None is nothing.
    """

    name: str
    kind: type
    needs: Ability | None
    find: Callable[[Wanted], Make | str]


_NO_SCALES = "latents are kept without scales"
_NO_TRITON = "the package triton is not installed (`pip install triton`)"


def _cpu(wanted: Wanted) -> Make | str:
    return Cpu.refuse(wanted.group, wanted.device, wanted.dtype) or Cpu


def _reference(wanted: Wanted) -> Make | str:
    if not wanted.scaled:
        return Reference.refuse(wanted.group, wanted.device, wanted.dtype) or Reference
    if Ability.HOST in abilities_of(wanted.device):
        return "on a CPU only the CPU kernels keep scales"
    return partial(Reference, scaled=True)


def _triton(wanted: Wanted) -> Make | str:
    """Imported only where it may run."""
    if importlib.util.find_spec("triton") is None:
        return _NO_TRITON
    from sapwood.attention.triton import Triton

    make: Make = partial(Triton, scaled=True) if wanted.scaled else Triton
    return Triton.refuse(wanted.group, wanted.device, wanted.dtype) or make


def _latent(wanted: Wanted, backend: type[Backend]) -> Make | str:
    if wanted.scaled:
        return _NO_SCALES
    return backend.refuse(wanted.group, wanted.device, wanted.dtype) or backend


def _triton_latent(wanted: Wanted) -> Make | str:
    if importlib.util.find_spec("triton") is None:
        return _NO_TRITON
    from sapwood.attention.triton_latent import TritonLatent

    return _latent(wanted, TritonLatent)


def _reference_latent(wanted: Wanted) -> Make | str:
    return _latent(wanted, LatentReference)


def _on_machine(wanted: Wanted, backend: Callable[..., Backend], refused: str | None) -> Make | str:
    if isinstance(wanted.machine, str):
        return wanted.machine
    return refused or partial(backend, machine=wanted.machine)


def _native(wanted: Wanted) -> Make | str:
    return _on_machine(wanted, Native, Native.refuse(wanted.group, wanted.device, wanted.dtype))


def _native_latent(wanted: Wanted) -> Make | str:
    if wanted.scaled:
        return _NO_SCALES
    return _on_machine(wanted, NativeLatent, NativeLatent.refuse(wanted.group, wanted.device, wanted.dtype))


def _native_states(wanted: Wanted) -> Make | str:
    return _on_machine(wanted, NativeStates, NativeStates.refuse(wanted.group, wanted.device, wanted.dtype))


def _states(wanted: Wanted) -> Make | str:
    return States.refuse(wanted.group, wanted.device, wanted.dtype) or States


def _native_whole(wanted: Wanted) -> Make | str:
    return _on_machine(wanted, NativeWhole, NativeWhole.refuse(wanted.group, wanted.device, wanted.dtype))


def _triton_states(wanted: Wanted) -> Make | str:
    if importlib.util.find_spec("triton") is None:
        return _NO_TRITON
    from sapwood.attention.triton_states import TritonStates

    return TritonStates.refuse(wanted.group, wanted.device, wanted.dtype) or TritonStates


def _whole(wanted: Wanted) -> Make | str:
    return WholeTexts.refuse(wanted.group, wanted.device, wanted.dtype) or WholeTexts


BACKENDS = (
    Offer("triton", Heads, Ability.TRITON, _triton),
    Offer("native", Heads, Ability.HOST, _native),
    Offer("cpu", Heads, Ability.HOST, _cpu),
    Offer("reference", Heads, None, _reference),
    Offer("triton-latent", Latent, Ability.TRITON, _triton_latent),
    Offer("native-latent", Latent, Ability.HOST, _native_latent),
    Offer("reference-latent", Latent, None, _reference_latent),
    Offer("triton-states", State, Ability.TRITON, _triton_states),
    Offer("native-states", State, Ability.HOST, _native_states),
    Offer("reference-states", State, Ability.HOST, _states),
    Offer("native-whole", Whole, Ability.HOST, _native_whole),
    Offer("sdpa-whole", Whole, None, _whole),
)
"""In the order in which `auto` tries them."""

NAMES: Mapping[str, Callable[[Offer], str]] = MappingProxyType({"attention backend": lambda offer: offer.name})
"""By what one is found, of whatever kind: no two have the same."""

_ONLY: Mapping[Ability, str] = MappingProxyType(
    {Ability.TRITON: "its kernels run on CUDA devices", Ability.HOST: "it runs on CPUs"}
)


def stored(name: str, computed: torch.dtype) -> torch.dtype:
    """The dtype of stored keys and values by the name of the option, where the model computes in `computed`."""
    float8 = torch.float8_e4m3fn
    named = {"auto": computed, "fp8_e4m3": float8, "fp8_per_token_head": float8}
    return named.get(name) or getattr(torch, name)


def scaled(name: str) -> bool:
    """Whether keys and values of that option have scales."""
    return name in SCALE_BYTES


def choose(
    group: KVGroup,
    device: torch.device,
    dtype: torch.dtype,
    name: str = "auto",
    machine: Machine | str = "the CPU kernels are not loaded",
    backends: Sequence[Offer] = BACKENDS,
    *,
    scaled: bool = False,
) -> Make:
    """What makes the backend of that name, or for "auto" the first of the table that serves the group.

    `dtype`, `machine` and `scaled` are as in `Wanted`. Raises ConfigError where the named one cannot serve the group there, saying
    why and what can.
    """
    wanted = Wanted(group, device, dtype, machine, scaled)
    offers = {offer.name: offer for offer in backends if isinstance(group.kind, offer.kind)}
    if not offers:
        raise ConfigError(f"no backend knows layers that keep {type(group.kind).__name__}.")
    if name == "auto":
        return _first(offers.values(), wanted)[1]
    if name in offers:
        found = _find(offers[name], wanted)
    else:
        found = f"there is no backend of that name (auto, {', '.join(offers)})"
    if isinstance(found, str):
        mend, _ = _first(offers.values(), wanted)
        raise ConfigError(f"--attention-backend {name} cannot be used: {found}. Use auto or {mend}.")
    return found


def _first(offers: Iterable[Offer], wanted: Wanted) -> tuple[str, Make]:
    reasons = []
    for offer in offers:
        found = _find(offer, wanted)
        if not isinstance(found, str):
            return offer.name, found
        reasons.append(f"{offer.name}: {found}")
    raise ConfigError(
        f"no attention backend can keep {wanted.dtype} on {wanted.device} ({'; '.join(reasons)}). "
        "Use another --kv-cache-dtype."
    )


def _find(offer: Offer, wanted: Wanted) -> Make | str:
    if offer.needs is not None and offer.needs not in abilities_of(wanted.device):
        only = _ONLY.get(offer.needs, f"it needs a device that has {offer.needs}")
        return f"{only}, and the device is {wanted.device}"
    return offer.find(wanted)
