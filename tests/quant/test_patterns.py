"""Many patterns at once mean what each of them means."""

from __future__ import annotations

import random

from sapwood.quant.formats.base import Patterns, matches


def test_all_at_once_are_as_one_after_another() -> None:
    rng = random.Random(5)
    steps = ["model", "layers", "1", "11", "mlp", "mlp_gate", "gate", "lm_head", "experts"]

    def run(most: int) -> str:
        return ".".join(rng.choice(steps) for _ in range(rng.randint(1, most)))

    for _ in range(3000):
        patterns = [run(3) for _ in range(rng.randrange(4))]
        patterns += [rng.choice(("re:.*{}$", "re:{}", "*{}*", "{}*", "re:model.*\\.1\\..*", "")).format(run(2))][
            : rng.randrange(2)
        ]
        name = run(6)
        assert Patterns(patterns).match(name) == any(matches(name, one) for one in patterns), (name, patterns)
