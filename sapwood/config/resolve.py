"""What was left open, decided: pure rules from options, model and device, each with its reason.

A rule is asked only where the user said nothing. Rules run in the order of `_RULES`, so a later one may build on
what an earlier one decided; `_check` then looks at the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from typing import Any, TypeVar

from sapwood.base.errors import ConfigError
from sapwood.base.kv import SCALE_BYTES, KVGroup, most_rewound, page_size_problem
from sapwood.base.layout import longest_sequence, pages_for, split_pages
from sapwood.config import adapters, parallel, sight, speculation, stores, texts, thinning
from sapwood.config.devices import RULES
from sapwood.config.facts import DeviceFacts, ModelShape
from sapwood.config.fairness import policy
from sapwood.config.flags import flag_of, replace
from sapwood.config.house import memory_fraction
from sapwood.config.impl import model_impl
from sapwood.config.options import Config
from sapwood.config.weights import ITEMSIZE, weights_bytes

_GIB = 1 << 30
_OPEN = (
    "auto",
    "fp8",
    "int8_per_token_head",
    *(kind for kind, rules in RULES.items() if rules.numbered),
)  # leave something to decide

_T = TypeVar("_T")
_Rule = Callable[[Config, ModelShape, DeviceFacts], tuple[Any, str]]


@dataclass(frozen=True)
class Decision:
    """One option's final value, and why."""

    field: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.field} = {self.shown} ({self.reason})"

    @property
    def shown(self) -> str:
        if self.field == "kv_cache_memory" and isinstance(self.value, int):
            return gib(self.value)
        return ", ".join(self.value) if isinstance(self.value, tuple) else str(self.value)


