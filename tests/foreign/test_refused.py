"""What cannot be run in transformers' modules is refused before anything is loaded, by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sapwood.arch.foreign import is_foreign
from sapwood.base.errors import ConfigError, ModelError
from sapwood.catalogue import Catalogue
from sapwood.config import Config, ModelConfig
from sapwood.engine.declared import declared
from sapwood.foreign import facts
from sapwood.foreign.modules import build
from sapwood.hub.files import ModelFiles, open_files
from sapwood.nn.load import dummy_weights
from tests import models
from tests.foreign.test_logits import declare, empty

FAMILIES = Catalogue().families


def refuse(config: dict[str, Any], *, impl: str = "transformers", **options: Any) -> str:
    files = ModelFiles("it", Path("nowhere"), "hf", config, {})
    with pytest.raises((ModelError, ConfigError)) as caught:
        declared(Config(model=ModelConfig(model_impl=impl, **options)), files, Catalogue())
    return str(caught.value)


def test_code_that_comes_with_a_checkpoint_is_never_run() -> None:
    config = {"architectures": ["GourdForCausalLM"], "auto_map": {"AutoModelForCausalLM": "gourd.GourdForCausalLM"}}
    assert "GourdForCausalLM is code that comes with the checkpoint (auto_map)" in refuse(config)
    assert "is not supported; these are:" in (both := refuse(config, impl="auto")) and "never run" in both
    assert "is none of the language models that transformers" in refuse({"architectures": ["GourdForCausalLM"]})
    assert "must name the one class" in refuse({})


@pytest.mark.parametrize(
    ("architecture", "fields", "why"),
    [
        ("GptOssForCausalLM", {"num_hidden_layers": 2}, "its attention asks for s_aux"),
        ("Llama4ForCausalLM", {"num_hidden_layers": 4}, "sees neither all that came before nor a window of it"),
        ("MambaForCausalLM", {}, "do not let others attend for them"),
        (
            "Lfm2ForCausalLM",
            {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
            "1 of its 2 layers attend",
        ),
        ("BertLMHeadModel", {"num_hidden_layers": 2}, "sees what comes later"),
    ],
)
def test_what_attention_cannot_do_is_named(architecture: str, fields: dict[str, Any], why: str) -> None:
    import transformers

    kind = getattr(transformers, architecture).config_class
    told = refuse(kind(**fields).to_dict() | {"architectures": [architecture]})
    assert why in told and architecture in told


def test_masks_of_another_kind_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though they differ from ours only beyond the tokens of the try."""
    from transformers import masking_utils
    from transformers.models.llama import modeling_llama

    monkeypatch.setattr(modeling_llama, "create_causal_mask", masking_utils.create_chunked_causal_mask)
    told = refuse(models.config("llama") | {"attention_chunk_size": 4096})
    assert "its attention sees neither all that came before nor a window of it" in told


def test_a_config_that_does_not_say_how_many_layers_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def __init__(self, config: Any) -> None:
            self.config = config

        def __getattr__(self, name: str) -> Any:
            return getattr(self.config, name)

        def get_text_config(self, **_: Any) -> Any:
            return SimpleNamespace(max_position_embeddings=64)

    def silent(*args: Any) -> Any:
        model = build(*args)
        model.config = Silent(model.config)
        return model

    monkeypatch.setattr(facts, "build", silent)
    assert "its config has no num_hidden_layers" in refuse(models.config("llama"))


def test_plain_weights_only() -> None:
    llama = models.config("llama")
    assert "which take plain weights only" in refuse(llama | {"quantization_config": {"quant_method": "fp8"}})
    assert "--quantization int8" in refuse(llama, quantization="int8")
    assert "no family here" not in refuse(llama, quantization="int8")
    unknown = {"architectures": ["ApertusForCausalLM"], "model_type": "apertus"}
    told = refuse(unknown, impl="auto", quantization="int8")
    assert "no family here has this model, which runs in transformers' modules" in told
    files = ModelFiles("it", Path("it.gguf"), "gguf", llama, {})
    with pytest.raises(ModelError, match="GGUF files run in Sapwood's own modules only"):
        declared(Config(model=ModelConfig(model_impl="transformers")), files, Catalogue())


def test_whose_modules() -> None:
    known, unknown = ({"architectures": [name]} for name in ("LlamaForCausalLM", "ApertusForCausalLM"))
    for impl, foreign in {"auto": (False, True), "sapwood": (False, False), "transformers": (True, True)}.items():
        assert (is_foreign(impl, known, FAMILIES), is_foreign(impl, unknown, FAMILIES)) == foreign
    assert "ApertusForCausalLM'] is not supported" in refuse(unknown, impl="sapwood")


def test_tokens_that_see_each_other_otherwise_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the weights are there, and before anything is served."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    decoder, plain = declare_config("llama"), LlamaMLP.forward
    dummy_weights(empty(decoder)[0], 0)
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: plain(self, torch.cat([x[:, :1], x[:, :-1]], dim=1)))
    with pytest.raises(ModelError, match="depends on others by more than attention"):
        dummy_weights(empty(decoder)[0], 0)


def test_long_texts_that_turn_the_heads_of_short_ones_are_noticed() -> None:
    """Frequencies that follow from the longest of a step's texts would be the same for all, and for what is kept already."""
    short, number = 16, declare_config("llama").calls[0].kv.head_dim // 2
    factors = {"short_factor": [1.0] * number, "long_factor": [3.0] * number}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": short, **factors}
    decoder = declare_config("llama", rope_parameters=rope, max_position_embeddings=8 * short)
    with pytest.raises(ModelError, match=r"longrope.*--max-model-len up to"):
        dummy_weights(empty(decoder)[0], 0)
    dummy_weights(empty(decoder, max_positions=short)[0], 0)


def declare_config(family: str, **fields: Any) -> Any:
    from sapwood.foreign.facts import read

    return read(models.config(family) | fields)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    from sapwood.nn.load import load_weights

    file = models.save("apertus", tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, file)
    model, _ = empty(declare(tmp_path))
    with pytest.raises(ModelError, match=r"1 missing: model\.norm\.weight; 1 left over: model\.extra\.weight"):
        load_weights(model, open_files(tmp_path, name="it"))
