"""How a model's vectors of texts are made, as the files of sentence-transformers beside it say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sapwood.base.errors import ModelError
from sapwood.base.task import Pooling
from sapwood.hub.files import ModelFiles, read_json

_MODES: Mapping[str, Pooling] = {
    "cls": "cls",
    "cls_token": "cls",
    "mean": "mean",
    "mean_tokens": "mean",
    "lasttoken": "last",
    "weightedmean": "weighted",
    "weightedmean_tokens": "weighted",
}


Squash = Literal["softmax", "sigmoid", "identity"]


@dataclass(frozen=True)
class Sentence:
    """What is done beside the model itself.

    Attributes:
        pooling: What makes one vector of many; None where nothing says.
        normalised: Vectors are divided by their lengths.
        max_tokens: Longest text, None where nothing says.
        lower: Texts are put into lower case.
        prompts: What may stand before a text, by name.
        prompt: The name of what does where nobody asks for another.
        labels: Of a classifier, in the order of its scores.
        scores: What is made of a classifier's scores.
    """

    pooling: Pooling | None = None
    normalised: bool = True
    max_tokens: int | None = None
    lower: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    labels: tuple[str, ...] = ()
    scores: Squash = "softmax"


def sentence_of(files: ModelFiles) -> Sentence:
    """Of a model's files; without any for sentence-transformers, vectors are normalised and nothing else is said. Raises ModelError
    for what is not supported."""
    path = files.path
    if files.kind != "hf" or not (path / "modules.json").exists():
        return Sentence(labels=_labels(files.config), scores=_squash(files.config))
    kinds = {str(one.get("type", "")).rpartition(".")[2]: str(one.get("path", "")) for one in _modules(path)}
    if unknown := kinds.keys() - {"Transformer", "Pooling", "Normalize"}:
        raise ModelError(
            f"{path / 'modules.json'}: a module {sorted(unknown)[0]} is not supported; leave it out if it is not needed."
        )
    pooling = _pooling(path / kinds["Pooling"] / "config.json") if "Pooling" in kinds else None
    own, said = _optional(path / "sentence_bert_config.json"), _optional(path / "config_sentence_transformers.json")
    most, prompts = own.get("max_seq_length"), said.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise ModelError(f"{path / 'config_sentence_transformers.json'}: prompts must be texts by name.")
    return Sentence(
        pooling=pooling,
        normalised="Normalize" in kinds,
        max_tokens=most if isinstance(most, int) and most > 0 else None,
        lower=bool(own.get("do_lower_case")),
        prompts=prompts,
        prompt=said.get("default_prompt_name"),
        labels=_labels(files.config),
        scores=_squash(files.config),
    )


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("id2label")
    if not isinstance(named, Mapping):
        return tuple(f"LABEL_{index}" for index in range(int(config.get("num_labels") or 2)))
    return tuple(str(named[key]) for key in sorted(named, key=lambda key: int(key) if str(key).isdecimal() else 0))


def _squash(config: Mapping[str, Any]) -> Squash:
    """As cross-encoders say it; else one label, or one of several that exclude nothing, has a probability of its own."""
    section = config.get("sentence_transformers")
    said = (
        section.get("activation_fn")
        if isinstance(section, Mapping)
        else config.get("sbert_ce_default_activation_function")
    )
    if said is not None:
        return "identity" if str(said).endswith("Identity") else "sigmoid"
    alone = len(_labels(config)) == 1 or config.get("problem_type") == "multi_label_classification"
    return "sigmoid" if alone else "softmax"


def _modules(path: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads((path / "modules.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path / 'modules.json'} cannot be read: {error}.") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ModelError(f"{path / 'modules.json'} must hold a list of objects.")
    return found


def _pooling(path: Path) -> Pooling:
    config = read_json(path)
    if config.get("include_prompt") is False:
        raise ModelError(f"{path}: include_prompt = false is not supported: all tokens are pooled.")
    given = config.get("pooling_mode")
    wanted = [given] if isinstance(given, str) else list(given or ())
    wanted += [
        name.removeprefix("pooling_mode_")
        for name, on in config.items()
        if on is True and name.startswith("pooling_mode_")
    ]
    if len(wanted) != 1 or wanted[0] not in _MODES:
        raise ModelError(
            f"{path}: {' and '.join(map(str, wanted)) or 'no'} pooling is not supported; one of {', '.join(_MODES)} is."
        )
    return _MODES[wanted[0]]


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
