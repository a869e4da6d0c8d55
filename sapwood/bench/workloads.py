"""The offline workloads: prompts as token ids, output lengths, temperature.

Token ids are uniform in [10, 10000); each workload starts from a generator seeded with 0, so any engine can replay it
exactly and none depends on which ran before.

A workload can be made smaller: at `scale` s it is about s times the tokens, numbers of requests and lengths each
shrinking by the square root of s. At scale 1 it is the workload itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple, TypeAlias

import numpy as np

from sapwood.base.errors import UserError
from sapwood.base.grammar import Grammar

FIRST_ID, LAST_ID = 10, 10_000
_TINY = 1e-6  # a scale at which making a workload costs nothing

Prompt: TypeAlias = list[int] | str
Words: TypeAlias = Callable[[int], Prompt]
"""Makes a prompt of so many tokens, or words."""


@dataclass(frozen=True)
class Turn:
    """What one request adds to its session's history, and how many tokens it generates."""

    prompt: Prompt
    output_len: int

    @property
    def tokens(self) -> list[int]:
        assert isinstance(self.prompt, list)
        return self.prompt


Session: TypeAlias = list[Turn]


@dataclass(frozen=True)
class Workload:
    """Sessions that arrive together. Output lengths are exact (end-of-sequence is ignored); with a grammar, at most.

    A turn's prompt is all earlier turns of its session, their outputs, and its own tokens; it is sent when the one
    before it has ended. Most sessions have one turn.
    """

    name: str
    sessions: list[Session]
    temperature: float
    grammar: Grammar | None = None

    @property
    def num_requests(self) -> int:
        return sum(map(len, self.sessions))

    @property
    def num_output(self) -> int:
        return sum(turn.output_len for session in self.sessions for turn in session)

    @property
    def longest(self) -> int:
        """Tokens of the longest session, output included."""
        return max(sum(len(turn.tokens) + turn.output_len for turn in session) for session in self.sessions)

    def within(self, vocab_size: int) -> Workload:
        """The same for a model of so few tokens that ids have to be folded into its vocabulary."""
        if vocab_size >= LAST_ID:
            return self
        fold = [[replace(turn, prompt=[id % vocab_size for id in turn.tokens]) for turn in s] for s in self.sessions]
        return replace(self, sessions=fold)


# -- what sessions are made of, here and in traffic ---------------------------------------------------------------------


def tokens(rng: np.random.Generator, first: int = FIRST_ID, last: int = LAST_ID) -> Words:
    """Random ids in [first, last)."""
    return lambda count: rng.integers(first, last, count).tolist()


def join(history: Prompt, more: Prompt) -> Prompt:
    """A prompt, continued."""
    if isinstance(history, str):
        return f"{history} {more}" if history else more
    assert isinstance(more, list)
    return history + more


def requests(words: Words, lengths: Iterable[tuple[int, int]]) -> list[Session]:
    """A session for each pair of input and output length."""
    return [[Turn(words(input_len), output_len)] for input_len, output_len in lengths]


def behind(words: Words, stems: Iterable[Prompt], length: int, output_len: int) -> list[Session]:
    """A session for each stem, which as many tokens of its own follow."""
    return [[Turn(join(stem, words(length)), output_len)] for stem in stems]


def talks(words: Words, count: int, turns: int, prefix_len: int, length: int, output_len: int) -> list[Session]:
    """Sessions of several turns over one prefix."""
    system, none = words(prefix_len), words(0)
    return [
        [Turn(join(none if turn else system, words(length)), output_len) for turn in range(turns)] for _ in range(count)
    ]


