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
from unittest import mock

import torch
import torch.nn.functional as F
from gpu import DEVICE, DTYPE, copy_rate, seconds, show
from torch import Tensor

from sapwood.kernels import Activation, RmsNorm
from sapwood.kernels.triton import few, pdl
from sapwood.kernels.triton.few import Setting
from sapwood.kernels.triton.fused import KERNELS

NUM_THREADS = 16  # that compile kernels

TOKENS = (1, 2, 4, 8, 16, 32, 256)
MOST_FEW = 32  # tokens of the few-token product
SWEPT_TOKENS = (1, 4, 16)
SUMS = [
    Setting(False, *rest)
    for rest in (
        (2, 1024, 4, 2), (4, 512, 2, 1), (4, 512, 2, 4), (4, 1024, 4, 1), (4, 1024, 4, 3), (8, 512, 4, 1),
        (8, 512, 4, 3), (8, 1024, 8, 1), (16, 256, 4, 4),
    )
]  # fmt: skip
DOTS = [
    Setting(True, *rest)
    for rest in (
        (16, 256, 2, 4), (16, 256, 4, 4), (16, 512, 4, 3), (32, 128, 2, 5), (32, 128, 4, 4), (32, 256, 4, 3),
        (32, 256, 4, 5), (64, 64, 4, 6), (64, 128, 4, 3), (64, 128, 4, 5), (64, 256, 4, 3), (128, 64, 4, 5),
        (128, 128, 8, 3),
    )
]  # fmt: skip
WAYS = {
    "fused with PDL": ("fused", True), "fused without": ("fused", False), "apart with PDL": ("apart", True),
    "library": ("library", True),
}  # fmt: skip
"""Of a chain of products: how each is computed, and whether launches overlap."""


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    qkv: int
    heads: int
    inner: int
    vocabulary: int
    num_layers: int


SHAPES = (
    Shape("llama-8b", 4096, 6144, 4096, 14336, 128256, 8),
    Shape("qwen3-0.6b", 1024, 4096, 2048, 3072, 151936, 28),
)


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
    def hows(num_tokens: int) -> tuple[str, ...]:
        return ("fused", "apart", "library") if num_tokens <= MOST_FEW else ("library",)

    calls = {(part.name, n, how): part.all_layers(how, n) for part in parts for n in TOKENS for how in hows(n)}
    for error in filter(None, compile_all([call for (_, _, how), call in calls.items() if how != "library"])):
        print("failed:", repr(error)[:200])
    for part, n in itertools.product(parts, TOKENS):
        times = {how: seconds(calls[part.name, n, how]) / len(part.weights) for how in hows(n)}
        us = {how: f"{time * 1e6:.1f}" for how, time in times.items()}
        rates = {how: part.nbytes / time / 1e9 for how, time in times.items()}
        fused = [us["fused"], f"{rates['fused']:.0f}", f"{rates['fused'] / copied:.0%}"] if "fused" in us else [""] * 3
        yield f"{part.name}, {n} tokens", [*fused, us.get("apart", ""), us["library"], f"{rates['library']:.0f}"]


def measure_chains(parts: Sequence[Product], shape: Shape) -> Iterator[tuple[str, Iterator[str]]]:
    nbytes = sum(part.nbytes for part in parts[:-1])

    def cells(num_tokens: int) -> Iterator[str]:
        for how, early in WAYS.values():
            with mock.patch.object(pdl, "supported", pdl.supported if early else lambda device: False):
                time = seconds(chain(parts, shape, num_tokens, how)) / shape.num_layers
            yield f"{time * 1e6:.1f} ({nbytes / time / 1e9:.0f})"

    return ((f"{n} tokens", cells(n)) for n in (1, 4, 16, 32))


def measure_neighbours(shape: Shape, copied: float) -> Iterator[tuple[str, list[str]]]:
    """The kernels between large products, in GB/s of what they read and write."""
    weight = torch.ones(shape.hidden, device=DEVICE)
    for n in (1, 16, 256, 2048, 8192):
        x, residual = torch.randn(2, n, shape.hidden, device=DEVICE, dtype=DTYPE)
        inner = torch.randn(n, 2 * shape.inner, device=DEVICE, dtype=DTYPE)
        norm = lambda x=x, residual=residual: KERNELS.add_rms_norm(x, residual, weight, 1e-5)  # noqa: E731
        gate = lambda inner=inner: KERNELS.gated(inner, "silu")  # noqa: E731
        cells = []
        for call, nbytes in ((norm, 4 * x.nbytes), (gate, 3 * inner.nbytes // 2)):
            # Several calls a graph, so that the launch of the graph is not what is measured.
            time = seconds(lambda call=call: [call() for _ in range(8)]) / 8
            cells += [f"{time * 1e6:.1f}", f"{nbytes / time / 1e9:.0f}", f"{nbytes / time / 1e9 / copied:.0%}"]
        yield f"{n} tokens", cells


def sweep(parts: Sequence[Product]) -> list[str]:
    """The best setting of each product and number of tokens, as rows for the table in few.py."""
    cases = [(part, n, cut) for part in parts for n in SWEPT_TOKENS for cut in ((*SUMS, *DOTS) if n == 1 else DOTS)]
    calls = [part.all_layers("fused", n, cut) for part, n, cut in cases]
    # Tokens from 2 to 16 share a kernel.
    once = {(part.name, n == 1, cut): call for (part, n, cut), call in zip(cases, calls, strict=True)}
    failures = dict(zip(once, compile_all(list(once.values())), strict=True))
    times: dict[tuple[str, int], list[tuple[float, Setting]]] = {}
    for (part, n, cut), call in zip(cases, calls, strict=True):
        if failures[part.name, n == 1, cut] is None:
            times.setdefault((part.name, n), []).append((seconds(call, repeats=5) / len(part.weights), cut))
    rows = []
    for part in parts:
        ranked = {n: sorted(times[part.name, n]) for n in SWEPT_TOKENS}
        for n, found in ranked.items():
            best = [f"{part.nbytes / time / 1e9:.0f} {'dot' if cut.dot else 'sum'}{cut[1:]}" for time, cut in found[:6]]
            print(f"{part.name:8} {n:3} tokens:", *best, f"... {part.nbytes / found[-1][0] / 1e9:.0f}", sep="  ")
        table = ", ".join(f"{n}: Setting{tuple(found[0][1])}" for n, found in ranked.items())
        rows.append(f"    {tuple(part.weights[0].shape)}: {{{table}}},  # {part.name}")
    for error in {repr(error)[:120] for error in failures.values() if error is not None}:
        print("not possible:", error)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--sweep", action="store_true", help="try settings and print the best")
    parser.add_argument("--shape", choices=[shape.name for shape in SHAPES], help="one model's shape instead of all")
    asked = parser.parse_args()
    copied = copy_rate()
    print(f"{torch.cuda.get_device_name()}: copy {copied:.0f} GB/s")
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
