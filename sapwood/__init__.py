"""Sapwood: an LLM inference engine. Point it at a model and it serves it."""

__version__ = "0.1.0"
