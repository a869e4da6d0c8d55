"""Modules made from parts, and their weights."""
