"""Models that read and do not write: a decoder's family without its head, or with one for scores in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from sapwood.arch.family import Family
from sapwood.arch.hf import HfConfig
from sapwood.arch.parts import Decoder, Linear, Part
from sapwood.arch.texts import Classifier

_WRITES, _SCORES, _READS = "ForCausalLM", "ForSequenceClassification", "Model"


def scores(c: HfConfig) -> bool:
    """Whether it is a model with a classifier."""
    return c.strings("architectures")[0].endswith(_SCORES)


def num_labels(c: HfConfig) -> int:
    """Of its classifier."""
    if c.has("id2label"):
        return len(c.section("id2label").names())
    return c.integer("num_labels", 2)


def reader(architecture: str, families: Sequence[Family]) -> Callable[[HfConfig], Decoder] | None:
    """How a model is declared that is named after one that writes; None where that is none of the `families`."""
    for ending in (_SCORES, _READS):
        name = architecture.removesuffix(ending) + _WRITES
        family = next((one for one in families if architecture.endswith(ending) and one.architecture == name), None)
        if family is not None:
            return partial(_declare, family)
    return None


def _declare(family: Family, c: HfConfig) -> Decoder:
    found = family.declare(c)
    root = found.root or found.embed.name.partition(".")[0] + "."
    labels = Linear(found.hidden_size, (Part("score", num_labels(c)),), None)
    return replace(
        found,
        head=None,
        classifier=Classifier("last", None, labels) if scores(c) else None,
        root=root,
        aside=(*found.aside, "lm_head."),
    )
