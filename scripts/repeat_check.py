"""Whether requests get the same tokens and log probabilities, bit by bit, alone and in a crowd; on a CPU they must.

    python scripts/repeat_check.py [--model smollm2-135m] [--requests 64] [--rounds 3] [kv_cache_memory=40MiB ...]

Greedy and sampled ones, on a shared beginning and not, some with a schema, with penalties, with log probabilities. First one
after the other, then all at once, in another order each round and beside neighbours that go away after a few tokens. Further
arguments are options of the engine. Exit code 1 where anything differs.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from contextlib import aclosing
from time import perf_counter
from typing import Any

from sapwood import AsyncLLM, Grammar, SamplingParams

Found = tuple[list[int], list[Any]]
Request = tuple[list[int], SamplingParams]

SCHEMA = Grammar.json(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "kind": {"enum": ["animal", "plant", "machine"]},
            "sizes": {"type": "array", "items": {"type": "integer"}, "maxItems": 4},
        },
        "required": ["name", "kind", "sizes"],
        "additionalProperties": False,
    }
)
WAYS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0.8},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 0.7, "top_k": 40, "min_p": 0.02},
    {"temperature": 0.9, "top_k": 60, "top_p": 0.95, "repetition_penalty": 1.1, "frequency_penalty": 0.3},
    {"temperature": 0, "presence_penalty": 0.5, "min_tokens": 8},
    {"temperature": 0, "grammar": SCHEMA},
    {"temperature": 0.8, "grammar": SCHEMA},
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("options", nargs="*", help="of the engine, as name=value")
    args = parser.parse_args()
    return asyncio.run(check(args))


async def check(args: argparse.Namespace) -> int:
    options = dict(option.split("=", 1) for option in args.options)
    chance = random.Random(0)
    async with AsyncLLM(args.model, **options) as llm:
        wanted = requests(args.requests, chance)
        start = perf_counter()
        alone = [await run(llm, request) for request in wanted]
        print(f"{len(wanted)} requests, one after the other: {perf_counter() - start:.0f} s")
        worst = 0
        for number in range(args.rounds):
            start = perf_counter()
            crowd = await together(llm, wanted, chance)
            differ = [index for index in range(len(wanted)) if alone[index] != crowd[index]]
            tokens = [index for index in differ if alone[index][0] != crowd[index][0]]
            took = f"{perf_counter() - start:.0f} s"
            print(
                f"round {number + 1}, {took}: {len(differ)} differ, {len(tokens)} of them in tokens: {differ}",
                flush=True,
            )
            worst = max(worst, len(differ))
    return int(worst > 0)


def requests(number: int, chance: random.Random) -> list[Request]:
    """Half of them behind one beginning of 1,000 tokens, a quarter behind half of it, the others by themselves."""
    beginning = words(chance, 1000)
    made = []
    for index in range(number):
        shared = [beginning, beginning[:500], beginning, []][index // len(WAYS) % 4]
        prompt = shared + words(chance, chance.randint(5, 200))
        way = WAYS[index % len(WAYS)]
        logprobs = [None, 0, 5][index % 3]
        made.append((prompt, SamplingParams(max_tokens=chance.randint(8, 64), seed=index, logprobs=logprobs, **way)))
    return made


def words(chance: random.Random, number: int) -> list[int]:
    return [chance.randint(100, 10000) for _ in range(number)]


async def together(llm: AsyncLLM, wanted: list[Request], chance: random.Random) -> list[Found]:
    order = list(range(len(wanted)))
    chance.shuffle(order)
    found: dict[int, Found] = {}

    async def one(index: int) -> None:
        await asyncio.sleep(chance.random())
        found[index] = await run(llm, wanted[index])

    async def neighbour(index: int) -> None:
        prompt, params = wanted[index]
        await asyncio.sleep(2 * chance.random())
        prompt = prompt[: chance.randint(1, len(prompt))] + words(chance, 20)
        await run(llm, (prompt, params), most=chance.randint(0, 12))

    await asyncio.gather(*(task for index in order for task in (one(index), neighbour(index))))
    return [found[index] for index in range(len(wanted))]


async def run(llm: AsyncLLM, request: Request, most: int | None = None) -> Found:
    """The tokens and what is said of them, until the end or until so many are there."""
    tokens: list[int] = []
    logprobs: list[Any] = []
    prompt, params = request
    async with aclosing(llm.stream(prompt, params)) as chunks:
        async for chunk in chunks:
            tokens += chunk.token_ids
            logprobs += chunk.logprobs or []
            if most is not None and len(tokens) >= most:
                break
    return tokens, logprobs


if __name__ == "__main__":
    raise SystemExit(main())
