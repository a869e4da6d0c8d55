"""Watching without touching: logs and metrics. Nothing here decides anything."""

from sapwood.observe.log import set_up_logging
from sapwood.observe.metrics import Meter, Metrics

__all__ = ["Meter", "Metrics", "set_up_logging"]
