"""The operations of attention over latents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sapwood.arch.latent import LatentAttention
from sapwood.kernels.cpu import library as cpu
from sapwood.kernels.cpu.library import address
from sapwood.nn.stack import HEADS, ROOM, Operation, Spot, operations
from sapwood.quant.absorbed import absorb
from sapwood.quant.packed import Product


@operations.register
def _latent(part: LatentAttention, spot: Spot) -> Iterator[Operation]:
    """Queries are made of the norm of `down`'s first columns, or of the layer's input."""
    assert spot.place is not None
    angles_2PF, wide, kv = spot.weights.angles[part.rope], part.down.out, part.kv
    how = cpu.Heads(
        norm=spot.weights.norm(f"{spot.path}.kv_norm", part.kv_norm),
        cos=address(angles_2PF[0]),
        sin=address(angles_2PF[1]),
        half=angles_2PF.shape[2],
        interleaved=part.rope.interleaved,
        group=spot.place.group,
        layer=spot.place.layer,
        scale=part.scale,
    )
    down, queries = ROOM, ROOM + 1
    yield Operation("project", (spot.product("down"), down, False))
    if part.q_norm is not None:
        norm = spot.weights.norm(f"{spot.path}.q_norm", part.q_norm)
        yield Operation("take_columns", (norm, down, wide, 0, part.q_norm.size))
    yield Operation("project", (spot.product("q"), HEADS, False))
    keys, values = absorb(spot.weights.packed[f"{spot.path}.up"], part.num_heads, part.nope)
    products = (_array(keys, spot), _array(values, spot), part.num_heads)
    yield Operation("attend_latents", (how, *products, kv.rank, kv.rope, HEADS, down, wide, queries))
    yield spot.yields("out")


def _array(products: Sequence[Product], spot: Spot) -> Any:
    spot.weights.held.append(products)
    return cpu.pointers([product.pointer or 0 for product in products])
