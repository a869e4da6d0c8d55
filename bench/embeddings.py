"""Texts a second that are embedded on a CPU, beside sentence-transformers and ONNX Runtime.

    python bench/embeddings.py MODEL                          texts of 16 to 256 tokens, mixed
    python bench/embeddings.py MODEL --with sentence-transformers,onnxruntime --rounds 5

The others are measured where they are installed; ONNX Runtime wants the model as `onnx/model.onnx` in its directory, which `--export` makes there
through PyTorch. Everybody has the same texts, threads and batches (32, by length, as sentence-transformers sorts them), float32, and all of
them in turns. Medians; with --processor of the seconds that a processor has worked, on a machine that others use too.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

Embed = Callable[[Sequence[str]], NDArray[Any]]

WORDS = (
    "the cat sits outside while a man plays guitar and two women watch an old movie about the weather in spring".split()
)
BATCH = 32


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a directory, such as all-MiniLM-L6-v2")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--shortest", type=int, default=16)
    parser.add_argument("--longest", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--with", dest="others", default="", help="sentence-transformers, onnxruntime, by commas")
    parser.add_argument("--options", default="", help="Sapwood's, as name=value by commas")
    parser.add_argument(
        "--processor", action="store_true", help="count processor time instead of the clock's; wants --threads 1"
    )
    parser.add_argument("--export", action="store_true", help="make onnx/model.onnx first")
    args = parser.parse_args(argv)
    if args.processor and args.threads != 1:
        parser.error("--processor: threads that wait for each other count too; add --threads 1")
    if args.export:
        export(Path(args.model))
    texts = made(args.texts, args.shortest, args.longest)
    options = dict(pair.split("=", 1) for pair in args.options.split(",") if pair)
    clock = process_time if args.processor else perf_counter
    makers: dict[str, Callable[[str, int], Embed]] = {
        "sapwood": partial(sapwood, options=options),
        **{name: OTHERS[name] for name in args.others.split(",") if name},
    }
    embeds = {name: make(args.model, args.threads) for name, make in makers.items()}
    vectors = {name: embed(texts) for name, embed in embeds.items()}
    seconds: dict[str, list[float]] = {name: [] for name in embeds}
    for _ in range(args.rounds):
        for name, embed in embeds.items():
            began = clock()
            embed(texts)
            seconds[name].append(clock() - began)
    own = statistics.median(seconds["sapwood"])
    for name, took in seconds.items():
        median = statistics.median(took)
        furthest = float(np.abs(vectors[name] - vectors["sapwood"]).max())
        print(
            f"{name:24} {len(texts) / median:8.1f} texts/s  {median / own:5.2f} x sapwood's time  differs by {furthest:.1e}"
        )
    return 0


def made(count: int, shortest: int, longest: int) -> list[str]:
    """Texts of common words, of which each is a token; two more frame them."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(shortest, longest) - 2)) for _ in range(count)]


def sapwood(model: str, threads: int, options: Mapping[str, str]) -> Embed:
    from sapwood import LLM

    llm = LLM(model, threads=threads, **options)
    return lambda texts: np.stack([one.vector for one in llm.embed(texts)])


def sentence_transformers(model: str, threads: int) -> Embed:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    there = SentenceTransformer(model, device="cpu")

    def embed(texts: Sequence[str]) -> NDArray[Any]:
        torch.set_num_threads(threads)
        found: NDArray[Any] = there.encode(list(texts), batch_size=BATCH, normalize_embeddings=True)
        return found

    return embed


def onnxruntime(model: str, threads: int) -> Embed:
    import onnxruntime as ort
    from tokenizers import Tokenizer

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(
        str(Path(model) / "onnx" / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()

    def embed(texts: Sequence[str]) -> NDArray[Any]:
        order = sorted(range(len(texts)), key=lambda index: -len(texts[index]))
        found: list[Any] = [None] * len(texts)
        for first in range(0, len(order), BATCH):
            some = order[first : first + BATCH]
            encodings = tokenizer.encode_batch([texts[index] for index in some])
            mask = np.array([one.attention_mask for one in encodings], np.int64)
            ids = np.array([one.ids for one in encodings], np.int64)
            (states,) = session.run(
                None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            )
            mean = (states * mask[..., None]).sum(1) / mask.sum(1)[:, None]
            for index, vector in zip(some, mean / np.linalg.norm(mean, axis=1, keepdims=True), strict=True):
                found[index] = vector
        return np.stack(found)

    return embed


OTHERS: dict[str, Callable[[str, int], Embed]] = {
    "sentence-transformers": sentence_transformers,
    "onnxruntime": onnxruntime,
}


def export(path: Path) -> None:
    """The model's states as ONNX, of any batch and length."""
    import torch
    from transformers import AutoModel

    class States(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoModel.from_pretrained(path, attn_implementation="sdpa").eval()

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.model(ids, attention_mask=mask, token_type_ids=types).last_hidden_state
            return states

    (path / "onnx").mkdir(exist_ok=True)
    names, some = ["input_ids", "attention_mask", "token_type_ids"], torch.ones(2, 9, dtype=torch.int64)
    axes = {name: {0: "batch", 1: "length"} for name in [*names, "states"]}
    torch.onnx.export(
        States(), (some, some, some), str(path / "onnx" / "model.onnx"), input_names=names, output_names=["states"],
        dynamic_axes=axes, dynamo=False, opset_version=17,
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
