"""The weights of experts for the CPU's own kernels: each as if it were alone, since only those that are chosen are read."""

from __future__ import annotations

from sapwood.quant.packed import PackedLeaf, Product
from sapwood.quant.stacked import Stacked


class PackedStack(Stacked[PackedLeaf]):
    """What the kernels read of each expert."""

    @property
    def products(self) -> list[Product]:
        return [expert.product for expert in self.experts]

    @property
    def nbytes(self) -> int:
        return sum(expert.nbytes for expert in self.experts)
