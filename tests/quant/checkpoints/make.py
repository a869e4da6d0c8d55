"""Makes the checkpoints of this folder: `python make.py TOOL`, in an environment that has the tool (README.md says which version).

They are random, tied to a seed; a tool that is not deterministic makes others of the same shapes.
"""

from __future__ import annotations

import functools
import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
BASE = Path("/tmp/sapwood-checkpoints")
TOKENS = torch.tensor([[1, 5, 9, 33, 60, 2, 17, 17, 40, 8, 51, 3]])
SIZES = {"vocab_size": 64, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def base() -> Path:
    """The plain model, and a tokenizer for the tools that want one."""
    if BASE.exists():
        return BASE
    torch.manual_seed(7)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, **ENDS, tie_word_embeddings=False)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(torch.randn_like(weight) * 0.2)
            else:
                weight.normal_(std=0.1)
    model.bfloat16().save_pretrained(BASE)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0").save_pretrained(
        BASE
    )
    return BASE


def plain(dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(base(), dtype=dtype).eval()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS, use_cache=False).logits[0].float().contiguous()


@torch.no_grad()
def twin(quantised: Any, dequantise: Callable[[Any], torch.Tensor | None]) -> torch.Tensor:
    """The logits of a plain model with dequantised weights."""
    model = plain()
    for name, module in quantised.named_modules():
        if (weight := dequantise(module)) is not None:
            model.get_submodule(name).weight.copy_(weight.float())
    return logits(model)


def keep(name: str, **expected: torch.Tensor) -> None:
    """Leave what is needed of a saved checkpoint, and what it is to say."""
    for file in (HERE / name).iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    save_file({"tokens": TOKENS[0], **expected}, HERE / name / "logits.safetensors")


def calibration(number: int) -> list[dict[str, list[int]]]:
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 64, (number, 32), generator=random).tolist()
    return [{"input_ids": row, "attention_mask": [1] * 32} for row in rows]


def llmcompressor() -> None:
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

    preset = functools.partial(QuantizationModifier, targets="Linear", ignore=["lm_head"])
    presets = {
        "fp8-dynamic": "FP8_DYNAMIC", "fp8-static": "FP8", "fp8-block": "FP8_BLOCK", "w8a8": "W8A8", "w4a16": "W4A16",
        "w4a16-asym": "W4A16_ASYM", "w8a16": "W8A16", "nvfp4": "NVFP4", "nvfp4a16": "NVFP4A16", "mxfp4": "MXFP4A16",
    }  # fmt: skip
    recipes: dict[str, Any] = {name: functools.partial(preset, scheme=scheme) for name, scheme in presets.items()}
    four = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    eight = {"num_bits": 8, "type": "float", "symmetric": True}
    mixed = {
        "group_0": _scheme(["re:.*self_attn.(q|k)_proj", "re:.*mlp.down_proj"], four),
        "group_1": _scheme(
            ["re:.*v_proj", "re:.*gate_proj", "re:.*up_proj"],
            eight | {"strategy": "channel"},
            eight | {"strategy": "token", "dynamic": True},
        ),
    }
    excepted = ["lm_head", "model.layers.1.mlp.down_proj"]
    recipes["mixed"] = functools.partial(QuantizationModifier, config_groups=mixed, ignore=excepted)
    group = {"group_0": _scheme(["Linear"], four | {"actorder": "weight"})}
    recipes["gptq-g"] = functools.partial(GPTQModifier, config_groups=group, ignore=["lm_head"])
    data = importlib.import_module("datasets").Dataset.from_list(calibration(16))
    for name, recipe in recipes.items():
        model, tokenizer = plain(torch.bfloat16), AutoTokenizer.from_pretrained(base())
        oneshot(model=model, recipe=[recipe()], dataset=data, processor=tokenizer, num_calibration_samples=16)
        model.save_pretrained(HERE / name, save_compressed=True)
        keep(name, **dict(_read_back(name)))


