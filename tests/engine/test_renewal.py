"""Other weights for an engine that runs: what is said then is what an engine says that began with them."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sapwood import LLM, SamplingParams
from sapwood.base.errors import EngineDead, ModelError
from sapwood.base.weights import Given
from sapwood.base.wire import Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.engine.loop import DeviceLost, Engine
from sapwood.executor.fake import FakeExecutor
from sapwood.executor.local import LocalExecutor
from sapwood.nn.renew import store
from tests import models
from tests.engine.whole import drain, prompts_that_share
from tests.quant.test_formats import CHECKPOINTS

OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 200,
    "max_total_tokens": 4096,
    "max_num_seqs": 4,
    "threads": 1,
}
PROMPTS = prompts_that_share(6)
GREEDY = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


def other(model: Path, to: Path, change: Callable[[torch.Tensor], torch.Tensor] = lambda one: one.roll(1, 0)) -> Path:
    """The same model with other matrices."""
    shutil.copytree(model, to)
    for file in to.glob("*.safetensors"):
        tensors = {name: change(one).contiguous() if one.dim() > 1 else one for name, one in load_file(file).items()}
        save_file(tensors, file)
    return to


def begun(model: Path, **options: Any) -> Engine:
    return launch(from_options({"model": str(model)} | OPTIONS | options)).engine


def said(engine: Engine, params: SamplingParams = GREEDY) -> list[list[int]]:
    for id, prompt in enumerate(PROMPTS):
        assert engine.submit(Submit(id, prompt, params)) is None
    return drain(engine, len(PROMPTS))


# Tied heads; windows and norms with an offset; experts; latents, which make something of weights.
FAMILIES = ["llama-tied", "gemma3", "mixtral", "deepseek-v3"]


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_says_what_one_says_that_began_with_them(family: str, kernels: str, tmp_path: Path) -> None:
    model = models.save(family, tmp_path / "old")
    new = other(model, tmp_path / "new")
    engine = begun(model, cpu_kernels=kernels)
    before = said(engine)
    wanted = said(begun(new, cpu_kernels=kernels))
    answer = engine.control("update_weights", {"path": str(new), "version": "step-7"})
    assert answer["weight_version"] == "step-7" == engine.control("status")["weight_version"]
    assert before != wanted == said(engine)


def test_some_tensors_by_name(tiny_model: Path, tmp_path: Path) -> None:
    new = other(tiny_model, tmp_path / "new")
    tensors = load_file(new / "model.safetensors")
    llm, wanted = LLM(str(tiny_model), **OPTIONS), LLM(str(new), **OPTIONS).generate(PROMPTS, GREEDY)
    assert llm.update_weights((name, one) for name, one in tensors.items() if ".layers.0." in name) == "1"
    mixed = [one.token_ids for one in llm.generate(PROMPTS, GREEDY)]
    assert mixed != [one.token_ids for one in wanted]
    name = next(name for name in tensors if "layers.1" in name)
    sums = {name: hashlib.sha256(tensors[name].numpy().tobytes()).hexdigest().upper()}
    rest = ((name, one) for name, one in tensors.items() if ".layers.0." not in name)
    assert llm.update_weights(dict(rest), version="all", checksums=sums) == "all"
    for wrong in ({"a": 1}, [tensors[name]], ["name"]):
        with pytest.raises(ModelError, match=r"a map of names to tensors such as a state_dict\(\), or pairs"):
            llm.update_weights(wrong)  # type: ignore[arg-type]
    assert [one.token_ids for one in llm.generate(PROMPTS, GREEDY)] == [one.token_ids for one in wanted]


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    """As of a tied head, which a state_dict names twice, or of a matrix and a part of it."""
    whole = torch.arange(12.0).view(4, 3)
    tensors = {"embed": whole, "head": whole, "part": whole[1:3], "turned": whole.T}
    store(tensors, tmp_path / "some.safetensors")
    found = load_file(tmp_path / "some.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], one) for name, one in tensors.items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_tensors_of_another_dtype_are_turned_into_the_models_own(
    dtype: torch.dtype, tiny_model: Path, tmp_path: Path
) -> None:
    new = other(tiny_model, tmp_path / "new", lambda one: one.roll(1, 0).to(torch.bfloat16).float())
    tensors = {name: one.to(dtype) for name, one in load_file(new / "model.safetensors").items()}
    llm, wanted = LLM(str(tiny_model), **OPTIONS), LLM(str(new), **OPTIONS).generate(PROMPTS, GREEDY)
    llm.update_weights((name, one) for name, one in tensors.items() if one.dim() > 1)
    assert [one.token_ids for one in llm.generate(PROMPTS, GREEDY)] == [one.token_ids for one in wanted]


def test_weights_that_are_rounded_are_rounded_again(tiny_model: Path, tmp_path: Path) -> None:
    new = other(tiny_model, tmp_path / "new")
    wanted = said(begun(new, quantization="int8"))
    engine = begun(tiny_model, quantization="int8")
    assert "error" not in engine.control("update_weights", {"path": str(new)})
    assert said(engine) == wanted


def broken(new: Path, what: str) -> dict[str, Any]:
    """What is asked for, of a directory that is spoiled for it."""
    file = new / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.down_proj.weight"
    match what:
        case "nowhere":
            return {"path": str(new / "nowhere")}
        case "missing":
            del tensors[name]
        case "unknown":
            tensors["model.layers.7.extra"] = torch.zeros(2)
        case "shape":
            tensors[name] = tensors[name].T.contiguous()
        case "dtype":
            tensors[name] = tensors[name].to(torch.int8)
        case "checksum":
            return {"path": str(new), "checksums": {name: "00"}}
        case "cut off":
            file.write_bytes(file.read_bytes()[:-4])
            return {"path": str(new)}
    save_file(tensors, file)
    return {"path": str(new)}


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("nowhere", "is not there"),
        ("missing", "1 missing: model.layers.0.mlp.down_proj.weight"),
        ("unknown", "1 left over: model.layers.7.extra"),
        ("shape", "1 of another shape"),
        ("dtype", "as I8"),
        ("checksum", "another checksum"),
        ("cut off", "fetch it again"),
    ],
)
def test_what_does_not_fit_changes_nothing(what: str, why: str, tiny_model: Path, tmp_path: Path) -> None:
    engine = begun(tiny_model)
    before = said(engine)
    answer = engine.control("update_weights", broken(other(tiny_model, tmp_path / "new"), what))
    assert why in answer["error"] and answer["weight_version"] == "default"
    assert said(engine) == before
    assert engine.stats().counters["weight_updates"] == 0


@pytest.mark.parametrize("kernels", ["auto", "off"])
@pytest.mark.parametrize("name", ["w4a16", "fp8-dynamic"])
def test_weights_that_are_stored_quantised_are_refused_by_name(name: str, kernels: str) -> None:
    path = CHECKPOINTS / name
    engine = begun(path, cpu_kernels=kernels)
    for given in ({"path": str(path)}, {"path": str(path / "model.safetensors"), "whole": False}):
        assert re.search(
            r"blocks\.0\.\S+ cannot be replaced while .* quantised", engine.control("update_weights", given)["error"]
        )


class Failing(LocalExecutor):
    """Cannot read what it has found good."""

    def take_weights(self, given: Given) -> None:
        raise OSError("the disk is gone")


def test_an_update_that_fails_midway_is_the_end_of_the_engine(tiny_model: Path) -> None:
    from sapwood.catalogue import joined

    config = from_options({"model": str(tiny_model)} | OPTIONS)
    engine = launch(config, executor=Failing(joined())).engine
    with pytest.raises(DeviceLost, match="half old and half new: the disk is gone"):
        engine.control("update_weights", {"path": str(tiny_model)})


def test_a_model_in_this_process_says_so_too(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(str(tiny_model), **OPTIONS)
    with pytest.raises(ModelError, match="holds nothing"):
        llm.update_weights([])
    monkeypatch.setattr(llm._engine.executor, "take_weights", Failing.take_weights.__get__(llm._engine.executor))
    with pytest.raises(EngineDead, match="half old"):
        llm.update_weights(tiny_model)


@pytest.mark.parametrize("depth", [0, 1])
def test_nothing_that_is_older_is_ever_read(depth: int, tiny_model: Path, tmp_path: Path) -> None:
    """The fake engine's cells tell by which weights they were written, and by which they are read."""
    fake = FakeExecutor(kv_bytes=1 << 20)
    config = from_options({"model": str(tiny_model), "depth": depth} | OPTIONS | {"kv_cache_memory": 1 << 20})
    engine = launch(config, executor=fake).engine
    long = SamplingParams(max_tokens=40, temperature=0, ignore_eos=True)
    first = said(engine, long)
    for id, prompt in enumerate(PROMPTS):
        engine.submit(Submit(id, prompt, long))
    mixed: list[list[int]] = [[] for _ in PROMPTS]
    for turn in range(400):
        for news in engine.step():
            for id, token in zip(news.ids, news.tokens, strict=True):
                mixed[id].append(token)
            for delta in news.deltas:
                assert delta.error is None
                mixed[delta.id] += delta.tokens
        if turn in (3, 9, 14):
            engine.control("update_weights", {"path": str(tiny_model)})
    assert engine.idle and engine.audit() == 0
    assert [len(one) for one in mixed] == [40] * len(PROMPTS)  # none lost, and all go on
    assert mixed != first
    assert said(engine, long) != first
    assert len(engine.control("status")["pages"]) == 1


def test_versions_come_with_what_ends(tiny_model: Path) -> None:
    engine = launch(
        from_options({"model": str(tiny_model)} | OPTIONS | {"kv_cache_memory": 1 << 20}), executor=FakeExecutor()
    ).engine

    def version() -> str:
        engine.submit(Submit(0, PROMPTS[0], GREEDY))
        ends = []
        while not engine.idle:
            ends += [delta.weight_version for news in engine.step() for delta in news.deltas if delta.finish]
        return "".join(ends)

    assert version() == "default"
    engine.control("update_weights", {"path": str(tiny_model), "version": "v2"})
    assert version() == "v2"
