"""What layers keep of a sequence, in pages: the kinds that there are, shared by those who count pages and those who hold tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Protocol

SCALE_BYTES: Mapping[str, int] = MappingProxyType({"int8": 4, "fp8_per_token_head": 4})
"""Of the scale that a position's key or value has in each head, by the stored type's name in the options; others have none."""

MOST_PER_PAGE = 256


def page_size_problem(size: int) -> str | None:
    """What is wrong with so many tokens a page, to be said behind who asks for them."""
    if size > 0 and not size & (size - 1) and size <= MOST_PER_PAGE:
        return None
    return f"must be a power of two up to {MOST_PER_PAGE}, got {size}"


class KVKind(Protocol):
    """What a layer keeps of a sequence: something in each page, of which later queries need some. Kinds are values, and layers
    of equal kinds share a page table."""

    @property
    def divisible(self) -> bool:
        """Whether a page holds something of each position, which is of use whatever was computed behind it.

        What is not divisible is one thing at a time: a page holds it as it was behind the last of its positions, later
        queries need no other, and a step must not begin with what it writes itself.
        """
        ...

    def oldest(self, position: int) -> int:
        """The oldest position whose page a query at `position` needs; it needs all pages from there to its own. Later queries
        need no older one."""
        ...

    @property
    def reach(self) -> int | None:
        """How many positions a query needs at most, its own included; None if all that there are."""
        ...

    def bytes_per_page(self, cells: int, itemsize: int, scale_bytes: int) -> int:
        """What one layer keeps in a page of so many `cells`: `itemsize` an element, `scale_bytes` for what shares a scale."""
        ...


@dataclass(frozen=True)
class Heads:
    """Keys and values of every position, in `num_kv_heads` heads that `num_heads` query heads share.

    `window` is None, or how many positions a query sees, itself included; if `chunked`, positions are cut into chunks of so many,
    and a query sees those of its own up to itself. Scores are what backends need to know of them before
    they lay anything out: with a `cap` they become cap * tanh(score / cap), and with `slopes`, one of each query head, they fall
    by so much with each position of distance (ALiBi), and if they are `relative` have a learned number for it (T5). With `sinks` each query head has a score more, of no position, which
    takes its share of the weights and adds nothing. If it looks `ahead`, positions of one image see each other, those behind too.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    cap: float | None = None
    slopes: tuple[float, ...] | None = None
    chunked: bool = False
    sinks: bool = False
    relative: bool = False
    ahead: bool = False

    @property
    def bent(self) -> bool:
        """Whether there is more to scores than scaled products."""
        return self.cap is not None or self.slopes is not None or self.sinks or self.relative

    @property
    def divisible(self) -> bool:
        return True

    @property
    def reach(self) -> int | None:
        return self.window

    def oldest(self, position: int) -> int:
        if self.window is None:
            return 0
        return position // self.window * self.window if self.chunked else max(0, position - self.window + 1)

    def bytes_per_page(self, cells: int, itemsize: int, scale_bytes: int) -> int:
        return 2 * cells * self.num_kv_heads * (self.head_dim * itemsize + scale_bytes)


@dataclass(frozen=True)
class Whole:
    """Keys and values of texts whose tokens see each other, those behind too: of use while a text is computed, in one step, and to
    nobody after that.

    With a `window` a query sees so many positions before its own, and as many behind it. Scores that are `relative` have a learned
    number for each distance (T5).
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None = None
    relative: bool = False

    @property
    def divisible(self) -> bool:
        return True

    @property
    def reach(self) -> int | None:
        return None

    def oldest(self, position: int) -> int:
        return 0

    def bytes_per_page(self, cells: int, itemsize: int, scale_bytes: int) -> int:
        return 2 * cells * self.num_kv_heads * (self.head_dim * itemsize + scale_bytes)


@dataclass(frozen=True)
class Fixed:
    """Keys and values of what an encoder has made of an input: written once, seen by every token of all requests that have the
    same input. They lie in a pool of their own, an entry for each input, and in no pages."""

    num_heads: int
    head_dim: int

    @property
    def divisible(self) -> bool:
        return True

    @property
    def reach(self) -> int | None:
        return None

    def oldest(self, position: int) -> int:
        return 0

    def bytes_per_page(self, cells: int, itemsize: int, scale_bytes: int) -> int:
        """Of an entry of so many positions."""
        return 2 * cells * self.num_heads * self.head_dim * itemsize


@dataclass(frozen=True)
class State:
    """What a recurrence has made of all that came before: `shapes` of float32, whatever else is kept in.

    A query needs the state just before it.
    """

    shapes: tuple[tuple[int, ...], ...]

    @property
    def divisible(self) -> bool:
        return False

    @property
    def reach(self) -> int:
        return 2

    def oldest(self, position: int) -> int:
        return max(0, position - 1)

    def bytes_per_page(self, cells: int, itemsize: int, scale_bytes: int) -> int:
        return 4 * cells * sum(prod(shape) for shape in self.shapes)


@dataclass(frozen=True)
class Latent:
    """One vector of every position, of which `num_heads` query heads make their keys and values: `rank` numbers that are both, and
    `rope` that are turned by the position and part of keys alone (DeepSeek-V2, 2024)."""

    num_heads: int
    rank: int
    rope: int

    @property
    def divisible(self) -> bool:
        return True

    @property
    def width(self) -> int:
        return self.rank + self.rope

    @property
    def tile_heads(self) -> int:
        """Query heads that a program of a kernel has: the greatest divisor of their number up to 64."""
        return next(size for size in range(min(64, self.num_heads), 0, -1) if not self.num_heads % size)

    @property
    def reach(self) -> None:
        return None

    def oldest(self, position: int) -> int:
        return 0

    def bytes_per_page(self, cells: int, itemsize: int, scale_bytes: int) -> int:
        return cells * (self.width * itemsize + scale_bytes)


@dataclass(frozen=True)
class KVGroup:
    """Layers of one kind, which share one page table: a page stands for `page_size` positions of each of them.

    `rewind` is how many positions a row may have to go back by: what is not divisible is kept behind so many more.
    """

    kind: KVKind
    num_layers: int
    page_size: int
    rewind: int = 0

    @property
    def lasts(self) -> bool:
        """Whether what is kept is of use to later steps."""
        return not isinstance(self.kind, Whole)

    @property
    def cells(self) -> int:
        """How many things a page holds; that of a position lies in cell `position % cells`."""
        return self.page_size if self.kind.divisible else min(self.page_size, self.rewind + 1)

    @property
    def window(self) -> int | None:
        """How many positions a query needs at most, its own included; None if all that there are. Pages wholly outside are freed."""
        return self.kind.reach

    def first_page(self, position: int) -> int:
        """Index of the first page that a query at `position` needs."""
        return self.kind.oldest(position) // self.page_size

    def bytes_per_page(self, itemsize: int, scale_bytes: int = 0) -> int:
        """Bytes of one page, all layers: see `KVKind.bytes_per_page`."""
        return self.num_layers * self.kind.bytes_per_page(self.cells, itemsize, scale_bytes)


def most_rewound(drafts: int, depth: int) -> int:
    """How many positions a row may have to go back by, which feeds so many drafts with so many steps in flight: as many as
    were planned behind the last token that turns out to be right."""
    return (drafts + 1) * (depth + 1) - 1 if drafts else max(0, depth - 1)
