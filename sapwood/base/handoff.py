"""What a request says of another engine that reads its prompt, or has read it."""

from __future__ import annotations

import msgspec


class Offer(msgspec.Struct, frozen=True, tag="offer", array_like=True):
    """Compute the prompt for somebody else, who will ask for it by this ticket. The request ends with its first token."""

    ticket: str


class Fetch(msgspec.Struct, frozen=True, tag="fetch", array_like=True):
    """The engine at `host` and `port` computes the prompt, or has, under this ticket. `early`: it may not have heard of it yet."""

    ticket: str
    host: str
    port: int
    early: bool = False


Handoff = Offer | Fetch


class Door(msgspec.Struct, frozen=True):
    """Where an engine hands prompts over: what it does of both sides, its name, and where others reach it."""

    role: str
    engine_id: str
    host: str = ""
    port: int = 0

    @property
    def offers(self) -> bool:
        return self.role != "decode"

    @property
    def fetches(self) -> bool:
        return self.role != "prefill"
