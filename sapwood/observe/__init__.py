"""Watching without touching: logs, metrics, liveness. Nothing here decides anything."""

from sapwood.observe.log import set_up_logging
from sapwood.observe.metrics import Meter, Metrics
from sapwood.observe.pulse import Pulse

__all__ = ["Meter", "Metrics", "Pulse", "set_up_logging"]
