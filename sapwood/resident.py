"""What may be done to a model besides asking it: give it other weights, and let it sleep."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sapwood.base.errors import EngineDead, ModelError
from sapwood.base.weights import Given, Level

if TYPE_CHECKING:
    import torch

    from sapwood.engine.client import AsyncEngine
    from sapwood.engine.loop import Engine
    from sapwood.engine.replicas import Replicas

    Tensors = Iterable[tuple[str, torch.Tensor]] | Mapping[str, torch.Tensor] | str | Path
    """Tensors by the names of the model's checkpoint (a `state_dict()`, or pairs), or where they lie: a directory of all, or one
    safetensors file of some."""

_SHARED = Path("/dev/shm")


class Resident:
    """A model in this process."""

    _engine: Engine

    def update_weights(
        self, weights: Tensors, *, version: str | None = None, checksums: Mapping[str, str] | None = None
    ) -> str:
        """Put other weights in the place of the model's, which are those of all tensors that are given; the others stay. Returns what
        they are called from then on: `version`, or a number.

        Tensors go through shared memory, where all of them lie before any is taken: that takes as much host memory as they have bytes.
        `checksums` are SHA-256 of some tensors' bytes, in hexadecimal. Raises ModelError where they do not fit, and nothing has changed
        then; EngineDead where an update has failed midway, and the model is of no more use.
        """
        from sapwood.engine.loop import DeviceLost

        with _given(weights, checksums) as given:
            about = msgspec.structs.asdict(given) | {"version": version}
            try:
                return _version(self._engine.control("update_weights", about))
            except DeviceLost as error:
                raise EngineDead(str(error)) from error

    def sleep(self, level: Level = 1) -> None:
        """Give back the memory that weights and cache take: weights go to the host's memory at level 1, and are read again when the model
        is woken at level 2. Raises ModelError at level 2 for weights that no file has."""
        _checked(self._engine.control("sleep", {"level": level}))

    def wake_up(self) -> None:
        """Take it again; what was cached is not."""
        _checked(self._engine.control("wake_up"))


class AsyncResident:
    """A model beside this process. What runs meanwhile waits, and goes on behind what has been said."""

    engine: AsyncEngine | Replicas

    async def update_weights(
        self, weights: Tensors, *, version: str | None = None, checksums: Mapping[str, str] | None = None
    ) -> str:
        """See `LLM.update_weights`. What runs goes on with the new weights, which compute anew what has been said. After an update that
        failed midway the engine is started again with the weights of its start. Tensors are asked for and written in a thread."""
        with ExitStack() as stack:
            given = await asyncio.to_thread(stack.enter_context, _given(weights, checksums))
            about = msgspec.structs.asdict(given) | {"version": version}
            return _version(await self.engine.control("update_weights", about))

    async def sleep(self, level: Level = 1) -> None:
        """See `LLM.sleep`."""
        _checked(await self.engine.control("sleep", {"level": level}))

    async def wake_up(self) -> None:
        """See `LLM.wake_up`."""
        _checked(await self.engine.control("wake_up"))


def _checked(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    if why := answer.get("error"):
        raise ModelError(why)
    return answer


def _version(answer: Mapping[str, Any]) -> str:
    return str(_checked(answer)["weight_version"])


@contextmanager
def _given(weights: Tensors, checksums: Mapping[str, str] | None) -> Iterator[Given]:
    """Where weights lie, or are written to for as long as the context lasts."""
    checksums = dict(checksums or {})
    if isinstance(weights, str | Path):
        yield Given(path=str(weights), whole=Path(weights).is_dir(), checksums=checksums)
        return
    with tempfile.TemporaryDirectory(prefix="sapwood-", dir=_SHARED if _SHARED.is_dir() else None) as folder:
        from sapwood.nn.renew import store_all

        store_all(map(_pair, weights.items() if isinstance(weights, Mapping) else weights), Path(folder))
        yield Given(path=folder, whole=False, checksums=checksums)


def _pair(given: Any) -> tuple[str, torch.Tensor]:
    """Raises ModelError for what is no name with a tensor."""
    import torch

    match given:
        case (str() as name, torch.Tensor() as tensor):
            return name, tensor
    raise ModelError(
        f"weights are a path, a map of names to tensors such as a state_dict(), or pairs (name, tensor); among them is {type(given).__name__}."
    )
