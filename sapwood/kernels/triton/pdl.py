"""Programmatic dependent launch: the blocks of a kernel start while the kernel before it on the stream still ends.

A kernel that is launched so (`launch_pdl=True`, on devices with `Ability.EARLY_LAUNCH`) may do at once what depends on no other
kernel, such as reading weights. Before it reads or writes anything that another kernel of the step touches, it calls
`join` (or what follows here); every kernel launched so must, since "the kernel before has ended" then means that all before it have.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import functools

import torch
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from sapwood.base.abilities import Ability
from sapwood.device import abilities_of
from sapwood.kernels.triton.jit import jit


@functools.cache  # asked before every launch
def supported(device: torch.device) -> bool:
    """Whether kernels on this device may be launched so; never in Triton's interpreter."""
    return Ability.EARLY_LAUNCH in abilities_of(device)


@jit
def lead():
    """Wait as `join` does, and only then let the next kernel's blocks start: it may `follow`."""
    gdc_wait()
    gdc_launch_dependents()


@jit
def follow():
    """After a kernel that leads: what the kernels before that one wrote may be read at once, and what the leading one
    writes after `catch_up`, which every program must call before it ends."""
    gdc_launch_dependents()


@jit
def catch_up():
    gdc_wait()


@jit
def join():
    """Let the next kernel's blocks start, then wait until the kernel before has ended and its writes are seen."""
    gdc_launch_dependents()
    gdc_wait()
