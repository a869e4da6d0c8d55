"""How close the products of a block come to the device: `python bench/linear.py` on a CUDA device, under a minute.

A product of few tokens is bound by memory: bytes of its weights per second, beside a measured device-to-device copy
(read plus written). `fused` is one launch with norm, sum and gate in it; `apart` the same product with these in
kernels of their own; `library` theirs with torch's product. Then whole chains of a block's four products, with and
without programmatic dependent launch, and the kernels between large products. Times are medians over graph replays;
each call of a graph has another layer's weights, so that the L2 cache does not hold them.

`--sweep` tries settings of the few-token product instead and prints the best as rows of its table.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from gpu import DEVICE, DTYPE, SHAPES, Shape, introduce, rate, seconds, show
from torch import Tensor

from sapwood.kernels import Activation, RmsNorm
from sapwood.kernels.triton import few, pdl
from sapwood.kernels.triton.few import Setting
from sapwood.kernels.triton.fused import KERNELS

NUM_THREADS = 16  # that compile kernels

TOKENS = (1, 2, 4, 8, 16, 32, 256)
OURS = ("fused", "apart")  # of the few-token product
SWEPT_TOKENS = (1, 4, 16)
SETTINGS = {
    False: "2/1024/4/2 4/512/2/1 4/512/2/4 4/1024/4/1 4/1024/4/3 8/512/4/1 8/512/4/3 8/1024/8/1 16/256/4/4",
    True: """16/256/2/4 16/256/4/4 16/512/4/3 32/128/2/5 32/128/4/4 32/256/4/3 32/256/4/5 64/64/4/6 64/128/4/3
        64/128/4/5 64/256/4/3 128/64/4/5 128/128/8/3""",
}
"""What a sweep tries, by whether the product is one of the matrix units: the other numbers of a `Setting`."""
SUMS, DOTS = ([Setting(dot, *map(int, one.split("/"))) for one in some.split()] for dot, some in SETTINGS.items())
WAYS = {
    "fused with PDL": ("fused", True),
    "fused without": ("fused", False),
    "apart with PDL": ("apart", True),
    "library": ("library", True),
}
"""Of a chain of products: how each is computed, and whether launches overlap."""


@dataclass
class Product:
    """One product of every layer."""

    name: str
    weights: Sequence[Tensor]
    norm: RmsNorm | None = None
    activation: Activation | None = None

    def inputs(self, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """x and, with a norm, a residual."""
        both = torch.randn(2, num_tokens, self.weights[0].shape[1], device=DEVICE, dtype=DTYPE)
        return both[0], None if self.norm is None else both[1]

    def run(
        self, how: str, layer: int, x: Tensor, residual: Tensor | None, cut: Setting | None = None
    ) -> tuple[Tensor, Tensor]:
        """A layer's product: `fused`, `apart` or `library`."""
        weight = self.weights[layer]
        if how == "fused":
            return few.product(x, weight, None, self.norm, residual, self.activation, cut)
        if how == "library":
            return KERNELS.around(lambda x: F.linear(x, weight), x, self.norm, residual, self.activation)
        alone = lambda x: few.product(x, weight, None, None, None, self.activation)[0]  # noqa: E731
        return KERNELS.around(alone, x, self.norm, residual, None)

    def all_layers(self, how: str, num_tokens: int, cut: Setting | None = None) -> Callable[[], None]:
        """Every layer's product, on the same inputs."""
        x, residual = self.inputs(num_tokens)

        def call() -> None:
            for layer in range(len(self.weights)):
                self.run(how, layer, x, residual, cut)

        return call

    @property
    def nbytes(self) -> int:
        return self.weights[0].nbytes


def products(shape: Shape) -> list[Product]:
    """The four products of a block and the head."""

    def weights(outputs: int, inputs: int, number: int = shape.num_layers) -> list[Tensor]:
        return [torch.randn(outputs, inputs, device=DEVICE, dtype=DTYPE) * inputs**-0.5 for _ in range(number)]

    norm = RmsNorm(torch.ones(shape.hidden, device=DEVICE), 1e-5)
    return [
        Product("qkv", weights(shape.qkv, shape.hidden), norm),
        Product("out", weights(shape.hidden, shape.heads)),
        Product("gate_up", weights(2 * shape.inner, shape.hidden), norm, "silu"),
        Product("down", weights(shape.hidden, shape.inner)),
        Product("head", weights(shape.vocabulary, shape.hidden, 1)),
    ]


def chain(parts: Sequence[Product], shape: Shape, num_tokens: int, how: str) -> Callable[[], None]:
    """The products of all layers behind one another, as blocks with an attention that passes its queries on."""
    qkv, out, gate_up, down, _ = parts
    x0, _ = qkv.inputs(num_tokens)

    def call() -> None:
        x, residual = x0, None
        for layer in range(shape.num_layers):
            heads, residual = qkv.run(how, layer, x, residual)
            x, _ = out.run(how, layer, heads[:, : shape.heads], None)
            x, residual = gate_up.run(how, layer, x, residual)
            x, _ = down.run(how, layer, x, None)

    return call


