"""The offline workloads: prompts as token ids, output lengths, temperature.

Each is made from a generator seeded with 0, so any engine can replay it exactly and none depends on which ran before.
It can be made smaller: at `scale` s it is about s times the tokens, with lengths of a 64th at least. At scale 1 it is
the workload itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from sapwood.base.errors import UserError
from sapwood.base.grammar import Grammar
from sapwood.bench.traffic import LAST_ID, Session, Traffic


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
    def longest(self) -> int:
        """Tokens of the longest session, output included."""
        return max(sum(len(turn.tokens) + turn.output_len for turn in session) for session in self.sessions)

    def within(self, vocab_size: int) -> Workload:
        """The same for a model of so few tokens that ids have to be folded into its vocabulary."""
        if vocab_size >= LAST_ID:
            return self
        fold = [[replace(turn, prompt=[id % vocab_size for id in turn.tokens]) for turn in s] for s in self.sessions]
        return replace(self, sessions=fold)


@dataclass(frozen=True)
class WorkloadSpec:
    """A workload of any size: at scale 1 `count` sessions of `traffic`.

    `fewer` and `shorter` are the powers of the scale by which the number of sessions and the lengths shrink. Of one
    that decodes, a batch of fixed size, the steps in which all rows do are what is timed.
    """

    name: str
    traffic: Traffic
    count: int
    temperature: float = 0.0
    grammar: Grammar | None = None
    fewer: float = 0.5
    shorter: float = 0.5
    decodes: bool = False

    def make(self, scale: float = 1.0) -> Workload:
        groups, turns = (_share(number, scale**0.25) for number in (self.traffic.groups, self.traffic.turns))
        traffic = replace(self.traffic, groups=groups, turns=turns, shrink=max(scale**self.shorter, 1 / 64))
        sessions = traffic.sessions(_share(self.count, scale**self.fewer), seed=0)
        return Workload(self.name, sessions, self.temperature, self.grammar)


def decode(batch: int, input_len: int = 128, output_len: int = 256) -> WorkloadSpec:
    """W5: a batch whose rows only differ in their tokens."""
    traffic = Traffic("random", input_len, output_len)
    return WorkloadSpec(f"W5 decode, batch {batch}", traffic, batch, fewer=0, shorter=1, decodes=True)


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


def structured(batch: int, grammar: Grammar | None = SCHEMA) -> WorkloadSpec:
    """W8; without a grammar it is what that is compared with."""
    name = f"W8 {'free' if grammar is None else 'JSON'}, batch {batch}"
    return WorkloadSpec(name, Traffic("random"), batch, 0.8, grammar, fewer=0)


NAMED: Mapping[str, Sequence[WorkloadSpec]] = MappingProxyType(
    {
        # From 100 to 1024 tokens in and out.
        "uniform": [WorkloadSpec("W1 uniform", Traffic("random", 562, 562, spread=462 / 562), 256, 0.6)],
        "general": [WorkloadSpec("W2 general", Traffic("sharegpt"), 1000)],
        "shared": [WorkloadSpec("W3 shared prefix", Traffic("shared-prefix"), 512)],
        "agent": [WorkloadSpec("W4 agent", Traffic("agent"), 64, fewer=0.25)],
        "decode": [decode(1, output_len=512), decode(32), decode(256)],
        "prefill": [WorkloadSpec("W6 prefill", Traffic("random", 8192, 1), 16)],
        "structured": [structured(batch, grammar) for batch in (1, 8, 64, 256) for grammar in (None, SCHEMA)],
    }
)
"""Every workload by its name; some have several batch sizes. The first word of a spec's name is its number."""


def find_all(names: Sequence[str]) -> list[WorkloadSpec]:
    """Every workload of these names or numbers, each once; UserError for what is neither."""
    numbers = {specs[0].name.split()[0].lower(): name for name, specs in NAMED.items()}
    found: dict[str, WorkloadSpec] = {}
    for asked in names:
        name = numbers.get(asked.lower(), asked.lower())
        if name not in NAMED:
            known = ", ".join(f"{number} ({word})" for number, word in numbers.items())
            raise UserError(f"--workloads: there is no {asked!r}; there are {known}.")
        found |= {spec.name: spec for spec in NAMED[name]}
    return list(found.values())


def _share(count: int, part: float) -> int:
    return max(1, round(count * part))
