"""What the same package brings for devices. It imports torch, so only those who compute are to import it."""

from __future__ import annotations

from sapwood.attention.reference import Reference
from sapwood.attention.select import Make, Offer, Wanted
from sapwood.base.abilities import Ability
from sapwood.base.kv import Heads


class Mashed(Reference):
    name = "mashed"


def find(wanted: Wanted) -> Make | str:
    return Mashed.refuse(wanted.group, wanted.device, wanted.dtype) or Mashed


BACKEND = Offer("mashed", Heads, Ability.HOST, find)
