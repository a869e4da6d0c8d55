"""What a format of weights, or of keys and values, costs in quality: KL divergence and perplexity on a text.

    python bench/accuracy.py                             the small real model as shipped
    python bench/accuracy.py --model PATH                another, a directory or a GGUF file
    python bench/accuracy.py --against PATH ...          checkpoints of the same model that are quantised already

The reference is the model's own weights in float32, with keys and values in float32, by PyTorch. KL divergence is the mean over the
text's tokens, in nats, of what the reference thinks of the next token from what the format thinks. Weights are rounded while they load,
the nearest value each, without calibration. The rows of weights and of keys and values change nothing else.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cpu
import torch
from torch import Tensor

from sapwood.arch import Decoder, declare
from sapwood.arch.groups import kv_groups
from sapwood.attention.base import Batch, RowLimits
from sapwood.attention.native import Native
from sapwood.attention.reference import Reference
from sapwood.base.kv import KVGroup
from sapwood.hub.files import ModelFiles, open_files
from sapwood.kernels.cpu import library
from sapwood.kernels.cpu.library import Machine
from sapwood.nn.build import Build, build
from sapwood.nn.load import load_weights
from sapwood.nn.native import NativeModel
from sapwood.quant import methods
from sapwood.quant.base import Choice, everywhere
from sapwood.quant.methods import METHODS
from sapwood.quant.packed import Packed
from sapwood.quant.plain import Plain
from sapwood.quant.repacked import repacked
from sapwood.quant.rounding import rounding
from sapwood.text import TextModel

TEXT = Path(__file__).parents[1] / "tests" / "quant" / "text.txt"
SCHEMES = ("fp8", "int8", "int4", "nvfp4")
PAGE, CPU, PLAIN = 16, torch.device("cpu"), everywhere(Plain())

Compute = Callable[[], Tensor]
MakeBackend = Callable[[KVGroup, int, torch.device], Any]
CELLS: dict[str, MakeBackend] = {
    "float16": lambda *where: Reference(*where, torch.float16),
    "bfloat16": lambda *where: Reference(*where, torch.bfloat16),
    "fp8_e4m3, no scales": lambda *where: Reference(*where, torch.float8_e4m3fn),
    "fp8_per_token_head": lambda *where: Reference(*where, torch.float8_e4m3fn, scaled=True),
    "int8": lambda *where: Reference(*where, torch.int8, scaled=True),
}
"""Formats of keys and values. What another backend keeps in one is the same but for the order of sums."""


class Quality(NamedTuple):
    perplexity: float
    divergence: float

    def __str__(self) -> str:
        return f"{self.perplexity:8.3f} | {self.divergence:.5f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="instead of the small real one")
    parser.add_argument("--against", nargs="+", default=[], help="quantised checkpoints of the same model")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name has one of these in it")
    parser.add_argument("--tokens", type=int, default=512, help="of the text, at most")
    args = parser.parse_args()
    path = Path(args.model) if args.model else cpu.model()
    files = opened(path)
    tokens = TextModel.load(files).encode(TEXT.read_text(encoding="utf-8"))[: args.tokens]
    reference_NV = by_pytorch(files, PLAIN, tokens).log_softmax(dim=-1)
    print(f"| {path.stem}, {len(tokens)} tokens | perplexity | KL divergence |\n| --- | --- | --- |")
    for name, compute in variants(files, args.against, tokens):
        if any(only in name for only in args.only):
            print(f"| {name} | {quality(compute().log_softmax(dim=-1), reference_NV, tokens)} |", flush=True)
    return 0


def variants(files: ModelFiles, against: Sequence[str], tokens: Sequence[int]) -> Iterator[tuple[str, Compute]]:
    yield "float32, by PyTorch", partial(by_pytorch, files, PLAIN, tokens)
    yield "weights as stored, by the CPU kernels", partial(by_kernels, files, PLAIN, tokens)
    for scheme in SCHEMES:
        yield f"weights in {scheme}", partial(by_kernels, files, rounding(scheme, PLAIN), tokens)
    for path in map(Path, against):
        other = opened(path)
        choice = methods.of(declare(other.config, methods=METHODS).quantization, PLAIN)
        yield f"{path.name}, by the CPU kernels", partial(by_kernels, other, choice, tokens)
    for name, make in CELLS.items():
        yield f"keys and values in {name}", partial(by_pytorch, files, PLAIN, tokens, make)
    for scheme in ("fp8", "int8"):
        yield f"weights and their inputs in {scheme}", partial(by_pytorch, files, rounding(scheme, PLAIN), tokens)


def opened(path: Path) -> ModelFiles:
    return open_files(path, name=path.name)


def quality(found_NV: Tensor, reference_NV: Tensor, tokens: Sequence[int]) -> Quality:
    """Of log-probabilities of all tokens but the first, given those before."""
    next_N = torch.tensor(tokens[1:])
    chosen_N = found_NV[:-1].gather(1, next_N[:, None])
    divergence_N = (reference_NV[:-1].exp() * (reference_NV[:-1] - found_NV[:-1])).sum(dim=-1)
    return Quality(math.exp(-float(chosen_N.mean())), float(divergence_N.mean()))


# -- models ------------------------------------------------------------------------------------------------------------


def plain_cells(group: KVGroup, index: int, device: torch.device) -> Reference:
    return Reference(group, index, device, torch.float32)


@torch.inference_mode()
def by_pytorch(files: ModelFiles, choice: Choice, tokens: Sequence[int], cells: MakeBackend = plain_cells) -> Tensor:
    decoder = declare(files.config, methods=METHODS)
    backends = started(decoder, cells, len(tokens))
    model = build(decoder, Build(device=CPU, dtype=torch.float32, backends=backends, method=choice))
    return logits(model, files, backends, tokens)


@torch.inference_mode()
def by_kernels(files: ModelFiles, choice: Choice, tokens: Sequence[int]) -> Tensor:
    decoder, found = declare(files.config, methods=METHODS), library.find()
    assert not isinstance(found, str), found
    machine = Machine(found, torch.get_num_threads())
    make = partial(Native, dtype=torch.float32, machine=machine)
    backends = started(decoder, make, len(tokens))
    model = NativeModel(decoder, backends, machine, repacked(choice, Packed(machine)))
    return logits(model, files, backends, tokens)


def started(decoder: Decoder, cells: MakeBackend, num_tokens: int) -> list[Any]:
    backends = [cells(group, index, CPU) for index, group in enumerate(kv_groups(decoder, PAGE))]
    for backend in backends:
        backend.allocate(-(-num_tokens // PAGE) + 1)
    return backends


def logits(model: Any, files: ModelFiles, backends: Sequence[Any], tokens: Sequence[int]) -> Tensor:
    """float32 of every token."""
    load_weights(model, files)
    num_pages = -(-len(tokens) // PAGE)
    positions_T = torch.arange(len(tokens))
    zero, count = torch.zeros(1, dtype=torch.int32), torch.tensor([len(tokens)], dtype=torch.int32)
    batch = Batch(
        ids_T=torch.tensor(tokens),
        positions_T=positions_T,
        slots_R=zero,
        starts_R=zero,
        counts_R=count,
        offsets_R1=torch.cat([zero, count]),
        tables_GSP=[torch.arange(1, num_pages + 1, dtype=torch.int32)[None]] * len(backends),
        cells_GT=[positions_T + PAGE] * len(backends),
        limits=RowLimits(decodes=0, spans=1),
    )
    for backend in backends:
        backend.plan(batch)
    return model.logits(model(batch)).float()


if __name__ == "__main__":
    raise SystemExit(main())
