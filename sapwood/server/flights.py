"""Generations under way, and how to end them from outside."""

from __future__ import annotations

from sapwood.engine.client import Stream


class Flights:
    """Streams with the names that their requests go by."""

    def __init__(self) -> None:
        self._names: dict[Stream, tuple[str, ...]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def add(self, stream: Stream, names: tuple[str, ...]) -> None:
        self._names[stream] = names

    def remove(self, stream: Stream) -> None:
        self._names.pop(stream, None)

    def abort(self, name: str | None = None) -> int:
        """End those of that name, all without one, with what they have said so far. Returns how many there were."""
        found = [stream for stream, names in self._names.items() if name is None or name in names]
        for stream in found:
            stream.cut()
        return len(found)
