"""LoRA adapters as PEFT saves them: a directory of adapter_config.json and adapter_model.safetensors.

What a configuration asks for that would change the answers and is not done is a ModelError that names it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from sapwood.base.errors import ModelError
from sapwood.hub.files import StoredTensor, read_json, tensors_in

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PIECE = 1 << 20

_NOTHING: tuple[Any, ...] = (None, False, [], {}, "none")
_REFUSED: Mapping[str, str] = {
    "modules_to_save": "whole modules beside the adapter: merge them into the model",
    "bias": "biases of its own: train with bias='none'",
    "lora_bias": "biases of its own: train with lora_bias=False",
    "target_parameters": "parameters that are no modules, such as stacks of experts",
    "trainable_token_indices": "rows of the embedding: merge them into the model",
    "alora_invocation_tokens": "an adapter that begins in the middle of a prompt",
    "layer_replication": "layers that the model does not have",
    "use_qalora": "inputs that are pooled before the adapter",
    "use_bdlora": "block-diagonal matrices",
    "kasa_config": "singular values of its own",
    "monteclora_config": "weights that are drawn",
    "arrow_config": "adapters that are routed",
    "velora_config": "projected activations",
}
_MOVED = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings that change the base's weights, unless PEFT was asked to convert the adapter while saving."""


@dataclass(frozen=True)
class AdapterConfig:
    """What is left of a configuration once the shapes of the tensors are known: how much each product counts, and whether
    it is a direction only (`dora`)."""

    rank: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    alphas: Mapping[str, float] = field(default_factory=dict)

    def scale(self, module: str, rank: int) -> float:
        """What the product of a module's matrices is multiplied by: alpha / rank, or alpha / sqrt(rank) of rank-stabilised
        ones (Kalajdzievski, 2023). Patterns match as PEFT's do: the first that is the module's name, or its end behind a dot."""
        found = (alpha for key, alpha in self.alphas.items() if re.match(rf"(.*\.)?({key})$", module))
        alpha = next(found, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


class AdapterFiles(NamedTuple):
    """`tensors` are those of the file, by PEFT's names; `base` is what the configuration says that it was trained on."""

    path: Path
    config: AdapterConfig
    tensors: Mapping[str, StoredTensor]
    base: str | None

    @property
    def rank(self) -> int:
        """The largest of all its modules."""
        firsts = {name: one.shape[0] for name, one in self.tensors.items() if one.shape}
        return max(
            (rank for name, rank in firsts.items() if re.search(r"\.lora_(embedding_)?A(\.|$)", name)), default=0
        )


def is_adapter(path: Path) -> bool:
    """Whether the directory holds one, whole or not."""
    return (path / CONFIG).is_file()


def open_adapter(path: Path) -> AdapterFiles:
    """Read the configuration and the header of the weights. Raises ModelError."""
    try:
        return _open(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}.") from error


def _open(path: Path) -> AdapterFiles:
    if not is_adapter(path):
        raise ModelError(f"{path} is no LoRA adapter: it has no {CONFIG}.")
    if not (path / WEIGHTS).is_file():
        pickled = ", and files of pickled tensors are not read" if (path / "adapter_model.bin").exists() else ""
        raise ModelError(f"{path} has no {WEIGHTS}{pickled}: save the adapter with safe_serialization=True.")
    given = read_json(path / CONFIG)
    config = _config(path, given)
    base = given.get("base_model_name_or_path")
    return AdapterFiles(path, config, tensors_in(path / WEIGHTS), base if isinstance(base, str) else None)


def adapter_id(path: Path) -> str:
    """What tells an adapter apart by its contents, 32 hexadecimal digits. Raises ModelError where it cannot be read."""
    made = blake2b(digest_size=16)
    try:
        for name in (CONFIG, WEIGHTS):
            with (path / name).open("rb") as file:
                while piece := file.read(_PIECE):
                    made.update(piece)
            made.update(b"\0")
    except OSError as error:
        raise ModelError(f"{path / name} cannot be read: {error.strerror or error}.") from error
    return made.hexdigest()


def _config(path: Path, given: Mapping[str, Any]) -> AdapterConfig:
    where = path / CONFIG
    if (kind := given.get("peft_type", "LORA")) != "LORA":
        raise ModelError(f"{where}: peft_type is {kind!r}; only LORA can be served.")
    for name, what in _REFUSED.items():
        if given.get(name) not in _NOTHING:
            raise ModelError(f"{where}: {name} {given[name]!r} asks for {what}, which is not supported.")
    begun = given.get("init_lora_weights")
    if isinstance(begun, str) and begun.lower().startswith(_MOVED):
        raise ModelError(
            f"{where}: init_lora_weights {begun!r} has changed the base's weights too. Save the adapter with "
            "path_initial_model_for_weight_conversion, which makes it one of the base as it was."
        )
    alphas = given.get("alpha_pattern") or {}
    if not isinstance(alphas, dict):
        raise ModelError(f"{where}: alpha_pattern must be an object, got {alphas!r}.")
    return AdapterConfig(
        rank=int(_number(where, "r", given.get("r", 8))),
        alpha=_number(where, "lora_alpha", given.get("lora_alpha", 8)),
        rslora=bool(given.get("use_rslora")),
        dora=bool(given.get("use_dora")),
        alphas={key: _number(where, f"alpha_pattern[{key!r}]", value) for key, value in alphas.items()},
    )


def _number(where: Path, name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"{where}: {name} must be a number, got {value!r}.")
    return float(value)