def general_lengths(rng: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Prompt and output lengths of W2: lognormal with medians 120 and 150, within 4 to 1024."""
    inputs = np.clip(np.rint(rng.lognormal(np.log(120.0), 1.1, count)), 4, 1024).astype(int)
    outputs = np.clip(np.rint(rng.lognormal(np.log(150.0), 0.9, count)), 4, 1024).astype(int)
    return list(zip(inputs.tolist(), outputs.tolist(), strict=True))


# -- the workloads ------------------------------------------------------------------------------------------------------


def uniform(scale: float = 1.0) -> Workload:
    """W1: 256 requests, 100 to 1024 tokens in and out, temperature 0.6."""
    rng = np.random.default_rng(0)
    count = _share(256, scale)
    inputs, outputs = (rng.integers(100, 1025, count).tolist() for _ in range(2))
    return Workload("W1 uniform", requests(tokens(rng), _shares(zip(inputs, outputs, strict=True), scale)), 0.6)


def general(scale: float = 1.0) -> Workload:
    """W2: 1000 requests with clipped lognormal lengths, as of ShareGPT, temperature 0."""
    rng = np.random.default_rng(0)
    lengths = general_lengths(rng, _share(1000, scale))
    return Workload("W2 general", requests(tokens(rng), _shares(lengths, scale)), 0.0)


def shared_prefix(scale: float = 1.0) -> Workload:
    """W3: 32 groups of 16 requests, 2048 shared and 128 own tokens each, 128 out, shuffled, temperature 0."""
    words = tokens(np.random.default_rng(0))
    num_groups, group_size = _share(32, scale, 0.25), _share(16, scale, 0.25)
    stems, own = [words(_share(2048, scale)) for _ in range(num_groups)], _share(128, scale)
    sessions = behind(words, (stem for stem in stems for _ in range(group_size)), own, own)
    order = np.random.default_rng(0).permutation(len(sessions))
    return Workload("W3 shared prefix", [sessions[i] for i in order], 0.0)


def agent(scale: float = 1.0) -> Workload:
    """W4: 64 sessions of 8 turns over one system prefix of 2048 tokens, 128 tokens in and out a turn, temperature 0."""
    count, turns, own = _share(64, scale, 0.25), _share(8, scale, 0.25), _share(128, scale)
    sessions = talks(tokens(np.random.default_rng(0)), count, turns, _share(2048, scale), own, own)
    return Workload("W4 agent", sessions, 0.0)


def decode(batch: int, input_len: int = 128, output_len: int = 256) -> Workload:
    """W5: a fixed batch, temperature 0."""
    sessions = requests(tokens(np.random.default_rng(0)), [(input_len, output_len)] * batch)
    return Workload(f"W5 decode, batch {batch}", sessions, 0.0)


def decodes(batches: Sequence[int] = (1, 32, 256), *, scale: float = 1.0) -> list[Workload]:
    """W5 at each batch size, 128 tokens in and 256 out (512 for one request alone); `scale` shrinks the lengths."""
    return [decode(n, _share(128, scale, 1.0), _share(512 if n == 1 else 256, scale, 1.0, least=4)) for n in batches]


def prefill(scale: float = 1.0) -> Workload:
    """W6: 16 prompts of 8192 tokens, one token out, temperature 0."""
    lengths = _shares([(8192, 1)] * _share(16, scale), scale)
    return Workload("W6 prefill", requests(tokens(np.random.default_rng(0)), lengths), 0.0)


SCHEMA = Grammar.json(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age", "tags"],
    }
)
"""What W8's outputs have to match. It needs the tokenizer of the model, or `--tokenizer` for a shape."""


def structured(batch: int, scale: float = 1.0, *, grammar: Grammar | None = SCHEMA) -> Workload:
    """W8: 128 tokens in and out, temperature 0.8, with a JSON schema; without one it is what that is compared with."""
    sessions = requests(tokens(np.random.default_rng(0)), _shares([(128, 128)] * batch, scale))
    return Workload(f"W8 {'free' if grammar is None else 'JSON'}, batch {batch}", sessions, 0.8, grammar)


NAMED: Mapping[str, Callable[[float], list[Workload]]] = MappingProxyType(
    {
        "uniform": lambda scale: [uniform(scale)],
        "general": lambda scale: [general(scale)],
        "shared": lambda scale: [shared_prefix(scale)],
        "agent": lambda scale: [agent(scale)],
        "decode": lambda scale: decodes(scale=scale),
        "prefill": lambda scale: [prefill(scale)],
        "structured": lambda scale: [
            structured(batch, scale, grammar=grammar) for batch in (1, 8, 64, 256) for grammar in (None, SCHEMA)
        ],
    }
)
"""Every workload by its name; some have several batch sizes."""

NUMBERS = MappingProxyType(dict(zip(("w1", "w2", "w3", "w4", "w5", "w6", "w8"), NAMED, strict=True)))


class Unit(NamedTuple):
    """One workload: the name it is under in NAMED, and which of those there."""

    name: str
    which: int = 0

    def make(self, scale: float = 1.0) -> Workload:
        return NAMED[self.name](scale)[self.which]


def find_all(names: Sequence[str]) -> list[Unit]:
    """Every workload of these names or numbers, each once; UserError for what is neither."""
    found = []
    for name in names:
        plain = NUMBERS.get(name.lower(), name.lower())
        if plain not in NAMED:
            known = ", ".join(f"{number} ({word})" for number, word in NUMBERS.items())
            raise UserError(f"--workloads: there is no {name!r}; there are {known}.")
        found += [Unit(plain, which) for which in range(len(NAMED[plain](_TINY)))]
    return list(dict.fromkeys(found))


def _share(count: int, scale: float, power: float = 0.5, *, least: int = 1) -> int:
    return max(least, round(count * math.pow(scale, power)))


def _shares(lengths: Iterable[tuple[int, int]], scale: float) -> list[tuple[int, int]]:
    return [(_share(input_len, scale), _share(output_len, scale)) for input_len, output_len in lengths]
