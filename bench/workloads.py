"""The offline workloads: prompts as token ids, output lengths, temperature.

Token ids are uniform in [10, 10000); each workload starts from a generator seeded with 0, so any engine can replay it
exactly and none depends on which ran before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FIRST_ID, LAST_ID = 10, 10_000


@dataclass(frozen=True)
class Workload:
    """Requests that arrive together; output lengths are exact (end-of-sequence is ignored)."""

    name: str
    prompts: list[list[int]]
    output_lens: list[int]
    temperature: float

    @property
    def num_input(self) -> int:
        return sum(map(len, self.prompts))

    @property
    def num_output(self) -> int:
        return sum(self.output_lens)


def _tokens(rng: np.random.Generator, count: int) -> list[int]:
    return rng.integers(FIRST_ID, LAST_ID, int(count)).tolist()


def uniform() -> Workload:
    """W1: 256 requests, 100 to 1024 tokens in and out, temperature 0.6."""
    rng = np.random.default_rng(0)
    inputs, outputs = rng.integers(100, 1025, 256), rng.integers(100, 1025, 256)
    return Workload("W1 uniform", [_tokens(rng, n) for n in inputs], [int(n) for n in outputs], 0.6)


def general() -> Workload:
    """W2: 1000 requests with clipped lognormal lengths, as of ShareGPT, temperature 0."""
    rng = np.random.default_rng(0)
    inputs = np.clip(np.rint(rng.lognormal(np.log(120.0), 1.1, 1000)), 4, 1024).astype(int)
    outputs = np.clip(np.rint(rng.lognormal(np.log(150.0), 0.9, 1000)), 4, 1024).astype(int)
    return Workload("W2 general", [_tokens(rng, n) for n in inputs], [int(n) for n in outputs], 0.0)


def shared_prefix() -> Workload:
    """W3: 32 groups of 16 requests, 2048 shared and 128 own tokens each, 128 out, shuffled, temperature 0."""
    rng = np.random.default_rng(0)
    stems = [_tokens(rng, 2048) for _ in range(32)]
    prompts = [stems[group] + _tokens(rng, 128) for group in range(32) for _ in range(16)]
    order = np.random.default_rng(0).permutation(len(prompts))
    return Workload("W3 shared prefix", [prompts[i] for i in order], [128] * len(prompts), 0.0)


def decode(batch: int, input_len: int, output_len: int) -> Workload:
    """W5: a fixed batch, temperature 0."""
    rng = np.random.default_rng(0)
    prompts = [_tokens(rng, input_len) for _ in range(batch)]
    return Workload(f"W5 decode, batch {batch}", prompts, [output_len] * batch, 0.0)


def prefill(count: int = 16, input_len: int = 8192) -> Workload:
    """W6: long prompts, one token out."""
    rng = np.random.default_rng(0)
    return Workload("W6 prefill", [_tokens(rng, input_len) for _ in range(count)], [1] * count, 0.0)
