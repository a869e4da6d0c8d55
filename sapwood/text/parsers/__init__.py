"""What models write besides text: calls of tools, and thoughts. Formats are data (`formats`), read by one parser."""

from sapwood.text.parsers.choose import FORMATS, RESERVED, Formats, choose
from sapwood.text.parsers.families import REASONING, TOOLS
from sapwood.text.parsers.formats import Dialect, Reasoning, ToolFormat
from sapwood.text.parsers.parser import Call, Event, Parser, Said, gather

__all__ = [
    "FORMATS",
    "REASONING",
    "RESERVED",
    "TOOLS",
    "Call",
    "Dialect",
    "Event",
    "Formats",
    "Parser",
    "Reasoning",
    "Said",
    "ToolFormat",
    "choose",
    "gather",
]
