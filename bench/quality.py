"""What quantised weights, int8 activations and small keys and values cost in quality: perplexity on a text.

    python bench/quality.py                              the small real model as shipped: kernels, twin, KV dtypes
    python bench/quality.py --weights F32 Q8_0 Q4_K_M    requantised by the peer's tool (see bench/cpu.py)
    python bench/quality.py --model DIRECTORY            any model, with its weights rounded when they are loaded, too

The twin computes the same weights, widened to float32, by PyTorch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cpu

from sapwood import LLM, SamplingParams

TEXT = Path(__file__).parents[1] / "tests" / "quant" / "text.txt"
VARIANTS: dict[str, dict[str, Any]] = {
    "twin in float32": {"cpu_kernels": "off", "kv_cache_dtype": "float32"},
    **{f"kernels, KV {dtype}": {"kv_cache_dtype": dtype} for dtype in ("float32", "float16", "int8")},
}
ROUNDED: dict[str, dict[str, Any]] = {f"rounded to {kind}": {"quantization": kind} for kind in ("int8", "int4")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="instead of the small real one")
    parser.add_argument("--weights", nargs="+", default=[], help="types to requantise the small model to")
    parser.add_argument("--cache", default="~/.cache/sapwood/bench", help="where the peer is built")
    args = parser.parse_args()
    text = TEXT.read_text(encoding="utf-8")
    for name, path, plain in models(args):
        for variant, options in {**VARIANTS, **(ROUNDED if plain else {})}.items():
            value, tokens = perplexity(path, text, options)
            print(f"{name:10} {variant:22} perplexity {value:8.3f} over {tokens} tokens", flush=True)
    return 0


def models(args: argparse.Namespace) -> Iterator[tuple[str, str, bool]]:
    """Name, path, and whether the weights are plain numbers."""
    if args.model:
        yield Path(args.model).name, args.model, not args.model.endswith(".gguf")
        return
    shipped = cpu.model()
    if not args.weights:
        yield "Q4_1", str(shipped), False
    folder = Path(args.cache).expanduser()
    for weights in args.weights:
        path = cpu.requantised(cpu.build(folder), shipped, weights, folder)
        yield weights, str(path), weights in ("F32", "F16", "BF16")


def perplexity(path: str, text: str, options: dict[str, Any]) -> tuple[float, int]:
    llm = LLM(path, max_model_len=1024, max_num_seqs=1, **options)
    (output,) = llm.generate([text], SamplingParams(max_tokens=1, prompt_logprobs=0))
    found = [entry.logprob for entry in output.prompt_logprobs]
    return math.exp(-sum(found) / len(found)), len(found)


if __name__ == "__main__":
    raise SystemExit(main())