def compile_all(calls: Sequence[Callable[[], None]]) -> list[Exception | None]:
    """Run each once, many at a time, since compilation is mostly outside Python; why those that failed did."""

    def attempt(call: Callable[[], None]) -> Exception | None:
        try:
            with torch.inference_mode():
                call()
        except Exception as error:
            return error
        return None

    first = attempt(calls[0])  # alone: it sets Triton's driver up
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        failures = [first, *pool.map(attempt, calls[1:])]
    torch.cuda.synchronize()
    return failures


def measure_products(parts: Sequence[Product], copied: float) -> Iterator[tuple[str, list[str]]]:
    cases = [(part, n, how) for part in parts for n in TOKENS for how in (OURS if n <= few.FEW else ())]
    for error in filter(None, compile_all([part.all_layers(how, n) for part, n, how in cases])):
        print("failed:", repr(error)[:200])
    for part, n in itertools.product(parts, TOKENS):

        def cells(how: str, part: Product = part, n: int = n) -> list[str]:
            if how in OURS and n > few.FEW:
                return ["", "", ""]
            return rate(part.nbytes, seconds(part.all_layers(how, n)) / len(part.weights), copied)

        yield f"{part.name}, {n} tokens", [*cells("fused"), cells("apart")[0], *cells("library")[:2]]


def measure_chains(parts: Sequence[Product], shape: Shape) -> Iterator[tuple[str, Iterator[str]]]:
    nbytes = sum(part.nbytes for part in parts[:-1])

    def cells(num_tokens: int) -> Iterator[str]:
        for how, early in WAYS.values():
            with mock.patch.object(pdl, "supported", pdl.supported if early else lambda device: False):
                time = seconds(chain(parts, shape, num_tokens, how)) / shape.num_layers
            yield f"{time * 1e6:.1f} ({nbytes / time / 1e9:.0f})"

    return ((f"{n} tokens", cells(n)) for n in (1, 4, few.FEW))


def measure_neighbours(shape: Shape, copied: float) -> Iterator[tuple[str, list[str]]]:
    """The kernels between large products, in GB/s of what they read and write."""
    weight = torch.ones(shape.hidden, device=DEVICE)
    for n in (1, 16, 256, 2048, 8192):
        x, residual = torch.randn(2, n, shape.hidden, device=DEVICE, dtype=DTYPE)
        inner = torch.randn(n, 2 * shape.inner, device=DEVICE, dtype=DTYPE)
        norm = seconds(partial(KERNELS.add_rms_norm, x, residual, weight, 1e-5))
        gate = seconds(partial(KERNELS.gated, inner, "silu"))
        yield f"{n} tokens", [*rate(4 * x.nbytes, norm, copied), *rate(3 * inner.nbytes // 2, gate, copied)]


def sweep(parts: Sequence[Product]) -> Iterator[str]:
    """The best setting of each product and number of tokens, as rows for the table in few.py."""
    for part in parts:
        best: dict[int, Setting] = {}
        for n in SWEPT_TOKENS:
            calls = {cut: part.all_layers("fused", n, cut) for cut in ((*SUMS, *DOTS) if n == 1 else DOTS)}
            failures = dict(zip(calls, compile_all(list(calls.values())), strict=True))
            found = sorted(
                (seconds(call) / len(part.weights), cut) for cut, call in calls.items() if failures[cut] is None
            )
            rates = [f"{part.nbytes / time / 1e9:.0f} {'dot' if cut.dot else 'sum'}{cut[1:]}" for time, cut in found]
            print(f"{part.name:8} {n:3} tokens:", *rates[:6], f"... {rates[-1].split()[0]}", sep="  ")
            for error in {repr(error)[:120] for error in failures.values() if error is not None}:
                print("not possible:", error)
            best[n] = found[0][1]
        table = ", ".join(f"{n}: Setting{tuple(cut)}" for n, cut in best.items())
        yield f"    {tuple(part.weights[0].shape)}: {{{table}}},  # {part.name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES], help="one model's shape instead of all")
    asked, copied = introduce(parser)
    rows = []
    for shape in SHAPES:
        if asked.shape not in (None, shape.name):
            continue
        parts = products(shape)
        if asked.sweep:
            print(f"\n{shape.name}")
            rows += sweep(parts)
        else:
            columns = ("fused us", "GB/s", "of copy", "apart us", "library us", "library GB/s")
            show(f"{shape.name}: products", columns, measure_products(parts, copied))
            show(f"{shape.name}: chain, us a layer (GB/s)", list(WAYS), measure_chains(parts, shape))
            floor = sum(part.nbytes for part in parts[:-1]) / copied / 1e3
            print(f"at the speed of a copy: {floor:.1f} us")
            columns = ("norm us", "GB/s", "of copy", "gated us", "GB/s", "of copy")
            show(f"{shape.name}: between products", columns, measure_neighbours(shape, copied))
        del parts
    if rows:
        print("\n" + "\n".join(rows))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
