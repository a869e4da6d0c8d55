"""Typed reads of a config.json, where what is not understood is refused instead of ignored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

from sapwood.base.errors import ModelError

T = TypeVar("T")

# Fields that say nothing about the mathematics of inference, beside those with the endings below.
_INERT = frozenset({
    "architectures", "auto_map", "dtype", "model_type", "tokenizer_class", "torch_dtype", "transformers.js_config",
    "initializer_factor", "initializer_range", "original_max_position_embeddings", "pretraining_tp", "use_cache",
    "id2label", "label2id", "sentence_transformers", "sbert_ce_default_activation_function",
    "num_labels", "problem_type", "task_specific_params",
    "base_model", "base_model_name_or_path", "finetuning_task", "library_name", "license", "model_name", "name_or_path", "prefix",
    "model_max_length", "use_flash_attn",
    "chunk_size_feed_forward", "dropout", "gradient_checkpointing", "is_decoder", "is_llama_config", "return_dict", "torchscript",
    "output_attentions", "output_hidden_states", "unsloth_fixed",
    "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping", "length_penalty",
    "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "repetition_penalty", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p",
})  # fmt: skip
_HOLDS: Mapping[str, tuple[str | bool, ...]] = MappingProxyType({
    "is_causal": (True,), "norm_type": ("rms_norm", "rmsnorm", "rms"), "position_embedding_type": ("rope", "rotary"),
})  # fmt: skip
"""Fields that say of these models what holds of all of them."""
_INERT_ENDINGS = (
    "_token_id",
    "_token",
    "_dropout",
    "_dropout_prob",
    "_pdrop",
    "_version",
    "_index",
    "_scope",
    "_implementation",
)


class HfConfig:
    """A config.json that remembers which fields were read, so that `refuse_unread` can name the others.

    A missing field is one that is absent or null. Every error is a ModelError that names the field.
    """

    def __init__(self, fields: Mapping[str, Any], *, within: str = "") -> None:
        self._fields = fields
        self._within = within
        self._names: dict[str, str] = {}
        self._assumed: dict[str, Any] = {}
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        return self._find(name) is not None

    def field(self, name: str) -> Any:
        """As it stands, None if it is missing."""
        return self._find(name)

    def spelt(self, **names: str) -> None:
        """What the family calls fields that others call otherwise; both are read, its own first."""
        self._names.update(names)

    def assume(self, **values: Any) -> None:
        """What fields are where they are missing."""
        self._assumed.update(values)

    def must(self, name: str, value: Any) -> None:
        """Refuse the field when it is set to anything else."""
        found = self._find(name)
        if found is not None and found != value:
            raise self._wrong(name, found, f"{value!r}: no other is supported")

    def ignore(self, *names: str) -> None:
        """Fields that may be there and play no part."""
        self._read.update(names)

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer."""
        value = self._get(name, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self._wrong(name, value, "a positive integer")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number, 0 or more."""
        value = self._get(name, default)
        if type(value) is not int or value < 0:
            raise self._wrong(name, value, "a whole number, 0 or more")
        return value

    def index(self, name: str, size: int, default: int) -> int:
        """A place among so many, counted from the end where it is negative."""
        value = self._get(name, default)
        if type(value) is not int or not -size <= value < size:
            raise self._wrong(name, value, f"a whole number from {-size} to {size - 1}")
        return value % size

    def alike(self, name: str, default: int | None = None) -> int:
        """A positive integer, or a list of one for each layer, which must be equal."""
        value = self._get(name, default)
        if isinstance(value, list | tuple) and len(set(value)) == 1:
            value = value[0]
        if type(value) is not int or value <= 0:
            raise self._wrong(name, value, "a positive integer, the same in all layers")
        return value

    def names(self) -> tuple[str, ...]:
        """Of all fields."""
        return tuple(self._fields)

    def number(self, name: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self._get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self._wrong(name, value, "a positive number")
        return float(value)

    def boolean(self, name: str, default: bool | None = None) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def string(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        return value

    def strings(self, name: str) -> tuple[str, ...]:
        value = self._get(name, None)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise self._wrong(name, value, "a list of strings")
        return tuple(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self._get(name, None)
        if not isinstance(value, list | tuple) or not all(type(item) is int for item in value):
            raise self._wrong(name, value, "a list of whole numbers")
        return tuple(value)

    def flags(self, name: str, count: int, default: Sequence[bool]) -> tuple[bool, ...]:
        """So many of true and false, or 1 and 0."""
        value = self._get(name, default)
        if not isinstance(value, list | tuple) or len(value) != count or not set(value) <= {0, 1}:
            raise self._wrong(name, value, f"a list of {count} zeros and ones")
        return tuple(map(bool, value))

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """So many positive numbers."""
        value = self._get(name, None)
        sound = isinstance(value, list | tuple) and len(value) == count
        if not sound or not all(isinstance(one, int | float) and 0 < one < float("inf") for one in value):
            raise self._wrong(name, value, f"a list of {count} positive numbers")
        return tuple(map(float, value))

    def bounds(self, name: str, default: tuple[float, float]) -> tuple[float, float]:
        """The least and the most of something, which may be infinite."""
        value = self._get(name, default)
        try:
            low, high = (float(one["__float__"] if isinstance(one, Mapping) else one) for one in value)
        except (TypeError, ValueError, KeyError) as error:
            raise self._wrong(name, value, "two numbers") from error
        if not low <= high:
            raise self._wrong(name, value, "two numbers, the lower one first")
        return low, high

    def choice(self, name: str, choices: Mapping[str, T], default: str | None = None) -> T:
        """The value that stands for one of the words that the field may hold."""
        word = self.string(name, default)
        if word not in choices:
            raise self._wrong(name, word, "one of " + ", ".join(map(repr, choices)))
        return choices[word]

    def section(self, name: str, **instead: Any) -> HfConfig:
        """A nested object, with reads of its own; `instead` are fields that it has whatever it says."""
        value = self._get(name, None)
        if not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return HfConfig({**value, **instead}, within=f"{self._within}{name}.")

    def refuse(self, *names: str, because: str) -> None:
        """Refuse the fields when they are set to anything but null, false, 0 or empty."""
        for name in names:
            self._read.add(name)
            if self._fields.get(name):
                raise ModelError(
                    f"config.json: {self._within}{name} = {self._fields[name]!r} is not supported: {because}."
                )

    def refuse_unread(self) -> None:
        """Refuse fields that nobody has read, unless they are known to change nothing or are switched off."""
        for name, value in self._fields.items():
            known = name in self._read or name in _INERT or name.startswith("_") or name.endswith(_INERT_ENDINGS)
            holds = value is None or value in _HOLDS[name] if name in _HOLDS else not value
            if not known and not holds:
                raise ModelError(
                    f"config.json: {self._within}{name} = {value!r} is not known to this version and may change what the "
                    "model computes. Remove the field if it does not."
                )

    def _get(self, name: str, default: Any) -> Any:
        value = self._find(name)
        if value is None:
            value = self._assumed.get(name, default)
        if value is None:
            raise ModelError(f"config.json: {self._within}{name} is missing.")
        return value

    def _find(self, name: str) -> Any:
        own = self._names.get(name, name)
        self._read.update((own, name))
        value = self._fields.get(own)
        return self._fields.get(name) if value is None else value

    def _wrong(self, name: str, value: object, wanted: str) -> ModelError:
        return ModelError(f"config.json: {self._within}{name} must be {wanted}, got {value!r}.")
