"""How close products with quantised weights come to the device: `python bench/quantised.py` on a CUDA device, about a minute.

Products of the sizes of llama-8b, with the norm, sum and gate around them, as a model has them. Of few tokens they are bound by
memory: `floor` are the bytes of codes, scales and offsets at the rate of a measured device-to-device copy (read plus written),
in microseconds. `plain` is the same product with bfloat16 weights. Times are medians over graph replays; each call of a graph
has another layer's weights, so that the L2 cache does not hold them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from gpu import DEVICE, DTYPE, SHAPES, copy_rate, seconds, show
from torch import Tensor

from sapwood.kernels import Activation, RmsNorm
from sapwood.kernels.planes import Planes, of_coded, of_grouped, of_scaled
from sapwood.kernels.triton.fused import KERNELS

TOKENS = (1, 4, 8, 16, 32, 64, 128, 256, 8192)
LLAMA = SHAPES[0]
PRODUCTS: Mapping[str, tuple[int, int]] = {
    "qkv": (LLAMA.qkv, LLAMA.hidden),
    "out": (LLAMA.hidden, LLAMA.heads),
    "gate_up": (2 * LLAMA.inner, LLAMA.hidden),
    "down": (LLAMA.hidden, LLAMA.inner),
}
HELD = 1 << 28  # bytes of weights that a product's layers have at least: more than the L2 cache holds
NF4 = torch.linspace(-1, 1, 16)  # any table will do


def randint(most: int, *shape: int) -> Tensor:
    return torch.randint(most, shape, device=DEVICE, dtype=torch.uint8)


def scales(outputs: int, groups: int, inputs: int, size: float) -> Tensor:
    return (0.5 + torch.rand(outputs, groups, device=DEVICE)) / (size * inputs**0.5)


def fp8(outputs: int, inputs: int) -> Tensor:
    wide = torch.randn(outputs, inputs, device=DEVICE) * 60
    return wide.to(torch.float8_e4m3fn)


KINDS: Mapping[str, Callable[[int, int], Planes | None]] = {
    "fp8, inputs rounded": lambda o, i: of_scaled(fp8(o, i), scales(o, 1, i, 60), "token"),
    "fp8 in blocks, inputs rounded": lambda o, i: of_scaled(fp8(o, i), scales(o // 128, i // 128, i, 60), "block"),
    "int8, inputs rounded": lambda o, i: of_scaled(randint(256, o, i).view(torch.int8), scales(o, 1, i, 74), "token"),
    "fp8": lambda o, i: of_scaled(fp8(o, i), scales(o, 1, i, 60)),
    "4 bits, groups of 128": lambda o, i: of_grouped(randint(256, o, i // 2), 4, scales(o, i // 128, i, 5).half()),
    "the same with zero points": lambda o, i: of_grouped(
        randint(256, o, i // 2), 4, scales(o, i // 128, i, 5).half(), 7 + randint(3, o, i // 128)
    ),
    "a table of 16, groups of 64": lambda o, i: of_coded(randint(256, o, i // 2), NF4, scales(o, i // 64, i, 0.5)),
    "4 bits, groups of 32, as GGUF's": lambda o, i: of_grouped(
        randint(256, o, i // 2), 4, scales(o, i // 32, i, 5).half(), 7 + randint(3, o, i // 32)
    ),
}


def call(weights: Sequence[Planes | Tensor], name: str, num_tokens: int) -> Callable[[], None]:
    """Every layer's product, on the same inputs."""
    x, residual = torch.randn(2, num_tokens, PRODUCTS[name][1], device=DEVICE, dtype=DTYPE)
    behind_norm = name in ("qkv", "gate_up")
    norm = RmsNorm(torch.ones(LLAMA.hidden, device=DEVICE), 1e-5) if behind_norm else None
    activation: Activation | None = "silu" if name == "gate_up" else None

    def run() -> None:
        for one in weights:
            behind = norm, residual if behind_norm else None, activation
            if isinstance(one, Planes):
                KERNELS.planes(x, one, None, *behind)
            else:
                KERNELS.linear(x, one, None, *behind)

    return run


def measure(make: Callable[[int, int], Planes | None], copied: float) -> Iterator[tuple[str, list[str]]]:
    for name, (outputs, inputs) in PRODUCTS.items():
        first = make(outputs, inputs)
        assert first is not None
        layers = [first, *(make(outputs, inputs) for _ in range(HELD // first.nbytes))]
        plain = [
            torch.randn(outputs, inputs, device=DEVICE, dtype=DTYPE) for _ in range(HELD // (2 * outputs * inputs) + 1)
        ]
        for num_tokens in TOKENS:
            ours = seconds(call([one for one in layers if one is not None], name, num_tokens)) / len(layers)
            theirs = seconds(call(plain, name, num_tokens)) / len(plain)
            operations = 2 * num_tokens * outputs * inputs
            cells = [f"{ours * 1e6:.1f}", f"{first.nbytes / copied / 1e3:.1f}", f"{operations / ours / 1e12:.0f}"]
            yield f"{name}, {num_tokens} tokens", [*cells, f"{theirs * 1e6:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="these kinds alone")
    asked, copied = parser.parse_args(), copy_rate()
    print(f"{torch.cuda.get_device_name()}: copy {copied:.0f} GB/s")
    for kind in asked.kinds:
        show(kind, ("us", "floor us", "TFLOP/s", "plain us"), measure(KINDS[kind], copied))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
