"""What functions on trees have to know of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from sapwood.arch.encoder import Encoder
from sapwood.arch.parts import Block, Decoder, Linear, Tied
from sapwood.arch.share import Share, Stage


class Network(Protocol):
    """What functions on trees have to know of one: its blocks, and its fields `before` them and `behind`."""

    before: ClassVar[tuple[str, ...]]
    behind: ClassVar[tuple[str, ...]]

    @property
    def blocks(self) -> tuple[Block, ...]: ...

    @property
    def block_prefix(self) -> str: ...

    @property
    def stage(self) -> Stage:
        """Which of a whole's blocks these are."""
        ...

    @property
    def root(self) -> str: ...

    @property
    def head(self) -> Linear | Tied | None: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def dtype(self) -> str | None: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def quantization(self) -> Mapping[str, Any] | None: ...

    @property
    def encoder(self) -> Encoder | None: ...

    @property
    def portion(self) -> tuple[Decoder, Mapping[str, Share]] | None: ...

    def owns(self, tensor: str) -> bool:
        """Whether a tensor of the checkpoint is one of its own; others are passed by."""
        ...
