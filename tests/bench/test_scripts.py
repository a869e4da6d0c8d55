"""The scripts of bench/ that a machine without a GPU can run, as far as it can: they reach into the engine, which moves."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType

from sapwood.arch import declare
from sapwood.arch.memory import num_parameters
from sapwood.hub.files import open_files
from tests.interpreter import interpreter

__all__ = ["interpreter"]

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports one; they share modules, which are imported by their plain names."""
    monkeypatch.syspath_prepend(BENCH)
    return importlib.import_module


def test_a_step_is_taken_apart(script: Any, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("step").main([str(tiny_model), "--rows", "2", "--steps", "5"]) == 0
    whole, parts = capsys.readouterr().out.splitlines()
    assert whole.startswith("2 rows: ")
    for name in ("plan", "frame", "batch", "attention", "model", "logits", "draw", "put", "sample", "result", "commit"):
        assert f"{name} " in parts


def test_adapters_cost_something(script: Any, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--requests", "6", "--scale", "0.01", "--adapters", "5", "--slots", "2", "--rank", "4"]
    assert script("adapters").main([str(tiny_model), *sizes, "--load", "0.9", "max_num_seqs=4"]) == 0
    lines = {line.split("  ")[0].strip(): line.split() for line in capsys.readouterr().out.splitlines()}
    names = ("none", "2", "5, zipf", "2, zipf, short", "2, zipf, arriving", "5, zipf, arriving")
    assert [name for name in lines if name in names] == [*names]
    loads = {name: int(lines[name][-1]) for name in names}
    assert loads["none"] == 0 and loads["5, zipf"] > 0, "copies to slots"


def timed_once(call: Any) -> float:
    call()
    return 1e-3


@pytest.fixture
def attention(script: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script, of small pools, where the interpreter is the device."""
    module = script("attention")
    for name, value in {"DEVICE": torch.device("cpu"), "DTYPE": torch.float32, "CELLS": 512}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "seconds", timed_once)
    monkeypatch.setattr(module, "SHAPES", [module.Shape("small", 4, 2, 16, 64, 32, 32, 1)])
    return module


def test_attention_is_measured_in_every_kind_of_work(attention: Any) -> None:
    (shape,) = attention.SHAPES
    backend = attention.start(shape, stored=torch.float32)
    works = [attention.Work(2, 1, 19), attention.Work(4, 1, 39, 2, 32), attention.Work(2, 5, 16)]
    found = list(attention.lines(backend, shape, works, 1.0))
    assert [str(work) for work, _ in found] == ["2 x 1 at 19", "4 x 1 at 39, 2 x 32 shared", "2 x 5 at 16"]
    for _, (time, *_rest) in found:
        assert time == "500.0"  # of one of two layers


def test_a_sweep_tells_what_each_candidate_takes(attention: Any, capsys: pytest.CaptureFixture[str]) -> None:
    candidates = [attention.AS_IT_IS, *attention.tiles("rows", "16/32/4/2/1"), *attention.tiles("rows", "0/0/0/0/0")]
    attention.compare("decode, us", [attention.Work(2, 1, 19)], candidates, stored=torch.float32, in_us=True)
    title, *lines = capsys.readouterr().out.strip().splitlines()
    assert title.split() == ["decode,", "us", "2", "x", "1", "at", "19"]
    assert [line.split()[0] for line in lines] == ["as", "16/32/4/2/1", "0/0/0/0/0"]
    assert [line.split()[-1] for line in lines[:2]] == ["500", "500"]
    assert not lines[2].split()[-1].isdigit()


def test_products_are_measured_in_every_way(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    linear = script("linear")
    small = {"DEVICE": torch.device("cpu"), "DTYPE": torch.float32, "TOKENS": (1, 64), "SWEPT_TOKENS": (1,)}
    small |= {"SUMS": [linear.Setting(False, 8, 32, 4, 1)], "DOTS": [], "seconds": timed_once, "NUM_THREADS": 1}
    for name, value in small.items():
        monkeypatch.setattr(linear, name, value)
    monkeypatch.setattr(linear.torch.cuda, "synchronize", lambda: None)
    shape = linear.Shape("small", 2, 1, 8, 32, 16, 32, 1)
    parts = linear.products(shape)
    found = dict(linear.measure_products(parts, 1.0))
    assert found["qkv, 1 tokens"][0] == found["qkv, 1 tokens"][3] == found["qkv, 64 tokens"][4] == "1000.0"
    assert found["qkv, 64 tokens"][:4] == [""] * 4
    assert len(list(next(linear.measure_chains(parts, shape))[1])) == len(linear.WAYS)
    assert len(next(linear.measure_neighbours(shape, 1.0))[1]) == 6
    assert next(linear.sweep(parts)).endswith("{1: Setting(False, 8, 32, 4, 1)},  # qkv")
    assert "failed" not in capsys.readouterr().out


def test_the_front_passes_tokens_on() -> None:
    command = [sys.executable, str(BENCH / "front.py"), "--streams", "4", "--tokens", "1500", "--tick-ms", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "start: 4 requests at once" in done.stdout
    assert re.search(r"tokens/s over 4 streams, \d+\.\d\d tokens a frame", done.stdout)
    assert "tick to client: p50" in done.stdout


def test_cases_on_a_cpu_are_told_beside_the_peer_s(script: Any) -> None:
    cpu = script("cpu")
    ours, theirs = [{"c1 decode tok/s": 9.0, "c7 s": 2.0}] * 3, [{"c1 decode tok/s": 3.0, "c7 s": 1.0}]
    table = cpu.table("Q4_1", {"sapwood": ours, "llama.cpp": theirs})
    assert table.header == ["Q4_1", "sapwood", "llama.cpp", "ratio"]
    assert table.rows == [["c1 decode tok/s", "9.00", "3.00", "3.00"], ["c7 s", "2.00", "1.00", "0.50"]]
    assert cpu.table("Q4_1", {"sapwood": ours}).rows[0] == ["c1 decode tok/s", "9.00"]


def test_a_mixture_of_random_weights_is_a_file_like_any_other(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = script("written")
    words = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"] * 40, "tokenizer.ggml.eos_token_id": 2}
    monkeypatch.setattr(written, "open_gguf", lambda path: SimpleNamespace(metadata={"general.name": "x", **words}))
    shape = written.Shape(64, 2, 4, 2, 16, experts=6, used=2, inner=32)
    written.write(shape, GGMLQuantizationType.Q4_0, tmp_path / "none", tmp_path / "model.gguf")
    files = open_files(tmp_path / "model.gguf", name="model")
    decoder = declare(files.config)
    assert (num_parameters(decoder), decoder.vocab_size) == (
        2 * (6 * 3 * 64 * 32 + 64 * 6 + 2 * 6144 + 160) + 64 + 80 * 64,
        40,
    )
    assert [block.ffn.selection.top for block in decoder.blocks] == [2, 2]


def test_perplexity(script: Any, tiny_model: Path) -> None:
    value, tokens = script("quality").perplexity(str(tiny_model), "some words, and some more", {"device": "cpu"})
    assert value > 1
    assert tokens > 3


def test_embeddings_are_measured(script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests import models
    from tests.readers import write_words

    write_words(models.save("bert", tmp_path))
    asked = [str(tmp_path), "--texts", "3", "--shortest", "4", "--longest", "9", "--rounds", "1", "--threads", "1"]
    assert script("embeddings").main(asked) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("sapwood ") and "texts/s" in line
