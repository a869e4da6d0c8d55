"""The kernel that turns queries and keys and writes cells, against the plain functions one after the other."""

from __future__ import annotations

import pytest
import torch

from sapwood.attention.base import rotated
from sapwood.kernels import NormRope
from tests import kv

pytest.importorskip("triton")

DEVICES = [
    pytest.param(
        "cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled on this machine")
    ),
    pytest.param("cuda", marks=pytest.mark.gpu),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("norm", [None, {}, {"center": True}, {"late": True, "interleaved": True}], ids=str)
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "half"), [(6, 2, 16, 8), (3, 1, 24, 12), (7, 1, 20, 6)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_plain(
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    half: int,
    norm: dict[str, bool] | None,
    keep: bool,
    dtype: torch.dtype,
    device: str,
) -> None:
    from sapwood.kernels.triton.place import place

    num_tokens, num_pages, page_size = 5, 4, 8
    group = kv.group(
        num_layers=1, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=page_size
    )
    random = torch.Generator().manual_seed(head_dim)
    wide = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim + 16, generator=random).to(dtype)
    angles_TF = torch.randn(num_tokens, half, generator=random)
    norm_ND = torch.rand(num_heads + num_kv_heads, head_dim, generator=random) + 0.5 if norm is not None else None
    heads_TXD = wide[:, 16:].unflatten(-1, (-1, head_dim))  # tokens lie apart
    rope = NormRope(angles_TF.cos(), angles_TF.sin(), norm_ND, 1e-6, **(norm or {}))
    cells_T = torch.tensor([9, 31, 0, 15, 8])
    want_q, want_k, want_v = rotated(heads_TXD.clone(), rope, group.kind)

    wide, cells_T = wide.to(device), cells_T.to(device)
    heads_TXD = wide[:, 16:].unflatten(-1, (-1, head_dim))
    moved = NormRope(*(None if part is None else part.to(device) for part in rope[:3]), *rope[3:])  # type: ignore[arg-type]
    keys = torch.full((num_pages, num_kv_heads, page_size, head_dim), torch.nan, dtype=dtype, device=device)
    values = keys.clone()
    before = heads_TXD.clone()
    place(heads_TXD, moved, cells_T, keys, values, num_heads=num_heads, keep=keep)

    got_q, got_k, got_v = heads_TXD.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-2, "rtol": 2e-2}
    torch.testing.assert_close(got_q.cpu(), want_q, **tolerance)
    torch.testing.assert_close(
        got_k.cpu(), want_k if keep else before[:, num_heads : num_heads + num_kv_heads].cpu(), **tolerance
    )
    assert torch.equal(got_v.cpu(), want_v)
    for cells, want in ((keys, want_k), (values, want_v)):
        written = cells[cells_T // page_size, :, cells_T % page_size].cpu()
        torch.testing.assert_close(written, want, **tolerance)
        assert int(cells.isnan().sum()) == cells.numel() - written.numel()  # and no other cell
