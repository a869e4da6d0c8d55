"""Deciding what the next step computes, from counts alone."""

from sapwood.scheduler.scheduler import Scheduler

__all__ = ["Scheduler"]
