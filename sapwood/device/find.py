"""The choice of a device."""

from __future__ import annotations

import functools

import torch

from sapwood.base.abilities import Ability
from sapwood.base.errors import ConfigError
from sapwood.config.facts import DeviceFacts
from sapwood.device import cpu, cuda
from sapwood.device.base import Device


def find(option: str) -> Device:
    """The device that `--device` names: "cpu", "cuda", "cuda:N", or "auto" (the first GPU if there is one that can be used).

    Raises ConfigError for others.
    """
    if option == "auto":
        return cpu.Cpu() if cuda.refuse() else cuda.Cuda(0)
    try:
        place = torch.device(option)
    except RuntimeError:
        raise ConfigError(f"--device {option}: choose auto, cpu, cuda or cuda:N.") from None
    if place.type == "cpu":
        return cpu.Cpu()
    if place.type != "cuda":
        raise ConfigError(f"--device {option}: choose auto, cpu, cuda or cuda:N.")
    if refused := cuda.refuse():
        raise ConfigError(f"--device {option}: {refused}; try --device cpu.")
    index, num_devices = place.index or 0, torch.cuda.device_count()
    if index >= num_devices:
        raise ConfigError(f"--device {option}: there are {num_devices} CUDA devices, numbered from 0.")
    return cuda.Cuda(index)


def probe(option: str) -> DeviceFacts:
    """What can be known of a device before anything is put on it. Raises ConfigError as `find` does."""
    return find(option).facts


@functools.cache
def abilities_of(place: torch.device) -> frozenset[Ability]:
    """What whoever has a tensor's device only has to know of it. They do not change while a process lives."""
    if place.type == "cpu":
        return cpu.ABILITIES
    return cuda.abilities(place) if place.type == "cuda" else frozenset()
