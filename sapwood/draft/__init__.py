"""Proposing tokens before they are drawn. Verification is the step's own: drafts never change what a request yields."""

from sapwood.draft.drafter import Drafter

__all__ = ["Drafter"]
