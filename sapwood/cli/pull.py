"""`sapwood pull`: bring a model into the local cache."""

from __future__ import annotations

import argparse

HELP = "bring a model into the local cache, or list what there is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a short name or a hub id; without it, the models are listed")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")


def run(args: argparse.Namespace) -> int:
    from sapwood.cli.terminal import pull_progress
    from sapwood.hub.pull import pull

    if args.model is None:
        _list()
        return 0
    with pull_progress() as progress:
        path = pull(args.model, revision=args.revision, progress=progress)
    print(path)
    return 0


def _list() -> None:
    from sapwood.cli.terminal import console, print_rows
    from sapwood.config.resolve import gib
    from sapwood.hub.cache import Cache
    from sapwood.hub.catalog import CATALOG

    cached = {model.name: model for model in Cache.default().models()}
    rows = [
        (model.name, gib(model.size), "cached" if model.name in cached else "-", f"{model.about} ({model.licence})")
        for model in CATALOG
    ]
    known = {model.name for model in CATALOG}
    rows += [
        (model.name, gib(model.size), "cached", str(model.path)) for model in cached.values() if model.name not in known
    ]
    out = console()
    print_rows(out, rows, header=("name", "size", "state", "what it is"))
    out.print("A hub id (organisation/name) can be pulled too.")
