"""Which adapter each prompt of an `LLM` has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sapwood.adapters.registry import Registry
from sapwood.base.adapter import Adapter
from sapwood.base.errors import ModelError, RequestError
from sapwood.base.wire import Facts
from sapwood.config import Config

Lora = str | Sequence[str | None] | None
"""An adapter's name or its directory, one for all or one each; None: the model as it is."""


class Loras:
    """Adapters by name, those that the configuration names among them, and by directory. Raises ConfigError for one that cannot be read."""

    def __init__(self, config: Config, facts: Facts) -> None:
        self._registry = Registry(config, facts.max_lora_rank)

    def load(self, name: str, path: str) -> None:
        """Know the adapter in a directory, as it is now, under a name. Raises RequestError."""
        self._check()
        try:
            self._registry.add(self._registry.read(name, path))
        except ModelError as error:
            raise RequestError(str(error), param="lora") from error

    def unload(self, name: str) -> None:
        """Know that name no more. Raises RequestError if there is none."""
        if self._registry.remove(name) is None:
            raise self._unknown(name)

    @property
    def names(self) -> list[str]:
        return [known.name for known in self._registry]

    def each(self, lora: Lora, count: int) -> list[Adapter | None]:
        """That of each of so many prompts. Raises RequestError."""
        several = [lora] * count if lora is None or isinstance(lora, str) else list(lora)
        if len(several) != count:
            raise RequestError(f"{count} prompts but {len(several)} adapters.", param="lora")
        return [None if name is None else self._find(name) for name in several]

    def _find(self, name: str) -> Adapter:
        """A directory is read when it is first asked for, and then known by its path."""
        self._check()
        if self._registry.get(name) is None:
            if not Path(name).is_dir():
                raise self._unknown(name)
            self.load(name, name)
        found = self._registry.get(name)
        assert found is not None
        return found.adapter

    def _check(self) -> None:
        if not self._registry.enabled:
            raise RequestError("there are no adapters here: give enable_lora=True.", param="lora")

    def _unknown(self, name: str) -> RequestError:
        known = ", ".join(map(repr, self.names)) or "none"
        return RequestError(
            f"there is no adapter {name!r}, by that name or as a directory; known are {known}.", param="lora"
        )
