"""Run by test_ahead: a start that needs one kernel, for a device of which only the name is there."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

import sapwood
from sapwood.kernels.triton import fused
from sapwood.runner.ahead import compile_ahead


class Paper:
    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)


driver.set_active(Paper())  # type: ignore[arg-type]
rehearsed, launches, outs = 0, [], []


def launch() -> None:
    outs.append(fused.KERNELS.gated(torch.ones(4, 64, dtype=torch.bfloat16), "silu"))


def rehearse() -> None:
    global rehearsed
    rehearsed += 1
    launch()


def listen(src: Any, cache_hit: bool, **more: Any) -> None:
    launches.append([src.name, cache_hit])


compile_ahead("an engine", rehearse)()
triton.knobs.compilation.listener = listen
with contextlib.suppress(AttributeError):  # there is no launcher, which comes after the kernel was found or compiled
    launch()
blank = all(not out.any() for out in outs)
print(
    json.dumps(
        {"rehearsed": rehearsed, "blank": blank, "launches": launches, "root": str(Path(sapwood.__file__).parent)}
    )
)
