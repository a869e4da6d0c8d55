"""One place that decides how log lines look. Prompts, outputs and keys never go into them."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(name)s: %(message)s"


class _SapwoodHandler(logging.StreamHandler[TextIO]):
    """Its own type, so that setting up twice replaces it instead of doubling every line."""


def set_up_logging(level: str = "info", *, stream: TextIO | None = None) -> None:
    """Write the lines of `sapwood.*` from `level` on, and the web server's warnings, to `stream` (stderr).

    Other libraries' loggers are left as they are. May be called again: the last call counts.
    """
    handler = _SapwoodHandler(stream or sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
    for name, threshold in (("sapwood", level.upper()), ("uvicorn.error", "WARNING")):
        logger = logging.getLogger(name)
        logger.handlers = [h for h in logger.handlers if not isinstance(h, _SapwoodHandler)]
        logger.addHandler(handler)
        logger.setLevel(threshold)
        logger.propagate = False
