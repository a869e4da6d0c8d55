"""Attention over paged KV: one small protocol, several backends."""
