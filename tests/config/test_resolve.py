"""The rules: what is derived, what is kept, and what is refused with which words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapwood.base.errors import ConfigError
from sapwood.config import flags
from sapwood.config.facts import DeviceFacts, ModelShape
from sapwood.config.flags import from_options
from sapwood.config.options import Config
from sapwood.config.resolve import resolve
from sapwood.config.weights import weight_bytes
from tests import kv

GIB = 1 << 30
CPU = DeviceFacts(
    kind="cpu",
    name="a CPU",
    num_cores=2,
    total_memory=24 * GIB,
    free_memory=20 * GIB,
    dtypes=("float32", "bfloat16", "float16"),
)
H100 = DeviceFacts(
    kind="cuda",
    index=1,
    name="an H100",
    num_cores=16,
    total_memory=80 * GIB,
    free_memory=79 * GIB,
    capability=(9, 0),
    dtypes=("float32", "float16", "bfloat16"),
)
SMALL = ModelShape(
    default_name="small",
    max_positions=8192,
    vocab_size=49152,
    num_parameters=135_000_000,
    kv_groups=(kv.group(num_layers=30, num_heads=9, num_kv_heads=3, head_dim=64, page_size=1),),
)
LLAMA_8B = ModelShape(
    default_name="llama",
    max_positions=131072,
    vocab_size=128256,
    num_parameters=8_000_000_000,
    kv_groups=(kv.group(num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, page_size=1),),
)


def resolved(model: ModelShape, device: DeviceFacts, **options: Any) -> Config:
    return resolve(from_options(options), model, device)[0]


def test_what_is_said_to_be_derived_is() -> None:
    """On one device at least; and of what is not nothing is made on any."""
    configs = [resolved(SMALL, device) for device in (CPU, H100)]
    for option in flags.options():
        made = [_value(config, option.section, option.field) is not None for config in configs]
        if option.default is None:
            assert any(made) == option.derived, option.field
            assert all(made) or not any(made) or option.field == "kv_cache_memory", option.field


def test_adapters_put_the_cpu_s_own_kernels_aside(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8, "rank_pattern": {"q_proj": 40}}')
    given = from_options({"lora_modules": (f"one={tmp_path}",)})
    reasons = {one.field: (one.value, one.reason) for one in resolve(given, SMALL, CPU)[1]}
    assert reasons["max_lora_rank"] == (
        40,
        "the largest of the adapters that are there at the start; PyTorch's modules compute the model",
    )
    assert reasons["max_cpu_loras"][0] == 32
    reasons = {one.field: (one.value, one.reason) for one in resolve(given, SMALL, H100)[1]}
    assert reasons["max_lora_rank"] == (40, "the largest of the adapters that are there at the start")
    config, decisions = resolve(from_options({}), SMALL, CPU)
    assert config.adapters.max_lora_rank == 16 and not any("lora" in one.field for one in decisions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_loras": 0}, "--max-loras must be at least 1, got 0"),
        ({"max_loras": 4, "max_cpu_loras": 3}, r"--max-cpu-loras \(3\) must not be below --max-loras \(4\)"),
        ({"enable_lora": True, "model_impl": "transformers"}, "does not go with --model-impl transformers"),
        ({"enable_lora": True, "pipeline_parallel_size": 2}, "does not go with --pipeline-parallel-size"),
        ({"lora_modules": ("a=/x", "a=/y")}, "names 'a' twice"),
        ({"lora_modules": ("=x",)}, "expected NAME=PATH"),
    ],
)
def test_adapters_at_odds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolved(SMALL, CPU, **options)


def test_on_a_cpu() -> None:
    config = resolved(SMALL, CPU)
    assert (config.device.device, config.model.dtype, config.cache.kv_cache_dtype) == ("cpu", "float32", "float16")
    assert (config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens) == (64, 512)
    assert (config.scheduler.chunked_prefill_size, config.scheduler.depth, config.device.threads) == (256, 0, 2)
    per_token = 2 * 30 * 2 * 3 * 64
    assert config.cache.kv_cache_memory == (4 * 8192 + 16) * per_token, "a few of the longest requests"
    short = resolved(replace(SMALL, max_positions=2048), CPU, max_num_seqs=64)
    assert short.cache.kv_cache_memory == (64 * 512 + 16) * per_token, "or all, if they are short"
    assert (config.model.max_model_len, config.model.served_model_name) == (8192, ("small",))


def test_on_a_gpu() -> None:
    config = resolved(LLAMA_8B, H100)
    assert (config.device.device, config.model.dtype, config.cache.memory_fraction) == ("cuda:1", "bfloat16", 0.9)
    assert (config.scheduler.max_num_seqs, config.scheduler.max_num_batched_tokens) == (1024, 8192)
    assert (config.scheduler.depth, config.cache.kv_cache_memory, config.model.max_model_len) == (1, None, 131072)


def test_a_gpu_runs_as_many_requests_as_its_memory_holds() -> None:
    def seqs(model: ModelShape, gigabytes: int, **options: Any) -> int | None:
        device = replace(H100, total_memory=gigabytes * GIB, free_memory=gigabytes * GIB)
        return resolved(model, device, **options).scheduler.max_num_seqs

    assert [seqs(LLAMA_8B, size) for size in (24, 48, 80)] == [256, 512, 1024]
    assert seqs(LLAMA_8B, 40, kv_cache_dtype="fp8") == 2 * (seqs(LLAMA_8B, 40) or 0), "half the bytes, twice the rows"
    assert seqs(LLAMA_8B, 80, kv_cache_memory=8 * GIB) == 256
    assert seqs(SMALL, 24) == 1024
    windows = replace(
        LLAMA_8B,
        kv_groups=(kv.group(num_layers=32, num_heads=32, num_kv_heads=8, head_dim=128, window=4096, page_size=1),),
    )
    assert seqs(windows, 80) == 256, "a sequence keeps a whole window however short it is"


@pytest.mark.parametrize("name", ["max_num_batched_tokens", "cuda_graph_max_tokens"])
def test_what_is_derived_agrees_with_what_is_given(name: str) -> None:
    config, decisions = resolve(from_options({name: 300}), LLAMA_8B, H100)
    assert config.scheduler.max_num_seqs == 300
    assert config.device.cuda_graph_max_tokens == 300
    (reason,) = (decision.reason for decision in decisions if decision.field == "max_num_seqs")
    assert reason == f"--{name.replace('_', '-')} allows no more"


def test_float8_keys_and_values() -> None:
    for name in ("fp8", "fp8_e4m3"):
        assert resolved(LLAMA_8B, H100, kv_cache_dtype=name).cache.kv_cache_dtype == "fp8_e4m3"
        with pytest.raises(ConfigError, match=r"--kv-cache-dtype fp8_e4m3: .* does not have it"):
            resolved(SMALL, CPU, kv_cache_dtype=name)
    tight = replace(H100, total_memory=24 * GIB, free_memory=24 * GIB)
    halves, eighths = (resolved(LLAMA_8B, tight, kv_cache_dtype=name).model.max_model_len for name in ("auto", "fp8"))
    assert halves is not None
    assert eighths is not None
    assert 1.9 * halves < eighths


def test_the_checkpoint_decides_between_halves() -> None:
    assert resolved(replace(SMALL, dtype="float16"), H100).model.dtype == "float16"
    assert resolved(replace(SMALL, dtype="float32"), H100).model.dtype == "bfloat16"
    turing = replace(H100, dtypes=("float32", "float16"))
    assert resolved(SMALL, turing).model.dtype == "float16"


def test_a_cpu_keeps_most_of_its_memory_free() -> None:
    laptop = replace(CPU, free_memory=2 * GIB)
    budget = resolved(SMALL, laptop).cache.kv_cache_memory
    assert budget is not None
    assert budget <= GIB // 2
    few = resolved(SMALL, CPU, max_num_seqs=1, max_model_len=100).cache.kv_cache_memory
    assert few == (112 + 16) * 2 * 30 * 2 * 3 * 64, "whole pages, and the reserved one"


def test_the_length_follows_the_memory() -> None:
    config = resolved(LLAMA_8B, replace(H100, total_memory=24 * GIB, free_memory=24 * GIB))
    assert config.model.max_model_len is not None
    assert 16 <= config.model.max_model_len < 131072
    assert config.model.max_model_len % 16 == 0
    assert resolved(SMALL, CPU, max_total_tokens=1000).model.max_model_len == 992


def test_windows_cost_nothing_per_token() -> None:
    """A step beside the window and their borders, and the reserved page of both groups."""
    windowed = replace(
        SMALL,
        kv_groups=(
            kv.group(num_layers=1, num_heads=1, num_kv_heads=1, head_dim=64, page_size=1),
            kv.group(num_layers=5, num_heads=1, num_kv_heads=1, head_dim=64, window=128, page_size=1),
        ),
    )
    page = 2 * 64 * 16 * 2
    need = (8192 // 16 + 1) * page + (128 // 16 + 1 + 512 // 16 + 1 + 1) * 5 * page
    assert resolved(windowed, CPU, kv_cache_memory=need).model.max_model_len == 8192
    assert resolved(windowed, CPU, kv_cache_memory=need - 1).model.max_model_len < 8192
    assert resolved(windowed, CPU, kv_cache_memory=need - page, max_model_len=8176).model.max_model_len == 8176


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_what_was_asked_for_is_what_the_derived_cache_holds(dtype: str) -> None:
    """The reserved page and the scales of int8 are counted, so that no page is missing in the end."""
    page = 2 * 30 * 3 * 16 * (64 * 2 if dtype == "float16" else 64 + 4)
    for seqs in (1, 2):
        config = resolved(SMALL, CPU, max_num_seqs=seqs, max_model_len=2048, kv_cache_dtype=dtype)
        assert config.cache.kv_cache_memory == (seqs * 128 + 1) * page
    with pytest.raises(ConfigError, match=r"--max-model-len \(2048\) does not fit.*about 2032"):
        resolved(SMALL, CPU, max_model_len=2048, kv_cache_memory=129 * page - 1, kv_cache_dtype=dtype)


def test_the_budget_holds_more_than_the_rows() -> None:
    assert resolved(SMALL, CPU, max_num_seqs=1000).scheduler.max_num_batched_tokens == 2000
    assert resolved(SMALL, CPU, max_num_batched_tokens=16).scheduler.max_num_seqs == 16


def test_what_was_asked_for_is_kept_and_said() -> None:
    _, decisions = resolve(from_options({"page_size": 32}), SMALL, CPU)
    said = {decision.field: decision for decision in decisions}
    assert (said["page_size"].value, said["page_size"].reason) == (32, "as asked")
    assert str(said["dtype"]) == "dtype = float32 (half-precision products are slow on a CPU)"
    assert all(decision.reason for decision in decisions)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_num_seqs": 64, "max_num_batched_tokens": 32}, ("--max-num-batched-tokens", "--max-num-seqs")),
        ({"chunked_prefill_size": 1024}, ("--chunked-prefill-size", "--max-num-batched-tokens")),
        ({"page_size": 24}, ("--page-size", "power of two")),
        ({"page_size": 0}, ("--page-size", "at least 1")),
        ({"memory_fraction": 1.5}, ("--mem-fraction-static", "(0, 1]")),
        ({"memory_fraction": 0.0}, ("--mem-fraction-static",)),
        ({"max_model_len": 8193}, ("--max-model-len", "8192", "rope_scaling")),
        ({"max_model_len": 8192, "max_total_tokens": 100}, ("--max-model-len", "100", "--max-total-tokens")),
        ({"kv_cache_memory": 1024}, ("too little memory", "--kv-cache-memory")),
        ({"kv_cache_memory": 100 << 40}, ("too little memory", "--kv-cache-memory asks for", "24.00 GiB")),
        ({"port": 70000}, ("--port", "65535")),
        ({"seed": -1}, ("--seed",)),
        ({"depth": 9}, ("--overlap-depth",)),
        ({"drain_seconds": -1.0}, ("--drain-timeout",)),
        ({"request_seconds": 0.0}, ("--request-timeout",)),
        ({"max_request_seconds": -1.0}, ("--max-request-timeout",)),
        ({"watchdog_seconds": 0.0}, ("--watchdog-timeout",)),
        ({"max_engine_restarts": -1}, ("--max-engine-restarts",)),
        ({"encoder_cache_host_memory": -1}, ("--encoder-cache-host-memory must be at least 0",)),
        ({"max_image_pixels": 0}, ("--max-image-pixels must be at least 1",)),
        ({"thinking_budget": -1}, ("--thinking-budget", "[0, 2147483647]")),
    ],
)
def test_contradictions(options: dict[str, Any], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(SMALL, CPU, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_what_the_device_cannot_do() -> None:
    with pytest.raises(ConfigError, match="--dtype bfloat16"):
        resolved(SMALL, replace(H100, dtypes=("float32", "float16")), dtype="bfloat16")
    with pytest.raises(ConfigError, match="--attention-backend cpu"):
        resolved(SMALL, H100, attention_backend="cpu")
    with pytest.raises(ConfigError, match="too little memory"):
        resolved(LLAMA_8B, replace(H100, total_memory=8 * GIB, free_memory=8 * GIB))


@settings(max_examples=200, deadline=None)
@given(
    device=st.sampled_from([CPU, H100]),
    free=st.integers(0, 64 * GIB),
    options=st.fixed_dictionaries(
        {},
        optional={
            "max_num_seqs": st.integers(1, 5000),
            "max_num_batched_tokens": st.integers(1, 20000),
            "max_model_len": st.integers(1, 10000),
            "page_size": st.sampled_from([1, 16, 256]),
            "kv_cache_memory": st.integers(1, 8 * GIB),
            "max_total_tokens": st.integers(1, 100_000),
        },
    ),
)
def test_whatever_comes_out_is_consistent(device: DeviceFacts, free: int, options: dict[str, Any]) -> None:
    try:
        config = resolved(SMALL, replace(device, free_memory=free), **options)
    except ConfigError:
        return
    scheduler = config.scheduler
    assert scheduler.max_num_batched_tokens >= scheduler.max_num_seqs >= 1
    assert 1 <= scheduler.chunked_prefill_size <= scheduler.max_num_batched_tokens
    assert 1 <= config.model.max_model_len <= SMALL.max_positions
    again, decisions = resolve(config, SMALL, replace(device, free_memory=free))
    assert again == config
    assert {decision.reason for decision in decisions if decision.value != "what is left"} == {"as asked"}


def _value(config: Config, section: str, field: str) -> Any:
    return getattr(getattr(config, section), field)


def test_a_cpu_counts_weights_as_they_are_stored() -> None:
    """An 8B model in 4 bits fits a laptop of 16 GiB."""
    laptop = replace(CPU, total_memory=16 * GIB, free_memory=10 * GIB)
    file = replace(LLAMA_8B, stored_bytes=5 * GIB, dtype="float16")
    assert weight_bytes(resolved(file, laptop), file)[0] == 5 * GIB * 5 // 4
    assert (resolved(file, laptop).cache.kv_cache_memory or 0) > GIB // 2
    with pytest.raises(ConfigError, match="too little memory"):
        resolved(file, laptop, cpu_kernels="off")
    plain = replace(SMALL, num_parameters=32_000)
    for options, expected in (({}, 64_000), ({"quantization": "int8"}, 36_000), ({"quantization": "int4"}, 20_000)):
        assert weight_bytes(resolved(plain, CPU, **options), plain)[0] == expected
    assert weight_bytes(resolved(plain, CPU, cpu_kernels="off"), plain)[0] == 128_000
