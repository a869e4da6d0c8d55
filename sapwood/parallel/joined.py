"""Which mesh ranks on a device have."""

from __future__ import annotations

import torch

from sapwood.base.abilities import Ability
from sapwood.device.find import abilities_of
from sapwood.parallel.collective import Collective
from sapwood.parallel.mesh import ALONE, Mesh
from sapwood.parallel.segment import Segment
from sapwood.parallel.shared import SharedMesh


def joined(segment: Segment | None, place: torch.device) -> Mesh:
    """That of the ranks that share `segment`, in each of which a device of the same kind computes."""
    if segment is None:
        return ALONE
    if Ability.HOST in abilities_of(place):
        return SharedMesh(segment)
    torch.cuda.set_device(place)  # before anything of NCCL's
    return Collective("nccl", segment.path.with_suffix(".store"), segment.rank, segment.size)
