"""JSON schemas as people write them: rewritten into what a grammar can follow, and checked at the end for the rest."""

from sapwood.grammar.schema.check import Finding, SchemaCheck
from sapwood.grammar.schema.rewrite import Rewritten, rewrite

__all__ = ["Finding", "Rewritten", "SchemaCheck", "rewrite"]
