"""gpt-oss's own checkpoints (`quant_method: mxfp4`): experts in four bits of floating point, with a power of two for 32 inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from sapwood.arch.experts import Stack
from sapwood.arch.parts import Axis
from sapwood.quant.base import Choice
from sapwood.quant.formats.base import OUT, PLAIN, Cut, Quantised, Raw, Section, e2m1, excepting, want
from sapwood.quant.kinds.base import Fields
from sapwood.quant.kinds.coded import CodedForm

_GROUP = 32


def read(section: Mapping[str, Any]) -> Choice:
    groups = Cut("in", _GROUP)
    raws = (Raw("blocks", (OUT, groups, Axis(_GROUP // 2))), Raw("scales", (OUT, groups)))
    method = Quantised(CodedForm("MXFP4", _GROUP, "e8m0"), raws, _turn)
    among = excepting(method, Section(section).names("modules_to_not_convert"))
    return lambda place: among(place) if isinstance(place.leaf, Stack) else PLAIN


def _turn(raw: Fields) -> Fields:
    blocks_OGH, scale_OG = want(raw, "blocks", torch.uint8), want(raw, "scales", torch.uint8)
    return e2m1(blocks_OGH.flatten(1), scale_OG, torch.ones((), device=scale_OG.device))
