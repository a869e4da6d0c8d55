"""Applying an edit that is only sketched: a snippet with marks for what stays is merged into the whole file."""

from sapwood.apply.anchors import merge
from sapwood.apply.check import Problem, check
from sapwood.apply.lazy import Unclear
from sapwood.apply.prompt import CLOSING, Answered, Edit, answered, conversation, edit_of, template_of

__all__ = [
    "CLOSING",
    "Answered",
    "Edit",
    "Problem",
    "Unclear",
    "answered",
    "by_anchors",
    "check",
    "conversation",
    "edit_of",
    "merge",
    "template_of",
]

MOST_LINES = 20_000


def by_anchors(edit: Edit) -> str:
    """The merged file, checked. Raises Unclear where lines alone do not tell how to merge."""
    if edit.code.count("\n") + edit.update.count("\n") > MOST_LINES:
        raise Unclear(f"more than {MOST_LINES} lines are not compared")
    merged = merge(edit.code, edit.update)
    if problems := check(edit.code, edit.update, merged):
        raise Unclear(f"{problems[0].text!r} would be {problems[0].kind}")
    return merged
