"""A Hugging Face directory through LLM Compressor."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sapwood.base.abilities import Ability
from sapwood.base.errors import UserError
from sapwood.device import find
from sapwood.quant.making.schemes import Scheme, group_of, weights_in_groups

_TOKENS = 512  # of a calibration sample


def check(name: str, scheme: Scheme) -> None:
    """Whether it can be done here. Raises UserError."""
    if importlib.util.find_spec("llmcompressor") is None:
        raise UserError("sapwood quantize needs LLM Compressor: pip install 'sapwood[quantize]'.")
    if scheme.scaled and find("auto").can(Ability.HOST):
        raise UserError(
            f"--scheme {name} wants a GPU in LLM Compressor, and there is none: take gptq, which needs no GPU."
        )


def quantise(source: Path, output: Path, scheme: Scheme, text: str, num_samples: int) -> None:
    """Write the model of `source`, a Hugging Face directory or a GGUF file, to the directory `output`."""
    from llmcompressor import oneshot

    model, tokenizer = _open(source, output)
    arguments: dict[str, Any] = {}
    if scheme.calibrated:
        samples = list(_samples(tokenizer, text, num_samples))
        arguments = {
            "dataset": importlib.import_module("datasets").Dataset.from_list(samples),
            "processor": tokenizer,
            "num_calibration_samples": len(samples),
            "max_seq_length": _TOKENS,
        }
    oneshot(model=model, recipe=_recipe(scheme, model), **arguments)
    model.save_pretrained(output, save_compressed=True)
    tokenizer.save_pretrained(output)


def _open(source: Path, output: Path) -> tuple[Any, Any]:
    """The model and its tokenizer; a GGUF file's are written out first, plain, since the tool reads directories only."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if source.suffix == ".gguf":
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(output / "plain")
        _write_plain(source, output / "plain")
        source = output / "plain"
    return AutoModelForCausalLM.from_pretrained(source, dtype="auto"), AutoTokenizer.from_pretrained(source)


def _write_plain(source: Path, output: Path) -> None:
    """A GGUF file's weights in bfloat16. What transformers reads of one it does not save, so they go into a model of their own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name).state_dict())
    model.save_pretrained(output)


def _recipe(scheme: Scheme, model: Any) -> list[Any]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    modifier = getattr(importlib.import_module("llmcompressor.modifiers.quantization"), scheme.modifier)
    if scheme.preset is not None:
        return [modifier(targets="Linear", scheme=scheme.preset, ignore=["lm_head"])]
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    group = group_of({name: module.in_features for name, module in found})
    weights = QuantizationArgs(**weights_in_groups(group, symmetric=not scheme.scaled))
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    rounding = modifier(config_groups=groups, ignore=["lm_head"])
    if not scheme.scaled:
        return [rounding]
    return [importlib.import_module("llmcompressor.modifiers.transform").AWQModifier(), rounding]


def _samples(tokenizer: Any, text: str, number: int) -> Iterator[dict[str, list[int]]]:
    """Pieces of the text, as many as there are and are wanted."""
    ids = tokenizer(text)["input_ids"]
    for start in range(0, min(len(ids), number * _TOKENS), _TOKENS):
        piece = ids[start : start + _TOKENS]
        yield {"input_ids": piece, "attention_mask": [1] * len(piece)}
