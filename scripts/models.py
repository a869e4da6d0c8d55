"""Writes docs/models.md from the families that there are: `python scripts/models.py` (with --check it only compares)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from sapwood.arch.families import FAMILIES
from sapwood.arch.family import Family

PAGE = Path(__file__).parents[1] / "docs" / "models.md"

HEAD = """# Models

Made by `scripts/models.py` from the families in `sapwood/arch/families`; do not edit. A model is known by the `architectures`
of its config.json, a GGUF file by its `general.architecture`. Every family's logits are held to transformers' by the tests
(float32, within 1e-4: at once, in chunks, decoded, behind a cached prefix, mixed with others), on PyTorch's modules and on
the CPU's own kernels, but for Baichuan of 13 billion, of which there is no reference; kernels of Triton know all their parts too, with
heads of at most 256; Gemma 3n and 4, Llama 4 and Ministral 3 are computed by modules everywhere, and so are Mamba 1, Jamba,
Falcon-H1 and models that [see](vision.md) or [hear](audio.md). Models that keep states of recurrences run on
CPUs. Of models that [only read](embeddings.md), which modules compute, it is vectors and scores that are compared. [Encoder-decoders](encoders.md) are computed by modules too. Fields of a config that are not understood are refused by name.

| models | architectures | in GGUF files |
| --- | --- | --- |
"""

TAIL = """
## Other families

    pip install 'sapwood[transformers]'
    sapwood serve MODEL                              # a family that is not in the list: says model_impl = transformers
    sapwood serve MODEL --model-impl transformers    # any; sapwood: never

What no family here has runs in the modules of [transformers](https://github.com/huggingface/transformers), if it has the family and that lets others
attend (`_supports_attention_backend`): with Sapwood's pages, attention, weights and steps, so with prefix hits, chunks, preemption, drafts from text, grammars
and all of sampling, and slower than a family of its own. Only code that transformers itself holds is run, never what comes with a checkpoint (`auto_map`).
What its attention asks for is found before anything is loaded, by a try on tensors without memory: grouped heads, windows of each layer, capped scores and values
shorter than keys are done; sinks, tensors as scales, other masks, layers that mix tokens otherwise, and code that decides by values are refused by name. When the weights
are there, six tokens, the last at the end of the longest text, show whether each sees others by attention alone; where long texts turn heads otherwise than short
ones (`longrope`), `--max-model-len` must not be above `original_max_position_embeddings`. Plain safetensors only (experts of a checkpoint one by one are stacked as transformers has it); no
GGUF, no `--quantization`, no EAGLE heads. On GPUs steps are recorded as graphs as for other models: modules that cannot
be recorded want `--disable-cuda-graph`.

What no family has is refused with the list of those that there are. Known and not there yet:
RWKV, experts of Nemotron-H, what some models see, videos, tokenizers that are a tiktoken file alone (Kimi K2's: put a tokenizer.json beside it), Qwen2.5's dual
chunk attention for a million tokens, post-norm variants of OPT-350m and BLOOM, `clip_qkv` of OLMo 1 and MPT.
"""


def rows() -> Iterator[str]:
    def module(family: Family) -> str:
        return sys.modules[family.declare.__module__].__doc__ or ""

    for doc, some in groupby(sorted(FAMILIES, key=module), key=module):
        families = list(some)
        ggufs = [f"`{one.gguf.architecture}`" for one in families if one.gguf is not None]
        names = ", ".join(f"`{one.architecture}`" for one in families)
        yield f"| {' '.join(doc.split()).rstrip('.')} | {names} | {', '.join(ggufs)} |\n"


def page() -> str:
    return HEAD + "".join(rows()) + TAIL


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/models.md is not what the families say: run python scripts/models.py")
