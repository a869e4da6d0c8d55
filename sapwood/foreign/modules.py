"""Transformers' modules of a config.json, without weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sapwood.base.errors import ModelError
from sapwood.foreign import attention

_VERSION = f"transformers {transformers.__version__}"


def model_class(config: Mapping[str, Any]) -> type[PreTrainedModel]:
    """Transformers' own class of the model. Raises ModelError if it has none, or one that cannot be run here, saying why."""
    names = config.get("architectures") or []
    name = names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else None
    if name is None:
        raise ModelError(f"config.json: architectures = {names!r} must name the one class of the model.")
    found = getattr(transformers, name, None) if name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() else None
    if found is None and config.get("auto_map"):
        raise ModelError(
            f"{name} is code that comes with the checkpoint (auto_map), which is never run; {_VERSION} has none."
        )
    if found is None:
        raise ModelError(f"{name} is none of the language models that {_VERSION} has; a newer one may.")
    if config.get("quantization_config"):
        raise ModelError(f"{name} runs in {_VERSION}'s modules, which take plain weights only: fetch those.")
    if problem := _problem(found):
        raise ModelError(f"{name} of {_VERSION} cannot be run: {problem}.")
    return found


def _problem(found: type[PreTrainedModel]) -> str | None:
    if not found._supports_attention_backend:
        return "its modules do not let others attend for them (_supports_attention_backend)"
    if found._is_stateful:
        return "its layers keep states that are neither keys nor values"
    return None


def build(
    config: Mapping[str, Any], kind: str, dtype: torch.dtype, within: AbstractContextManager[Any]
) -> PreTrainedModel:
    """The modules, made `within` something that says where tensors are; `kind` of our attention is what they call."""
    attention.register()
    fields = {name: value for name, value in config.items() if name != "auto_map"}
    made = model_class(config).config_class.from_dict(fields)
    made.use_cache = False
    with torch.random.fork_rng(devices=()), within:
        model = AutoModelForCausalLM.from_config(made, attn_implementation=kind, dtype=dtype, trust_remote_code=False)
    return model.eval().requires_grad_(False)


class Shells(TorchFunctionMode):
    """Makes tensors that are to be filled later without memory. What is computed when modules are made, tables of angles, is."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return func(*args, **(kwargs or {}) | ({"device": "meta"} if func is torch.empty else {}))


class Halves:
    """A language model as what makes hidden states, and what makes logits of them."""

    def __init__(self, model: PreTrainedModel) -> None:
        inside = dict(model.named_children())
        name = model.base_model_prefix if model.base_model_prefix in inside else "model"
        trunk = inside.get(name)
        if trunk is None or "position_ids" not in inspect.signature(trunk.forward).parameters:
            raise ModelError(
                f"{type(model).__name__} of {_VERSION} cannot be run: it has no part that takes position_ids."
            )
        self.trunk, self._head = trunk, model
        setattr(model, name, _Given())

    def states(self, ids_T: Tensor, positions_T: Tensor, by: attention.Attends, **more: Any) -> Tensor:
        """hidden_TE of tokens, whoever they belong to."""
        given = {attention.BY: by, **more}
        left = self.trunk(input_ids=ids_T[None], position_ids=positions_T[None], use_cache=False, **given)
        return left.last_hidden_state[0]

    def logits(self, hidden_NE: Tensor) -> Tensor:
        return self._head(inputs_embeds=hidden_NE[None], use_cache=False).logits[0]


class _Given(nn.Module):
    """Stands where hidden states would be computed, and hands on those that it is given."""

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> _Output:
        return _Output(last_hidden_state=inputs_embeds)


class _Output(BaseModelOutputWithPast):
    """Has whatever else a head hands on, as nothing."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


@contextmanager
def failing(what: str) -> Iterator[None]:
    """Whatever goes wrong in transformers' modules is a ModelError that says `what` went wrong."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{what} in {_VERSION}: {type(error).__name__}: {error}") from error