def resolve(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[Config, tuple[Decision, ...]]:
    """Fill in every derived option and check the whole; ConfigError names the flags at odds and the mend.

    `kv_cache_memory` stays None where the device's memory is its own: the pool takes what is left of `memory_fraction`
    once the weights are there.
    """
    config = speculation.spelled(config)
    _check_ranges(config)
    device = device.of_each(config.parallel.ranks * config.parallel.data_parallel_size)
    decisions = []
    for section, field, rule in _RULES:
        given = getattr(getattr(config, section), field)
        if given is not None and given not in _OPEN:
            decisions.append(Decision(field, given, "as asked"))
            continue
        value, reason = rule(config, model, device)
        config = replace(config, section, **{field: value})
        if reason:
            decisions.append(Decision(field, "what is left" if value is None else value, reason))
    _check(config, model, device)
    if stored := stores.places(config.stores):
        decisions.append(Decision("kv_store", " + ".join(map(str, stored)), stores.FORMULA))
    decisions += [Decision(*one) for one in thinning.told(config)]
    return config, tuple(decisions)


def gib(num_bytes: int) -> str:
    """Bytes as people read them."""
    return f"{num_bytes / _GIB:.2f} GiB" if num_bytes >= _GIB else f"{num_bytes / (1 << 20):.0f} MiB"


# --- rules ---


def _device(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[str, str]:
    found = device.rules.found
    return device.option, found.format(name=device.name, cores=device.num_cores, memory=gib(device.total_memory))


def _served_model_name(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[tuple[str, ...], str]:
    return (model.default_name,), "the model's own name"


def _dtype(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[str, str]:
    if device.rules.dtype is not None:
        return device.rules.dtype
    if model.dtype in ("bfloat16", "float16") and model.dtype in device.dtypes:
        return model.dtype, "the checkpoint's"
    if "bfloat16" in device.dtypes:
        return "bfloat16", f"the checkpoint's {model.dtype} would take twice the memory"
    return "float16", f"{device.name} does not compute in bfloat16"


def _kv_cache_dtype(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[str, str]:
    if config.cache.kv_cache_dtype == "fp8":
        return "fp8_e4m3", "keeps more of a value's digits than the other float8"
    if config.cache.kv_cache_dtype == "int8_per_token_head":
        return "int8", "always has a scale for each position and head"
    if device.rules.halves and config.model.dtype == "float32" and model.dtype != "float32":
        return "float16", "the checkpoint keeps no more digits, and half of the memory is read"
    return config.model.dtype, "as the activations"


def _page_size(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    return 16, "shares prefixes finely and still reads whole cache lines"


def _max_num_seqs(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    most, where = _seqs_held(config, model, device)
    bounds = {
        "max_num_batched_tokens": config.scheduler.max_num_batched_tokens,
        "cuda_graph_max_tokens": config.device.cuda_graph_max_tokens,
    }
    for name, bound in bounds.items():
        if bound is not None and bound < most:
            most, where = bound, f"{flag_of(name)} allows no more"
    return most, where


_LEAST_LEN = 256
"""How short requests are while a device runs as many at once as its memory holds."""


def _seqs_held(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    groups = _kv_groups(config, model)
    each = sum(
        page_bytes(config, group)
        * (
            -(-max(_LEAST_LEN, group.window or 0) // group.page_size)
            if group.kind.divisible
            else pages_for(group, 1, _LEAST_LEN, step_tokens=1)
        )
        for group in groups
    )
    held = max(_cache_budget(config, model, device), 0) // max(each, 1)
    choices = device.rules.seqs
    most = max((seqs for seqs in choices if seqs <= held), default=choices[0])
    if most == choices[-1]:
        return most, device.rules.beyond
    return most, f"the memory holds {held} requests of {_LEAST_LEN} tokens"


def _max_num_batched_tokens(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    base, reason = texts.step_tokens(config, model, device.rules.step_tokens)
    seqs = _known(config.scheduler.max_num_seqs)
    if base <= seqs:
        return 2 * seqs, f"twice {flag_of('max_num_seqs')}, so that prompts get in beside running requests"
    return base, reason


def _chunked_prefill_size(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    base = device.rules.chunk
    budget = _known(config.scheduler.max_num_batched_tokens)
    if base >= budget:
        return budget, "the whole of a step"
    return base, "a long prompt does not stall running answers"


_FEW_SEQS, _SHORT_LEN = 4, 512
"""What a KV cache in the host's memory holds unless that is short: a few requests as long as may be, or all of them if they are short."""


def _kv_cache_memory(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int | None, str]:
    if device.rules.own_memory:
        share = f"{_known(config.cache.memory_fraction):.0%} of the device, less weights and activations"
        return None, share
    longest = config.model.max_model_len or model.max_positions
    seqs = _known(config.scheduler.max_num_seqs)
    free = max(device.free_memory - weights_bytes(config, model), 0)
    few, short = min(seqs, _FEW_SEQS), min(longest, _SHORT_LEN)
    size, reason = min(
        max(
            (_pool_bytes(config, model, few, longest), f"{few} requests of {longest} tokens"),
            (_pool_bytes(config, model, seqs, short), f"{seqs} requests of {short} tokens"),
        ),
        (free // 4, "a quarter of the free memory"),
        (4 * _GIB, "more would crowd out other programs"),
    )
    return size, reason


def _max_model_len(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    fits, page = _longest_sequence(config, model, device), _known(config.cache.page_size)
    if not model.chunks and (step := _known(config.scheduler.max_num_batched_tokens)) < min(fits, model.max_positions):
        return step, texts.WHOLE
    if fits >= model.max_positions:
        return model.max_positions, "the model's"
    if fits < page:
        weights, free = gib(weights_bytes(config, model)), gib(device.free_memory)
        if (
            (asked := config.cache.kv_cache_memory) is not None
            and not device.rules.own_memory
            and asked < (need := _pool_bytes(config, model, 1, page))
        ):
            raise ConfigError(
                f"too little memory: the KV cache is to take {asked} bytes, and one page of {page} tokens beside the "
                f"reserved one takes {need}. Raise {flag_of('kv_cache_memory')}, or free some memory."
            )
        raise ConfigError(
            f"too little memory: after {weights} of weights, {free} free on {device.name} leave no room for KV cache. "
            f"Free some memory, take a smaller model, or raise {flag_of('memory_fraction')} or "
            f"{flag_of('kv_cache_memory')}."
        )
    return fits // page * page, f"what the KV cache holds; the model could take {model.max_positions}"


def _cuda_graph_max_tokens(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    # A launch costs a host about 20 microseconds and a step has hundreds: 10 ms, in which a GPU computes 4 TFLOP.
    busy = 4e12 / (2 * model.num_parameters)
    wanted = min(4096, max(512, 1 << math.ceil(math.log2(busy))))
    seqs, budget = _known(config.scheduler.max_num_seqs), _known(config.scheduler.max_num_batched_tokens)
    return min(budget, max(seqs, wanted)), "a larger step keeps the GPU busy longer than its launches take"


def _depth(config: Config, model: ModelShape, device: DeviceFacts) -> tuple[int, str]:
    return device.rules.depth


_RULES: tuple[tuple[str, str, _Rule], ...] = (
    ("device", "device", _device),
    ("parallel", "tensor_parallel_size", parallel.size_rule),
    ("model", "served_model_name", _served_model_name),
    ("model", "model_impl", model_impl),
    ("model", "dtype", _dtype),
    ("cache", "kv_cache_dtype", _kv_cache_dtype),
    ("cache", "page_size", _page_size),
    ("cache", "memory_fraction", memory_fraction),
    ("scheduler", "max_num_seqs", _max_num_seqs),
    ("scheduler", "max_num_batched_tokens", _max_num_batched_tokens),
    ("scheduler", "chunked_prefill_size", _chunked_prefill_size),
    ("cache", "kv_cache_memory", _kv_cache_memory),
    ("model", "max_model_len", _max_model_len),
    ("device", "threads", parallel.threads_rule),
    ("scheduler", "depth", _depth),
    ("scheduler", "policy", policy),
    ("device", "cuda_graph_max_tokens", _cuda_graph_max_tokens),
    ("speculation", "speculation", speculation.drafter_rule),
    ("speculation", "num_speculative_tokens", speculation.count_rule),
    *adapters.RULES,
    ("sight", "max_pixels", sight.pixels_rule),
)


# --- arithmetic ---


def token_bytes(config: Config, model: ModelShape) -> int:
    """Bytes that one token keeps in the layers that see everything."""
    sizes = [page_bytes(config, group) for group in _kv_groups(config, model) if group.window is None]
    return sum(sizes) // _known(config.cache.page_size)


def page_bytes(config: Config, group: KVGroup) -> int:
    """Bytes of one page of a group."""
    dtype = config.cache.kv_cache_dtype
    return group.bytes_per_page(ITEMSIZE[dtype], SCALE_BYTES.get(dtype, 0))


def _kv_groups(config: Config, model: ModelShape) -> list[KVGroup]:
    rewind = most_rewound(config.speculation.num_speculative_tokens or 0, config.scheduler.depth or 0)
    size = _known(config.cache.page_size)
    return [replace_fields(group, page_size=size, rewind=rewind) for group in model.kv_groups]


def _pool_bytes(config: Config, model: ModelShape, num_seqs: int, num_tokens: int) -> int:
    """What a KV cache takes that holds sequences of a length, and where they do not keep what others begin with, as much for that."""
    step = _known(config.scheduler.max_num_batched_tokens)
    return sum(
        pages_for(group, num_seqs if group.kind.divisible else 2 * num_seqs, num_tokens, step_tokens=step)
        * page_bytes(config, group)
        for group in _kv_groups(config, model)
    )


def _longest_sequence(config: Config, model: ModelShape, device: DeviceFacts) -> int:
    """Tokens of one sequence that has the whole KV cache to itself; where its size is not known, an estimate."""
    budget = _cache_budget(config, model, device)
    if budget < _pool_bytes(config, model, 1, 1):
        return 0
    groups, step = _kv_groups(config, model), _known(config.scheduler.max_num_batched_tokens)
    num_pages = split_pages(
        groups,
        budget,
        page_bytes=[page_bytes(config, group) for group in groups],
        max_num_seqs=_known(config.scheduler.max_num_seqs),
        step_tokens=step,
        max_tokens=config.cache.max_total_tokens,
        longest=config.model.max_model_len or model.max_positions,
    )
    fits = longest_sequence(groups, num_pages, step_tokens=step)
    return min(fits, config.cache.max_total_tokens or fits)


def _cache_budget(config: Config, model: ModelShape, device: DeviceFacts) -> int:
    """What the KV cache takes; about, and maybe less than nothing, where it takes what the weights leave."""
    if config.cache.kv_cache_memory is not None:
        return config.cache.kv_cache_memory
    share = min(_known(config.cache.memory_fraction) * device.total_memory, device.free_memory)
    return int(share) - weights_bytes(config, model)


def _known(value: _T | None) -> _T:
    assert value is not None, "a rule ran before the one that it builds on"
    return value


# --- contradictions ---


def _check_ranges(config: Config) -> None:
    """Options that are wrong whatever the model and the device."""
    for section, field in _POSITIVE:
        _range(field, getattr(getattr(config, section), field), 1, None)
    _range("memory_fraction", config.cache.memory_fraction, 0, 1, low_open=True)
    _range("port", config.server.port, 0, 65535)
    _range("depth", config.scheduler.depth, 0, 8)
    _range("num_speculative_tokens", config.speculation.num_speculative_tokens, 0, None)
    _range("prompt_lookup_min", config.speculation.prompt_lookup_min, 1, speculation.LONGEST_LOOKUP)
    _range("seed", config.device.seed, 0, 2**63 - 1)
    _range("thinking_budget", config.server.thinking_budget, 0, 2**31 - 1)
    if config.server.drain_seconds < 0:
        raise ConfigError(f"{flag_of('drain_seconds')} must not be negative, got {config.server.drain_seconds}.")
    _range("max_engine_restarts", config.server.max_engine_restarts, 0, None)
    for section, field in _TIMES:
        if (value := getattr(getattr(config, section), field)) is not None and value <= 0:
            raise ConfigError(f"{flag_of(field)} must be more than 0, got {value}.")
    if config.cache.page_size is not None and (problem := page_size_problem(config.cache.page_size)):
        raise ConfigError(f"{flag_of('page_size')} {problem}.")
    parallel.check(config.parallel, config.stores)
    stores.check(config.stores, prefix_caching=config.cache.prefix_caching)


_POSITIVE = (
    ("model", "max_model_len"),
    ("cache", "page_size"),
    ("cache", "kv_cache_memory"),
    ("cache", "max_total_tokens"),
    ("scheduler", "max_num_seqs"),
    ("scheduler", "max_num_batched_tokens"),
    ("scheduler", "chunked_prefill_size"),
    ("scheduler", "max_waiting"),
    ("device", "threads"),
    ("parallel", "tensor_parallel_size"),
    ("device", "cuda_graph_max_tokens"),
    ("server", "max_body_bytes"),
    ("server", "state_bytes"),
)

_TIMES = (
    ("grammar", "compile_seconds"),
    ("server", "request_seconds"),
    ("server", "max_request_seconds"),
    ("server", "watchdog_seconds"),
)


def _range(field: str, value: float | None, low: float, high: float | None, *, low_open: bool = False) -> None:
    if value is None:
        return
    good = (value > low if low_open else value >= low) and (high is None or value <= high)
    if not good:
        bracket = "(" if low_open else "["
        limits = f"at least {low}" if high is None else f"in {bracket}{low}, {high}]"
        raise ConfigError(f"{flag_of(field)} must be {limits}, got {value}.")


def _check(config: Config, model: ModelShape, device: DeviceFacts) -> None:
    adapters.check(config)
    sight.check(config)
    _check_device(config, device)
    _check_steps(config)
    _check_memory(config, device)
    _check_lengths(config, model, device)


def _check_device(config: Config, device: DeviceFacts) -> None:
    for field, dtype in (("dtype", config.model.dtype), ("kv_cache_dtype", config.cache.kv_cache_dtype)):
        if field == "kv_cache_dtype" and dtype in device.rules.stores:
            continue  # stored, not computed in; whether this device can convert it, the attention backend knows
        if dtype not in device.dtypes:
            have = ", ".join(device.dtypes)
            raise ConfigError(f"{flag_of(field)} {dtype}: {device.name} does not have it; take one of {have}.")
    if config.device.attention_backend in device.rules.foreign:
        raise ConfigError(
            f"{flag_of('attention_backend')} {config.device.attention_backend} does not run on {device.name}; "
            f"take {device.rules.backend} or auto."
        )


def _check_steps(config: Config) -> None:
    seqs, tokens = _known(config.scheduler.max_num_seqs), _known(config.scheduler.max_num_batched_tokens)
    chunk = _known(config.scheduler.chunked_prefill_size)
    if tokens < seqs:
        raise ConfigError(
            f"{flag_of('max_num_batched_tokens')} ({tokens}) must not be below {flag_of('max_num_seqs')} ({seqs}): "
            "every running request needs a token per step. Raise the first or lower the second."
        )
    graph = _known(config.device.cuda_graph_max_tokens)
    if not seqs <= graph <= tokens:
        raise ConfigError(
            f"{flag_of('cuda_graph_max_tokens')} ({graph}) must be between {flag_of('max_num_seqs')} ({seqs}) and "
            f"{flag_of('max_num_batched_tokens')} ({tokens})."
        )
    if chunk > tokens:
        raise ConfigError(
            f"{flag_of('chunked_prefill_size')} ({chunk}) must not be above {flag_of('max_num_batched_tokens')} "
            f"({tokens}), which bounds the whole step. Lower the first or raise the second."
        )


def _check_memory(config: Config, device: DeviceFacts) -> None:
    budget, flag = config.cache.kv_cache_memory, flag_of("kv_cache_memory")
    if budget is not None and budget > device.total_memory:
        raise ConfigError(
            f"too little memory: {flag} asks for {gib(budget)}, and {device.name} has {gib(device.total_memory)}. "
            "Lower it, or leave it out."
        )


def _check_lengths(config: Config, model: ModelShape, device: DeviceFacts) -> None:
    length = _known(config.model.max_model_len)
    if length > model.max_positions:
        raise ConfigError(
            f"{flag_of('max_model_len')} ({length}) is beyond the {model.max_positions} positions that "
            f"{model.default_name} was made for. Lower it, or set rope_scaling in the model's config.json."
        )
    texts.check(config, model)
    fits = _longest_sequence(config, model, device)
    if length > fits:
        raise ConfigError(
            f"{flag_of('max_model_len')} ({length}) does not fit: the KV cache holds about {fits} tokens. "
            f"Lower it, or raise {flag_of('kv_cache_memory')} or {flag_of('max_total_tokens')}."
        )
