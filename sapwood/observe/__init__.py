"""Watching without touching: logs and metrics. Nothing here decides anything."""
