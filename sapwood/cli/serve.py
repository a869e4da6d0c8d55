"""`sapwood serve`: the HTTP front in this process, the engine in another."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
from time import perf_counter
from typing import TYPE_CHECKING

from sapwood.base.errors import EngineDead
from sapwood.config.flags import add_flags, from_args

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from sapwood.base.wire import Facts
    from sapwood.catalogue import Catalogue
    from sapwood.config import Config
    from sapwood.engine.client import AsyncEngine
    from sapwood.engine.replicas import Replicas
    from sapwood.engine.spawn import Child
    from sapwood.hub.about import About
    from sapwood.hub.files import ModelFiles
    from sapwood.images.gallery import Cabinet
    from sapwood.server.door import Door
    from sapwood.text import TextModel

HELP = "serve a model over HTTP (OpenAI's API and the native one)"

DEAD_SECONDS = 10.0
"""How long a server without an engine stays, so that whoever asks /health learns why before it exits."""

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser, several=True)


def run(args: argparse.Namespace) -> int:
    from sapwood.cli import house

    return house.run(args) if house.wanted(args) else _run(args)


def _run(args: argparse.Namespace) -> int:
    from sapwood.engine import interrupts, lean
    from sapwood.engine.spawn import spawn

    began = perf_counter()
    config = from_args(args)
    lean.begin()
    with interrupts.by_sigterm(), contextlib.ExitStack() as stack:
        # They import beside us, and take longer.
        children = [stack.enter_context(spawn()) for _ in range(_num_engines(config))]
        from sapwood.catalogue import joined
        from sapwood.observe.log import set_up_logging
        from sapwood.server import bind
        from sapwood.server import run as run_loop
        from sapwood.server.auth import Guard
        from sapwood.server.store import Store

        set_up_logging(config.server.log_level, format=config.server.log_format)
        Guard(config.server)  # keys that cannot be used are an error now, not after the model was loaded
        with bind(config) as door:  # so is a port in use
            Store(config.server.state_dir, most_bytes=config.server.state_bytes).close()  # and a directory
            catalogue = joined()
            for plugin, why in catalogue.unknown:
                log.warning("%s is not used: %s", plugin.point.value, why)
            files = find(config, catalogue)
            run_loop(_serve(door, config, files, catalogue, children, began))
    return 0


def _num_engines(config: Config) -> int:
    """How many processes there will be; what is wrong with the number is told by one of them."""
    options = config.parallel
    return max(options.data_parallel_size, 1) if options.data_parallel_rank is None else 1


def find(config: Config, catalogue: Catalogue) -> ModelFiles:
    """The model's files, fetched if need be."""
    from sapwood.cli.terminal import pull_progress
    from sapwood.hub.files import find_configured

    with pull_progress() as progress:
        return find_configured(config.model, families=catalogue.families, progress=progress)


