"""`sapwood explain`: what would be decided for a model on this machine, and why; nothing is loaded."""

from __future__ import annotations

import argparse

from sapwood.config.flags import add_flags, from_args

HELP = "print what would be decided and why, without loading weights"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)


def run(args: argparse.Namespace) -> int:
    from sapwood.arch.families import declare
    from sapwood.catalogue import joined
    from sapwood.cli.terminal import console, print_rows, pull_progress
    from sapwood.config.resolve import gib, resolve, token_bytes, weight_bytes
    from sapwood.config.speculation import spelled
    from sapwood.device import probe
    from sapwood.engine.speculation import draft_of, shape_beside
    from sapwood.hub.files import find_configured

    config, catalogue = spelled(from_args(args)), joined()
    with pull_progress() as progress:
        files = find_configured(config.model, families=catalogue.families, weights=False, progress=progress)
        decoder = declare(files.config, catalogue.families, methods=catalogue.methods)
        draft = draft_of(config, decoder, files, catalogue, weights=False, progress=progress)
    model, device = shape_beside(decoder, files, draft), probe(config.device.device)
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
    rows += [(decision.field, decision.shown, decision.reason) for decision in decisions]
    print_rows(console(), rows)
    return 0
