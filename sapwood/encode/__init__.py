"""What media need before tokens can see them: encoding within a budget, and room for the results. Counts and numbers alone; no tensors."""

from sapwood.encode.inputs import InputStake
from sapwood.encode.room import Attic, Room
from sapwood.encode.stake import EncodeStake

__all__ = ["Attic", "EncodeStake", "InputStake", "Room"]
