"""Whole engines with stores: answers from prefixes that were restored are those of a cold run, token for token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sapwood.base.errors import ConfigError
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Submit
from sapwood.config.flags import from_options
from sapwood.engine.launch import launch
from sapwood.engine.loop import Engine
from sapwood.hub.cache import Cache
from sapwood.hub.files import open_files
from sapwood.hub.fingerprint import fingerprint
from sapwood.stores import HostShelf, StoreStake
from sapwood.stores import folder as folders
from tests import models
from tests.engine.whole import prompts_that_share

BASE = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 4, "max_num_batched_tokens": 64}
PROMPTS = [prompt * 2 for prompt in prompts_that_share(4)]


def started(model: Path, **options: Any) -> Engine:
    return launch(from_options(BASE | {"model": str(model), "max_total_tokens": 1024} | options)).engine


def say(engine: Engine, prompts: Sequence[list[int]], **params: Any) -> tuple[list[list[int]], list[int]]:
    """What is said to prompts that come one after another, and how much of each was cached."""
    said: list[list[int]] = []
    cached: list[int] = []
    for id, prompt in enumerate(prompts):
        fields = {"max_tokens": 6, "temperature": 0.0, "ignore_eos": True} | params
        assert engine.submit(Submit(id, prompt, SamplingParams(**fields))) is None
        said.append([])
        while not engine.idle:
            for news in engine.step():
                said[-1] += news.tokens
                for delta in news.deltas:
                    assert delta.error is None
                    said[-1] += delta.tokens
                    cached += [delta.cached_tokens] if delta.cached_tokens >= 0 else []
        while engine.tidy():
            pass
    assert engine.audit() == 0
    return said, cached


def forget(engine: Engine) -> None:
    """What the device has."""
    engine.control("flush_cache")
    pages, free, _ = engine.stats().pages[0]
    assert pages == free


def test_what_the_device_has_is_wanted_in_stores_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a store would give up first what is always found on the device."""
    touched: list[bytes] = []
    monkeypatch.setattr(HostShelf, "touch", lambda shelf, keys: touched.extend(keys))
    stored: list[bytes] = []
    put = HostShelf.put
    monkeypatch.setattr(HostShelf, "put", lambda shelf, key, page: stored.append(key) or put(shelf, key, page))
    engine = started(models.save("llama", tmp_path), kv_store="host:64M")
    _, (first, second) = say(engine, [PROMPTS[0], PROMPTS[0]])
    engine.shutdown()
    assert first == 0 < second and touched and set(touched) <= set(stored)
    assert touched[::-1] == stored[: len(touched)] and len(touched) >= second // 16


CACHES = [
    ("llama", {}),
    ("llama", {"kv_cache_dtype": "int8"}),
    ("gemma3", {}),
    ("mistral", {"page_size": 4, "cpu_kernels": "off"}),
    ("llama", {"depth": 1, "speculation": "ngram", "num_speculative_tokens": 3}),
]


