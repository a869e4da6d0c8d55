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
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from sapwood.kernels import Activation, RmsNorm
from sapwood.kernels.triton import few, pdl
from sapwood.kernels.triton.few import Setting
from sapwood.kernels.triton.fused import KERNELS

DEVICE, DTYPE = torch.device("cuda"), torch.bfloat16
NUM_THREADS = 16  # that compile kernels

TOKENS = (1, 2, 4, 8, 16, 32, 256)
SWEPT_TOKENS = (1, 4, 16)
SUMS = tuple(
    Setting(False, rows, depth, warps, stages)
    for rows, depth, warps, stages in (
        (2, 1024, 4, 2), (4, 512, 2, 1), (4, 512, 2, 4), (4, 1024, 4, 1), (4, 1024, 4, 3), (8, 512, 4, 1),
        (8, 512, 4, 3), (8, 1024, 8, 1), (16, 256, 4, 4),
    )
)  # fmt: skip
DOTS = tuple(
    Setting(True, rows, depth, warps, stages)
    for rows, depth, warps, stages in (
        (16, 256, 2, 4), (16, 256, 4, 4), (16, 512, 4, 3), (32, 128, 2, 5), (32, 128, 4, 4), (32, 256, 4, 3),
        (32, 256, 4, 5), (64, 64, 4, 6), (64, 128, 4, 3), (64, 128, 4, 5), (64, 256, 4, 3), (128, 64, 4, 5),
        (128, 128, 8, 3),
    )
)  # fmt: skip


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
    """One product of every layer, on inputs of its own."""

    name: str
    weights: Sequence[Tensor]
    norm: RmsNorm | None = None
    activation: Activation | None = None

    def inputs(self, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """x and, with a norm, a residual."""
        both = torch.randn(2, num_tokens, self.weights[0].shape[1], device=DEVICE, dtype=DTYPE)
        return both[0], None if self.norm is None else both[1]

    def fused(self, num_tokens: int, cut: Setting | None = None) -> Callable[[], None]:
        x, residual = self.inputs(num_tokens)

        def call() -> None:
            for weight in self.weights:
                few.product(x, weight, None, self.norm, residual, self.activation, cut)

        return call

    def apart(self, num_tokens: int, *, library: bool) -> Callable[[], None]:
        x, residual = self.inputs(num_tokens)
        activation = self.activation if library else None

        def call() -> None:
            for weight in self.weights:

                def product(x: Tensor, weight: Tensor = weight) -> Tensor:
                    return (
                        F.linear(x, weight) if library else few.product(x, weight, None, None, None, self.activation)[0]
                    )

                KERNELS.around(product, x, self.norm, residual, activation)

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
    x0, _ = parts[0].inputs(num_tokens)

    def linear(part: Product, layer: int, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        weight = part.weights[layer]
        if how == "fused":
            return few.product(x, weight, None, part.norm, residual, part.activation)
        if how == "apart":
            run = lambda x: few.product(x, weight, None, None, None, part.activation)[0]  # noqa: E731
            return KERNELS.around(run, x, part.norm, residual, None)
        return KERNELS.around(lambda x: F.linear(x, weight), x, part.norm, residual, part.activation)

    def call() -> None:
        qkv, out, gate_up, down, _ = parts
        x, residual = x0, None
        for layer in range(shape.num_layers):
            heads, residual = linear(qkv, layer, x, residual)
            x, _ = linear(out, layer, heads[:, : shape.heads], None)
            x, residual = linear(gate_up, layer, x, residual)
            x, _ = linear(down, layer, x, None)

    return call


def seconds(call: Callable[[], object], *, repeats: int = 9) -> float:
    """Median time of one call, from replays of a graph of it."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times = []
    for _ in range(repeats):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after) / 1e3)
    return statistics.median(times[1:])


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


def measure_products(parts: Sequence[Product], copied: float) -> None:
    few_tokens = [num_tokens for num_tokens in TOKENS if num_tokens <= 32]
    calls = {(part.name, n): (part.fused(n), part.apart(n, library=False)) for part in parts for n in few_tokens}
    failures = compile_all([call for pair in calls.values() for call in pair])
    for error in filter(None, failures):
        print("failed:", repr(error)[:200])
    print("product  tokens  fused us  GB/s  of copy   apart us  library us  library GB/s")
    for part in parts:
        number = len(part.weights)
        for n in TOKENS:
            library = seconds(part.apart(n, library=True)) / number
            last = f"{library * 1e6:11.1f} {part.nbytes / library / 1e9:13.0f}"
            if (part.name, n) in calls:
                fused, apart = (seconds(call) / number for call in calls[part.name, n])
                rate = part.nbytes / fused / 1e9
                first = f"{fused * 1e6:9.1f} {rate:5.0f} {rate / copied:8.0%} {apart * 1e6:10.1f}"
            else:
                first = " " * 35
            print(f"{part.name:8} {n:6} {first} {last}")


def measure_chains(parts: Sequence[Product], shape: Shape, copied: float) -> None:
    print(f"chain of {shape.num_layers} layers, us per layer (GB/s of the weights)")
    print("tokens      fused with PDL        fused without      apart with PDL             library")
    nbytes = sum(part.nbytes for part in parts[:-1])
    for n in (1, 4, 16, 32):
        cells = []
        for how, early in (("fused", True), ("fused", False), ("apart", True), ("library", True)):
            with mock.patch.object(pdl, "supported", pdl.supported if early else lambda device: False):
                time = seconds(chain(parts, shape, n, how)) / shape.num_layers
            cells.append(f"{time * 1e6:10.1f} ({nbytes / time / 1e9:5.0f})")
        print(f"{n:6}   ", "  ".join(cells))
    print(f"       at the speed of a copy: {nbytes / copied / 1e3:.1f} us")


def measure_neighbours(shape: Shape, copied: float) -> None:
    """The kernels between large products, in GB/s of what they read and write."""
    weight = torch.ones(shape.hidden, device=DEVICE)
    print("tokens   add_rms_norm us  GB/s   gated us  GB/s    (of copy)")
    for n in (1, 16, 256, 2048, 8192):
        cells = []
        x, residual = torch.randn(2, n, shape.hidden, device=DEVICE, dtype=DTYPE)
        inner = torch.randn(n, 2 * shape.inner, device=DEVICE, dtype=DTYPE)
        # Several calls a graph, so that the launch of the graph is not what is measured.
        norms = lambda x=x, r=residual: [KERNELS.add_rms_norm(x, r, weight, 1e-5) for _ in range(8)]  # noqa: E731
        gates = lambda inner=inner: [KERNELS.gated(inner, "silu") for _ in range(8)]  # noqa: E731
        for call, nbytes in ((norms, 4 * x.nbytes), (gates, 3 * inner.nbytes // 2)):
            time = seconds(call) / 8
            cells.append(f"{time * 1e6:10.1f} {nbytes / time / 1e9:7.0f} {nbytes / time / 1e9 / copied:5.0%}")
        print(f"{n:6}  ", "   ".join(cells))


def sweep(parts: Sequence[Product]) -> list[str]:
    """The best setting of each product and number of tokens, as rows for the table in few.py."""
    cases = [(part, n, cut) for part in parts for n in SWEPT_TOKENS for cut in ((*SUMS, *DOTS) if n == 1 else DOTS)]
    calls = [part.fused(n, cut) for part, n, cut in cases]
    # Tokens from 2 to 16 share a kernel.
    once = {(part.name, n == 1, cut): call for (part, n, cut), call in zip(cases, calls, strict=True)}
    failures = dict(zip(once, compile_all(list(once.values())), strict=True))
    times: dict[tuple[str, int], list[tuple[float, Setting]]] = {}
    for (part, n, cut), call in zip(cases, calls, strict=True):
        if failures[part.name, n == 1, cut] is None:
            times.setdefault((part.name, n), []).append((seconds(call, repeats=6) / len(part.weights), cut))
    rows = []
    for part in parts:
        best = {}
        for n in SWEPT_TOKENS:
            ranked = sorted(times[part.name, n])
            best[n] = ranked[0][1]
            print(f"{part.name:8} {n:3} tokens:", end=" ")
            for time, cut in ranked[:6]:
                print(f"{part.nbytes / time / 1e9:.0f} {'dot' if cut.dot else 'sum'}{tuple(cut[1:])}", end="  ")
            print(f"... {part.nbytes / ranked[-1][0] / 1e9:.0f}")
        outputs, inputs = part.weights[0].shape
        table = ", ".join(f"{n}: Setting{tuple(cut)}" for n, cut in best.items())
        rows.append(f"    ({outputs}, {inputs}): {{{table}}},  # {part.name}")
    for error in {repr(error)[:120] for error in failures.values() if error is not None}:
        print("not possible:", error)
    return rows


def copy_rate() -> float:
    """GB/s of a large copy."""
    source = torch.randn(1 << 28, device=DEVICE, dtype=DTYPE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e9


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
        print(f"\n{shape.name}")
        parts = products(shape)
        if asked.sweep:
            rows += sweep(parts)
        else:
            measure_products(parts, copied)
            measure_chains(parts, shape, copied)
            measure_neighbours(shape, copied)
        del parts
    if rows:
        print("\n" + "\n".join(rows))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
