"""Adapters as the server has them: by name, loaded and unloaded while it runs, from a directory that is watched if there is one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

import anyio.to_thread

from sapwood.adapters.registry import Known, Registry
from sapwood.base.errors import ModelError, RequestError, SapwoodError
from sapwood.config import Config
from sapwood.engine.client import EngineClient
from sapwood.engine.tasks import end
from sapwood.hub.adapters import CONFIG, WEIGHTS, is_adapter

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.02  # between two looks at whether the engine has read an adapter
_WATCH_SECONDS = 2.0  # between two looks at the directory

Stamp = tuple[float, int, float, int]
"""When the two files of an adapter were changed last, and their sizes."""


class Adapters:
    """Those of one server whose model has these names. Raises ConfigError for one of the configuration's that cannot be read."""

    def __init__(self, engine: EngineClient, config: Config, model_names: tuple[str, ...]) -> None:
        self._engine, self._names = engine, model_names
        self.registry = Registry(config, engine.facts.max_lora_rank)
        for known in self.registry:
            self._check_name(known.name)
        self._loading = asyncio.Lock()
        self._folder = Path(config.adapters.lora_dir) if config.adapters.lora_dir else None
        self._seen: dict[str, Stamp] = {}  # of the watched directory, by name
        self._unread = ""  # why the directory could not be read when it was looked at last
        self._watching: asyncio.Task[None] | None = None

    def find(self, name: str) -> Known | None:
        """That of the name, or of a model's name and its own with a colon between."""
        found = self.registry.get(name)
        base, colon, rest = name.partition(":")
        return self.registry.get(rest) if found is None and colon and base in self._names else found

    def named(self, name: str, param: str) -> Known:
        """The same. Raises RequestError (404) if there is none."""
        if (found := self.find(name)) is None:
            known = ", ".join(repr(one.name) for one in self.registry) or "none"
            raise RequestError(
                f"The adapter {name!r} does not exist; this server has {known}.",
                param=param,
                status=404,
                code="model_not_found",
            )
        return found

    async def load(self, name: str, path: str, *, again: bool = False) -> Known:
        """Load the adapter in a directory under a name, that of another only if `again`; requests of the other go on with it.

        Returns when the engine could begin with it. Raises RequestError, naming the field.
        """
        self._check_enabled()
        self._check_name(name)
        async with self._loading:
            if not again and self.registry.get(name) is not None:
                raise RequestError(
                    f"The adapter {name!r} is loaded already; unload it, or choose another name.", param="lora_name"
                )
            try:
                known = await anyio.to_thread.run_sync(self.registry.read, name, path)
            except ModelError as error:
                raise RequestError(str(error), param="lora_path") from error
            await self._read(known)
            self.registry.add(known)
        log.info("adapter %s: %s, rank %d", name, known.adapter.path, known.rank)
        return known

    async def _read(self, known: Known) -> None:
        """Have the engine read it."""
        about = {"id": known.adapter.id, "path": known.adapter.path}
        while not (answer := await self._engine.control("adapter", about)).get("loaded"):
            if (error := answer.get("error")) is not None:
                raise RequestError(f"{error}.", param="lora_path")
            await asyncio.sleep(_LOOK_SECONDS)

    async def unload(self, name: str) -> Known:
        """Take no more requests for it; those under way go on. Raises RequestError (404) if there is none."""
        self._check_enabled()
        known = self.named(name, "lora_name")
        self.registry.remove(known.name)
        if all(one.adapter.id != known.adapter.id for one in self.registry):
            await self._engine.control("forget_adapter", {"id": known.adapter.id, "path": known.adapter.path})
        log.info("adapter %s is gone", known.name)
        return known

    def _check_enabled(self) -> None:
        if not self.registry.enabled:
            raise RequestError("This server has no adapters: start it with --enable-lora.", param="lora_name")

    def _check_name(self, name: str) -> None:
        if not name or name in self._names:
            what = "is the model's own" if name else "is empty"
            raise RequestError(f"The adapter's name {what}: choose another.", param="lora_name")

    # -- a directory that is watched ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Load what is in the watched directory, and follow what becomes of it."""
        if self._folder is not None:
            await self.look()
            self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        if self._watching is not None:
            await end(self._watching)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                await self.look()
            except SapwoodError as error:  # the engine is gone for now
                log.warning("the adapters in %s are as they were: %s", self._folder, error)

    async def look(self) -> None:
        """Load what is new in the directory or has changed, and unload what has gone. One that cannot be used is told of once, and so is the
        directory itself."""
        assert self._folder is not None
        try:
            found = await anyio.to_thread.run_sync(_stamps, self._folder)
            self._unread = ""
        except OSError as error:
            if (why := error.strerror or str(error)) != self._unread:
                self._unread = why
                log.warning("--lora-dir %s: %s", self._folder, why)
            if not isinstance(error, FileNotFoundError):
                return
            found = {}
        for name in self._seen.keys() - found.keys():
            del self._seen[name]
            if self.registry.get(name) is not None:
                await self.unload(name)
        for name, stamp in found.items():
            if self._seen.get(name) == stamp:
                continue
            self._seen[name] = stamp
            try:
                await self.load(name, str(self._folder / name), again=True)
            except RequestError as error:
                log.warning("adapter %s: %s", name, error)


def _stamps(folder: Path) -> dict[str, Stamp]:
    """Of all adapters in a directory that have both of their files, by name. Raises OSError if it cannot be read now."""
    found = {}
    for one in sorted(folder.iterdir()):
        with contextlib.suppress(OSError):  # what cannot be looked into, or goes meanwhile, is no adapter
            if is_adapter(one) and (one / WEIGHTS).is_file():
                config, weights = (one / CONFIG).stat(), (one / WEIGHTS).stat()
                found[one.name] = (config.st_mtime, config.st_size, weights.st_mtime, weights.st_size)
    return found