@pytest.mark.parametrize(("family", "options"), CACHES, ids=str)
def test_restored_from_host_memory(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = models.save(family, tmp_path)
    engine = started(model, kv_store="host:64M", **options)
    params = {"temperature": 0.9, "seed": 3}
    cold, before = say(engine, PROMPTS, **params)
    forget(engine)
    warm, after = say(engine, PROMPTS, **params)
    assert warm == cold
    size = 4 if "page_size" in options else 16
    assert after == [(len(prompt) - 1) // size * size for prompt in PROMPTS] and sum(before) < sum(after)
    assert engine.stats().counters["store_hits_host"] > 0
    engine.shutdown()


def test_restored_by_another_engine(tmp_path: Path) -> None:
    """From a directory, and from what was exported; nothing of it where the model, its weights or its KV are others."""
    model = models.save("llama", tmp_path / "model")
    place = f"file:{tmp_path / 'kv'}?size=64M"
    engine = started(model, kv_store=place)
    cold, _ = say(engine, PROMPTS)
    engine.shutdown()

    engine = started(model, kv_store=f"host:1M,{place}")
    warm, cached = say(engine, PROMPTS)
    assert warm == cold and min(cached) > 0 and cached[0] == (len(PROMPTS[0]) - 1) // 16 * 16
    engine.shutdown()

    folders.pack(tmp_path / "kv", tmp_path / "packed")
    engine = started(model, preload_cache=str(tmp_path / "packed"))
    warm, cached = say(engine, PROMPTS)
    assert warm == cold and cached[0] == (len(PROMPTS[0]) - 1) // 16 * 16
    engine.shutdown()

    other = other_weights(model, tmp_path / "other")
    for path, options in ((other, {}), (model, {"kv_cache_dtype": "float16"}), (model, {"quantization": "int8"})):
        engine = started(path, kv_store=place, **options)
        _, cached = say(engine, PROMPTS[:1])
        assert cached == [0]
        engine.shutdown()
    assert len(folders.contents(tmp_path / "kv")) == 4


def other_weights(model: Path, path: Path) -> Path:
    """The same model, of which one number has been trained on."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, path)
    tensors = load_file(path / "model.safetensors")
    with torch.no_grad():
        next(iter(tensors.values())).view(-1)[7] += 1.0
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def test_fingerprints_are_of_contents(tmp_path: Path) -> None:
    model = models.save("llama", tmp_path / "model")
    shutil.copytree(model, tmp_path / "copy")
    one, copy, other = (
        open_files(path, name=path.name)
        for path in (model, tmp_path / "copy", other_weights(model, tmp_path / "other"))
    )
    assert fingerprint(one) == fingerprint(copy) != fingerprint(other)
    assert fingerprint(one, weights=False) == fingerprint(other, weights=False)
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"rope_theta": 20000.0}))
    assert fingerprint(open_files(tmp_path / "copy", name="copy")) != fingerprint(one)


def test_large_files_are_read_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sapwood.hub.fingerprint._SMALL", 0)
    monkeypatch.setattr("sapwood.hub.fingerprint._STRETCH", 1000)
    path, cache = models.save("llama", tmp_path / "model"), Cache(tmp_path / "cache")
    files = open_files(path, name="m")
    first = fingerprint(files, cache=cache)
    (kept,) = cache.digests.iterdir()
    assert fingerprint(files, cache=cache) == first
    weights = path / "model.safetensors"
    data = bytearray(weights.read_bytes())
    for place in (0, len(data) // 2, len(data) - 1):  # any byte of it
        data[place] ^= 1
        weights.write_bytes(data)
        assert fingerprint(open_files(path, name="m", weights=False), cache=cache) != first
        data[place] ^= 1
    weights.write_bytes(data)
    assert fingerprint(files, cache=Cache(kept)) == first  # nowhere to write to


def test_selective_keeps_what_was_found_again(tmp_path: Path) -> None:
    model = models.save("llama", tmp_path)
    engine = started(model, kv_store="host:64M", kv_store_write="selective")
    say(engine, PROMPTS[:1])
    assert engine.stats().counters["stored_bytes_host"] == 0
    say(engine, PROMPTS[:1])
    assert engine.stats().counters["stored_bytes_host"] > 0
    forget(engine)
    assert say(engine, PROMPTS[:1])[1] == [(len(PROMPTS[0]) - 1) // 16 * 16]
    engine.shutdown()


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_is_evicted_is_kept_then(family: str, tmp_path: Path) -> None:
    engine = started(
        models.save(family, tmp_path / "model"), kv_store="host:64M", kv_store_write="back", max_total_tokens=320
    )
    cold, _ = say(engine, PROMPTS[:1])
    assert engine.stats().counters["stored_bytes_host"] == 0
    for turn in range(4):
        say(engine, [[turn + 1] * 200])
    assert engine.stats().counters["stored_bytes_host"] > 0 == engine.stats().counters["store_hits_host"]
    warm, (cached,) = say(engine, PROMPTS[:1])
    assert warm == cold and cached == (len(PROMPTS[0]) - 1) // 16 * 16
    assert engine.stats().counters["store_hits_host"] > 0
    engine.shutdown()


def test_what_is_on_the_device_in_the_end_is_kept_in_a_directory(tmp_path: Path) -> None:
    model = models.save("llama", tmp_path / "model")
    options = {"kv_store": f"file:{tmp_path / 'kv'}?size=64M", "hicache_write_policy": "write_back"}
    engine = started(model, **options)
    cold, _ = say(engine, PROMPTS)
    engine.shutdown()
    engine = started(model, **options)
    warm, cached = say(engine, PROMPTS)
    assert warm == cold and cached[0] == (len(PROMPTS[0]) - 1) // 16 * 16
    engine.shutdown()


def test_what_is_computed_sooner_is_not_loaded(tmp_path: Path) -> None:
    model = models.save("llama", tmp_path)
    engine = started(model, kv_store="host:64M")
    say(engine, PROMPTS)
    forget(engine)
    (stake,) = [one for one in engine.scheduler._roster.stakes if isinstance(one, StoreStake)]
    stake._store._tiers.shelves[0].bytes_per_second = 1.0  # type: ignore[attr-defined]
    stake._prefill.rate = 1e9
    _, cached = say(engine, PROMPTS[:1])
    assert cached == [0]
    stake._prefill.rate = 1e-9
    forget(engine)
    assert say(engine, PROMPTS[:1])[1] != [0]
    engine.shutdown()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"kv_store": "host"}, "host:SIZE, file:DIR"),
        ({"kv_store": "host:many"}, "a size is bytes"),
        ({"kv_store": "host:-1"}, "a size is bytes"),
        ({"kv_store": "tape:1G"}, "host:SIZE, file:DIR"),
        ({"kv_store": "redis:localhost"}, "takes a server"),
        ({"kv_store": "valkey://here:none"}, "takes a server"),
        ({"kv_store": "lm://here"}, "takes an LMCache server"),
        ({"kv_store": "lm://here:none"}, "takes an LMCache server"),
        ({"kv_store": "host:1M,host:2M"}, "once each"),
        ({"kv_store": "file:a?sizes=3"}, "takes a directory"),
        ({"kv_store": "host:1000T"}, "this machine has"),
        ({"kv_store": "host:1M", "prefix_caching": False}, "--enable-prefix-caching"),
        ({"kv_offloading_size": 0}, "more than 0"),
        ({"hierarchical_cache": True}, "--hicache-size"),
        ({"kv_transfer_config": "{}"}, "--kv-store host:8G"),
        ({"preload_cache": "/nowhere/at/all"}, "--preload-cache /nowhere"),
    ],
    ids=str,
)
def test_what_is_refused(options: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        started(models.save("llama", tmp_path), **options)


def test_spellings_of_other_engines(tmp_path: Path) -> None:
    engine, facts, _ = launch(
        from_options(
            BASE
            | {"model": str(models.save("llama", tmp_path)), "max_total_tokens": 1024}
            | {"hicache_size": 0.25, "enable_hierarchical_cache": True, "hicache_write_policy": "write_through"}
        )
    )
    assert any(line.startswith("kv_store = 0.25 GiB of host memory (loaded where") for line in facts.decisions)
    engine.shutdown()
