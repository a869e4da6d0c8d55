"""`sapwood explain`: what would be decided for a model on this machine, and why; nothing is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sapwood.config.flags import add_flags, from_args

if TYPE_CHECKING:
    from sapwood.arch.parts import Decoder
    from sapwood.config.options import Config
    from sapwood.quant.methods import ReadSection

HELP = "print what would be decided and why, without loading weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    from sapwood.arch.foreign import Foreign
    from sapwood.catalogue import joined
    from sapwood.cli.terminal import console, print_rows, pull_progress
    from sapwood.config.resolve import gib, resolve, token_bytes
    from sapwood.config.speculation import spelled
    from sapwood.config.weights import weight_bytes
    from sapwood.device import probe
    from sapwood.engine.declared import declared
    from sapwood.engine.speculation import draft_of, shape_beside
    from sapwood.hub.files import find_configured

    config, catalogue = spelled(from_args(args)), joined()
    with pull_progress() as progress:
        files = find_configured(config.model, families=catalogue.families, weights=False, progress=progress)
        decoder = declared(config, files, catalogue)
        draft = draft_of(config, decoder, files, catalogue, weights=False, progress=progress)
    model, device = shape_beside(decoder, files, draft, config), probe(config.device.device)
    config, decisions = resolve(config, model, device)
    weights, how = weight_bytes(config, model)
    rows = [
        ("model", decoder.architecture, f"{model.num_parameters / 1e6:.0f}M parameters, {len(decoder.blocks)} layers"),
        ("weights", gib(weights), how),
        ("KV cache", f"{token_bytes(config, model) / 1024:.1f} KiB a token", f"in {config.cache.kv_cache_dtype}"),
    ]
    if draft is not None:
        assert model.draft is not None
        weights, how = weight_bytes(config, model.draft)
        rows.insert(2, ("draft model", gib(weights), f"{model.draft.num_parameters / 1e6:.0f}M parameters, {how}"))
    if not isinstance(decoder, Foreign):
        rows[2:2] = _products(config, decoder, catalogue.methods)
    rows += [(decision.field, decision.shown, decision.reason) for decision in decisions]
    print_rows(console(), rows)
    return 0


def _products(config: Config, decoder: Decoder, methods: Mapping[str, ReadSection]) -> Iterator[tuple[str, str, str]]:
    """What quantised weights are multiplied in. What the CPU's own kernels round themselves, `weights` says already."""
    from sapwood.config.devices import rules_of
    from sapwood.quant.choice import choice_of, told

    on_cpu = rules_of(config.device.device).rounds
    if decoder.quantization is None and (config.model.quantization is None or on_cpu):
        return
    found = told(decoder, choice_of(decoder, config.model.quantization, methods))
    total = sum(count for count, _ in found)
    for count, shown in found:
        yield "products", f"{count} of {total}", shown
    if on_cpu and config.model.dtype == "float32" and config.device.cpu_kernels != "off":
        yield "inputs", config.device.cpu_activations, "the CPU's own kernels round them so, whatever a checkpoint says"