def _scheme(targets: list[str], weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    rounded = None if inputs is None else QuantizationArgs(**inputs)
    return QuantizationScheme(targets=targets, weights=QuantizationArgs(**weights), input_activations=rounded)


def _read_back(name: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Dequantised by the tool, with inputs as they are and then rounded; those of NVFP4 become four bits, ours do not."""
    from transformers import CompressedTensorsConfig

    how = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(HERE / name, quantization_config=how, dtype=torch.float32).float()
    schemed = [module for module in model.modules() if getattr(module, "quantization_scheme", None) is not None]
    for module in schemed:
        module.quantization_enabled = False
    yield "twin", logits(model)
    rounding = [module for module in schemed if module.quantization_scheme.input_activations]
    for module in rounding:
        module.quantization_enabled = True
    if rounding and not name.startswith("nvfp4"):
        yield "tool", logits(model)


def auto_round() -> None:
    from auto_round import AutoRound

    kinds: dict[str, tuple[str, bool, int, int]] = {
        "autoround": ("auto_round", True, 4, 32), "autoround-asym": ("auto_round", False, 4, 32),
        "autoround-awq": ("auto_awq", False, 4, 32), "autoround-gptq": ("auto_gptq", True, 4, 32),
        "autoround-gptq-8": ("auto_gptq", True, 8, 32), "autoround-gptq-asym": ("auto_gptq", False, 4, 64),
    }  # fmt: skip
    for name, (form, symmetric, bits, group) in kinds.items():
        for path, written in ((HERE / name, form), (BASE.with_name(name), "fake")):
            settings = {"bits": bits, "group_size": group, "sym": symmetric, "iters": 0, "disable_opt_rtn": True}
            tool = AutoRound(plain(), AutoTokenizer.from_pretrained(base()), device_map="cpu", **settings)
            tool.quantize_and_save(str(path), format=written)
            for inner in path.glob("base-*"):
                shutil.copytree(inner, path, dirs_exist_ok=True)
        keep(name, twin=logits(AutoModelForCausalLM.from_pretrained(BASE.with_name(name), dtype=torch.float32)))


def gptqmodel() -> None:
    from gptqmodel import GPTQModel, QuantizeConfig

    for name, group, symmetric in (("gptq-act-order", 32, True), ("gptq-asym", 64, False)):
        config = QuantizeConfig(device="cpu", bits=4, group_size=group, desc_act=True, sym=symmetric)
        model = GPTQModel.load(str(base()), config)
        model.quantize(calibration(32), batch_size=4)
        model.save(str(HERE / name))
        loaded = GPTQModel.load(str(HERE / name), device="cpu", dtype=torch.float16, backend="torch").model
        keep(name, twin=twin(loaded, lambda m: m.dequantize_weight().T if hasattr(m, "dequantize_weight") else None))


def bitsandbytes() -> None:
    import bitsandbytes as bnb
    from transformers import BitsAndBytesConfig

    four = functools.partial(BitsAndBytesConfig, load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    kinds = {
        "bnb-nf4": four(bnb_4bit_quant_type="nf4"),
        "bnb-nf4-double": four(bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        "bnb-fp4": four(bnb_4bit_quant_type="fp4"),
        "bnb-int8": BitsAndBytesConfig(load_in_8bit=True),
    }

    def dequantise(module: Any) -> torch.Tensor | None:
        if isinstance(module, bnb.nn.Linear4bit):
            return bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        if not isinstance(module, bnb.nn.Linear8bitLt):
            return None
        scale = module.state.SCB if module.weight.SCB is None else module.weight.SCB
        return module.weight.data.float() * scale[:, None] / 127

    for name, config in kinds.items():
        model = AutoModelForCausalLM.from_pretrained(
            base(), quantization_config=config, dtype=torch.float32, device_map="cpu"
        )
        expected = {"twin": twin(model, dequantise)}
        if name != "bnb-int8":  # of which the tool rounds inputs, and we do not
            expected["tool"] = logits(model)
        model.save_pretrained(HERE / name)
        keep(name, **expected)


def torchao() -> None:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    def dequantise(module: Any) -> torch.Tensor | None:
        weight = getattr(module, "weight", None)
        return weight.dequantize() if hasattr(weight, "qdata") else None

    for name, kind in {"torchao-int8": Int8WeightOnlyConfig(), "torchao-fp8": Float8WeightOnlyConfig()}.items():
        config = TorchAoConfig(kind)
        model = AutoModelForCausalLM.from_pretrained(
            base(), quantization_config=config, dtype=torch.float32, device_map="cpu"
        )
        expected = {"tool": logits(model), "twin": twin(model, dequantise)}
        model.save_pretrained(HERE / name)
        keep(name, **expected)


TOOLS = (llmcompressor, auto_round, gptqmodel, bitsandbytes, torchao)

if __name__ == "__main__":
    {tool.__name__: tool for tool in TOOLS}[sys.argv[1]]()
