"""Which mesh and which pipe ranks on a device have."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sapwood.base.abilities import Ability
from sapwood.parallel.collective import Collective
from sapwood.parallel.mesh import ALONE, Mesh
from sapwood.parallel.pipe import CollectivePipe, SharedPipe
from sapwood.parallel.segment import Segment
from sapwood.parallel.shared import SharedMesh
from sapwood.parallel.ways import NO_PIPE, Pipe

if TYPE_CHECKING:
    from sapwood.device.base import Device


def joined(segment: Segment | None, device: Device, width: int) -> tuple[Mesh, Pipe]:
    """That of the ranks that share `segment`, in each of which such a `device` computes, and the way from stage to stage: `width`
    ranks one behind the other are a stage."""
    if segment is None:
        return ALONE, NO_PIPE
    rank, size = segment.rank, segment.size
    stage = rank // width
    members = range(stage * width, (stage + 1) * width)
    mesh: Mesh = ALONE
    if device.can(Ability.HOST):
        mesh = mesh if width == 1 else SharedMesh(segment, members)
        return mesh, NO_PIPE if width == size else SharedPipe(segment, width)
    torch.cuda.set_device(device.place)  # before anything of NCCL's
    mesh = mesh if width == 1 else Collective("nccl", _meeting(segment, f"stage{stage}"), rank - members[0], width)
    return mesh, NO_PIPE if width == size else CollectivePipe("nccl", _meeting(segment, "pipe"), rank, size, width)


def _meeting(segment: Segment, name: str) -> Path:
    """A file by which process groups find each other, as the segment's own may be one without a name."""
    return Path(tempfile.gettempdir()) / f"sapwood-{'-'.join(segment.path.parts[1:])}-{name}"
