"""Adapters that requests ask for: who of them has a slot of the device, and what they are called."""

from __future__ import annotations

from sapwood.adapters.stake import AdapterStake

__all__ = ["AdapterStake"]