async def _serve(
    door: Door, config: Config, files: ModelFiles, catalogue: Catalogue, children: Sequence[Child], began: float
) -> None:
    """Raises EngineDead if the engine ends on its own, and what is wrong with the text side as soon as it is known."""
    import asyncio

    from sapwood.engine.tasks import end

    loading = asyncio.create_task(asyncio.to_thread(load, config, files, catalogue))
    serving = asyncio.create_task(_with_engine(door, config, files, loading, children, began))
    try:
        await asyncio.wait([loading, serving], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            loading.result()
        await serving
    finally:
        await end(loading, serving)  # of what both raise, one is told


async def _with_engine(
    door: Door,
    config: Config,
    files: ModelFiles,
    loading: asyncio.Task[tuple[TextModel, About, Cabinet | str]],
    children: Sequence[Child],
    began: float,
) -> None:
    import asyncio
    from contextlib import AsyncExitStack

    from sapwood.engine import lean
    from sapwood.engine.replicas import start
    from sapwood.observe.observer import traces_to
    from sapwood.server import create_app, serve
    from sapwood.server.starting import starting

    names = config.model.served_model_name or (files.name,)
    traces = traces_to(config.server.otlp_traces_endpoint, model=names[0])
    async with AsyncExitStack() as until_ready, AsyncExitStack() as stack:
        await until_ready.enter_async_context(starting(door))
        engine = await stack.enter_async_context(start(config, children))
        text, about, gallery = await loading
        engine.end_at(text.eos_ids)
        app = create_app(
            engine,
            text,
            config,
            names,
            defaults=files.generation_config,
            traces=traces,
            about=about,
            gallery=gallery,
        )
        lean.trim()
        await until_ready.aclose()
        serving = asyncio.create_task(
            serve(
                app,
                config,
                door=door,
                on_ready=lambda url: _announce(url, names[0], engine.facts, began, keyed=app.state.front.guard.keyed),
            )
        )
        try:
            await _until_over(serving, engine)
        finally:
            await app.state.front.close()


def load(config: Config, files: ModelFiles, catalogue: Catalogue) -> tuple[TextModel, About, Cabinet | str]:
    """What the front needs of the model."""
    from sapwood.arch.families import declare
    from sapwood.arch.foreign import is_foreign
    from sapwood.arch.sight import unseeing
    from sapwood.hub.about import about
    from sapwood.images.gallery import gallery_of
    from sapwood.text import TextModel

    foreign = is_foreign(config.model.model_impl, files.config, catalogue.families)
    decoder = None if foreign else declare(files.config, catalogue.families, methods=catalogue.methods)
    text = TextModel.configured(files, config.model, catalogue.formats)
    decoder = unseeing(decoder) if decoder is not None and config.sight.language_model_only else decoder
    tower = None if decoder is None else decoder.encoder
    return text, about(files, decoder), gallery_of(files, tower, text, config)


def _announce(url: str, name: str, facts: Facts, began: float, *, keyed: bool) -> None:
    from sapwood.cli.terminal import console, print_decisions

    out = console()
    print_decisions(out, facts.decisions)
    if not facts.decisions:
        out.print(f"{facts.device}, {facts.dtype}, attention: {facts.attention_backend}")
    out.print(f"ready at {url} ({name}) in {perf_counter() - began:.1f} s", markup=False, soft_wrap=True)
    key = " -H 'Authorization: Bearer YOUR_KEY'" if keyed else ""
    out.print(
        f"try: curl {_for_curl(url)}{_first(name, facts)}{key}",
        style="dim",
        markup=False,
        soft_wrap=True,
    )


def _first(name: str, facts: Facts) -> str:
    """A request that the model answers."""
    if facts.reading is not None and facts.reading.kind == "audio":
        return "/v1/audio/transcriptions -F file=@recording.mp3"
    route, asked = "/v1/chat/completions", dict[str, object](messages=[{"role": "user", "content": "Hello!"}])
    if facts.reading is not None:
        route, asked = "/v1/completions", {"prompt": "Hello!"}
    elif "generate" not in facts.tasks:
        route, asked = "/v1/embeddings", {"input": "Hello!"}
    return f"{route} -H 'Content-Type: application/json' -d '{json.dumps({'model': name} | asked)}'"


def _for_curl(url: str) -> str:
    kind, _, path = url.partition(":")
    return f"--unix-socket {path} http://localhost" if kind == "unix" else url


async def _until_over(serving: asyncio.Task[None], engine: AsyncEngine | Replicas) -> None:
    """Wait until the server was told to stop, or for a while after its engine has died for good."""
    import asyncio

    from sapwood.engine.tasks import end

    lost = asyncio.create_task(engine.lost.wait())
    try:
        await asyncio.wait([serving, lost], return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            return serving.result()
        log.error("the engine has ended: %s; exiting in %g s", engine.dead, DEAD_SECONDS)
        await asyncio.wait([serving], timeout=DEAD_SECONDS)
        raise EngineDead(f"the engine has ended: {engine.dead}")
    finally:
        await end(serving, lost)
