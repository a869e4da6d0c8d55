"""What devices can do, by name: code asks for the ability that it needs, never for the device that has it today."""

from __future__ import annotations

from enum import StrEnum


class Ability(StrEnum):
    HOST = "host"
    """Its memory and its cores are the host's: nothing has to travel, and nothing is waited for."""

    PINNED = "pinned"
    """It reads pinned host memory by itself, while the host goes on."""

    TRITON = "triton"
    """Triton compiles kernels for it."""

    GRAPHS = "graphs"
    """What was launched once is recorded, and launched again as one."""

    EARLY_LAUNCH = "early_launch"
    """The blocks of a kernel start while the kernel before it ends."""

    TMA = "tma"
    """Whole tiles are copied by a unit of their own."""

    FP8 = "fp8"
    """It converts float8_e4m3fn."""

    CUDNN = "cudnn"
    """cuDNN attends to long prompts faster than Triton's kernels."""
