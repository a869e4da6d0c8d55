"""`sapwood serve` with several models: the HTTP front in this process, an engine's process for each that is there."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace as changed
from time import perf_counter
from typing import TYPE_CHECKING

from sapwood.base.errors import ConfigError
from sapwood.config.flags import from_options, given, replace
from sapwood.config.house import Resident, residents

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from sapwood.catalogue import Catalogue
    from sapwood.config import Config
    from sapwood.server.auth import Guard
    from sapwood.server.door import Door

log = logging.getLogger(__name__)


def wanted(args: argparse.Namespace) -> bool:
    """Whether a command line asks for several models."""
    return len(args.positional_model) > 1 or bool(given(args).get("models"))


def run(args: argparse.Namespace) -> int:
    from sapwood.engine import interrupts, lean

    began, values = perf_counter(), given(args)
    if args.positional_model and "model" in values and len(args.positional_model) > 1:
        raise ConfigError(f"models are given twice: {', '.join(args.positional_model)} and --model {values['model']}.")
    config = from_options({name: value for name, value in values.items() if name != "model"})
    found = residents(args.positional_model, values)
    most = config.house.max_loaded or len(found)
    shared = [changed(one, config=replace(one.config, "house", max_loaded=most)) for one in found]
    lean.begin()
    with interrupts.by_sigterm():
        from sapwood.catalogue import joined
        from sapwood.observe.log import set_up_logging
        from sapwood.server import bind
        from sapwood.server import run as run_loop
        from sapwood.server.auth import Guard
        from sapwood.server.store import Store

        set_up_logging(config.server.log_level, format=config.server.log_format)
        guard = Guard(config.server)
        with bind(config) as door:
            Store(config.server.state_dir, most_bytes=config.server.state_bytes).close()
            run_loop(_serve(door, config, shared, joined(), guard, most, began))
    return 0


async def _serve(
    door: Door,
    config: Config,
    found: Sequence[Resident],
    catalogue: Catalogue,
    guard: Guard,
    most: int,
    began: float,
) -> None:
    from sapwood.engine import lean
    from sapwood.server import serve
    from sapwood.server.house import House
    from sapwood.server.porch import Porch
    from sapwood.server.starting import starting

    def opened(resident: Resident) -> contextlib.AbstractAsyncContextManager[Starlette]:
        others = [name for one in found if one.fallback in resident.names for name in one.names]
        return _opened(resident, others, catalogue, guard)

    options = config.house
    house = House(found, opened, most=most, sleeps=options.idle == "sleep", wait_seconds=options.wait_seconds)
    porch = Porch(house, config, guard)
    try:
        async with starting(door):
            await house.begin()
        lean.trim()
        await serve(porch, config, door=door, on_ready=lambda url: _announce(url, found, began))
    finally:
        await porch.close()


@contextlib.asynccontextmanager
async def _opened(
    resident: Resident, others: Sequence[str], catalogue: Catalogue, guard: Guard
) -> AsyncIterator[Starlette]:
    """The application of a model, under the names of `others` too, for which it answers where they cannot."""
    import asyncio

    from sapwood.cli.serve import find, load
    from sapwood.engine.replicas import start
    from sapwood.engine.tasks import end
    from sapwood.observe.observer import traces_to
    from sapwood.server import create_app

    config = resident.config
    files = await asyncio.to_thread(find, config, catalogue)
    loading = asyncio.create_task(asyncio.to_thread(load, config, files, catalogue))
    try:
        async with start(config) as engine:
            text, about, gallery = await loading
            engine.end_at(text.eos_ids)
            yield create_app(
                engine,
                text,
                config,
                (*resident.names, *others),
                defaults=files.generation_config,
                traces=traces_to(config.server.otlp_traces_endpoint, model=resident.name),
                about=about,
                gallery=gallery,
                guard=guard,
            )
    finally:
        await end(loading)


def _announce(url: str, found: Sequence[Resident], began: float) -> None:
    from sapwood.cli.terminal import console

    names = ", ".join(one.name for one in found)
    console().print(f"ready at {url} ({names}) in {perf_counter() - began:.1f} s", markup=False, soft_wrap=True)
