"""Proposing tokens before they are drawn. Verification is the step's own: drafts never change what a request yields."""

from sapwood.draft.drafter import Drafter, OnDevice
from sapwood.draft.lookup import Lookup
from sapwood.draft.pace import Adaptive, Costs, Line, Passes
from sapwood.draft.prediction import Predictions
from sapwood.draft.stake import DraftStake
from sapwood.draft.thin import ThinStake
from sapwood.draft.tree import Tree

__all__ = [
    "Adaptive",
    "Costs",
    "DraftStake",
    "Drafter",
    "Line",
    "Lookup",
    "OnDevice",
    "Passes",
    "Predictions",
    "ThinStake",
    "Tree",
]
