"""What adapters are called: names that requests use, each for the files of one directory as they were when it was loaded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sapwood.base.adapter import Adapter
from sapwood.base.errors import ConfigError, ModelError
from sapwood.config import Config
from sapwood.config.adapters import enabled, named
from sapwood.hub.adapters import adapter_id, open_adapter


@dataclass(frozen=True)
class Known:
    """An adapter under its name; `rank` is the largest of its modules, `base` the model that it says it was trained on, `since` when it
    was loaded, in seconds of the epoch."""

    name: str
    adapter: Adapter
    rank: int
    base: str | None
    since: int


class Registry:
    """The adapters of one server or one `LLM`, in the order in which they came: those that the configuration names at first, of up to
    `most` ranks. There are none unless it is `enabled`. Raises ConfigError for one that cannot be read."""

    def __init__(self, config: Config, most: int | None = None) -> None:
        self.enabled = enabled(config)
        self._most = config.adapters.max_lora_rank if most is None else most
        self._known: dict[str, Known] = {}
        for one in named(config.adapters) if self.enabled else ():
            try:
                self.add(self.read(one.name, one.path))
            except ModelError as error:
                raise ConfigError(f"--lora-modules {one.name}={one.path}: {error}") from error

    def __iter__(self) -> Iterator[Known]:
        return iter(tuple(self._known.values()))

    def __len__(self) -> int:
        return len(self._known)

    def get(self, name: str) -> Known | None:
        return self._known.get(name)

    def read(self, name: str, path: str) -> Known:
        """What is to be known of the adapter in a directory; reads all of it. Raises ModelError, saying what is wrong with its files."""
        where = Path(path).expanduser().absolute()
        files = open_adapter(where)
        if self._most is not None and files.rank > self._most:
            raise ModelError(
                f"{where}: its rank is {files.rank}, and there is room for {self._most}. Raise --max-lora-rank."
            )
        return Known(name, Adapter(adapter_id(where), str(where)), files.rank, files.base, int(time.time()))

    def add(self, known: Known) -> None:
        """Know it under its name from now on, in the place of another of that name."""
        self._known[known.name] = known

    def remove(self, name: str) -> Known | None:
        return self._known.pop(name, None)
