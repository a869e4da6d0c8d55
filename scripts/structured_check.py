"""How well outputs match their schemas, and what that costs; the tables of docs/structured.md come from here.

python scripts/structured_check.py generate [--times 4] [--temperature 1.0] [--max-tokens 384]   a small real model answers to 48 schemas; all must validate
python scripts/structured_check.py suite [--folder DIR]    the JSON-Schema-Test-Suite, draft 2020-12: what masks accept
python scripts/structured_check.py cost                    times of compiling and of masks, per token
python scripts/structured_check.py steps                   model steps with and without forced tokens

The suite comes with the source distribution of jsonschema: `pip download --no-binary jsonschema --no-deps jsonschema`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, time
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jsonschema  # noqa: E402
import numpy as np  # noqa: E402

from sapwood import LLM, Grammar, SamplingParams  # noqa: E402
from sapwood.base.errors import GrammarError  # noqa: E402
from sapwood.grammar import Constraint, Vocabulary  # noqa: E402
from sapwood.grammar.compiler import Compiled  # noqa: E402
from sapwood.grammar.end_check import EndCheck  # noqa: E402
from sapwood.grammar.vocabulary import spec_of  # noqa: E402
from sapwood.hub.files import find  # noqa: E402
from sapwood.text import TextModel  # noqa: E402
from tests.grammar.schemas import SCHEMAS  # noqa: E402

MAX_TOKENS = 384

INVOICE: dict[str, Any] = {
    "invoice_number": {"type": "string", "maxLength": 12},
    "invoice_date": {"type": "string", "format": "date"},
    "vendor_name": {"type": "string", "maxLength": 24},
    "vendor_address": {
        "type": "object",
        "properties": {
            "street": {"type": "string", "maxLength": 24},
            "city": {"type": "string", "maxLength": 16},
            "postal_code": {"type": "string", "pattern": "^[0-9]{5}$"},
            "country": {"enum": ["DE", "FR", "US", "GB"]},
        },
        "required": ["street", "city", "postal_code", "country"],
        "additionalProperties": False,
    },
    "customer_name": {"type": "string", "maxLength": 24},
    "total_amount": {"type": "number"},
    "currency": {"enum": ["EUR", "USD", "GBP"]},
    "payment_terms": {"enum": ["net_15", "net_30", "net_60", "due_on_receipt"]},
    "due_date": {"type": "string", "format": "date"},
    "is_paid": {"type": "boolean"},
}
EXTRACTION = {"type": "object", "properties": INVOICE, "required": list(INVOICE), "additionalProperties": False}
LETTER = (
    "Extract the fields as JSON. Invoice A-2231 of 3 May 2024 from Miller Tools, 12 Station Road, Leeds, 20415, GB, "
    "to Anna Weber: 249.90 EUR, net 30, due 2 June 2024, not paid."
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["generate", "suite", "cost", "steps"])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--times", type=int, default=4, help="generations per schema")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS)
    parser.add_argument("--folder", type=Path, help="draft2020-12 of a JSON-Schema-Test-Suite")
    args = parser.parse_args()
    match args.what:
        case "generate":
            return generate(args.model, args.times, temperature=args.temperature, max_tokens=args.max_tokens)
        case "suite":
            return suite(args.model, args.folder)
        case "cost":
            return cost(args.model)
    return steps(args.model)


def answers(
    model: str, times: int, *, temperature: float = 1.0, max_tokens: int = MAX_TOKENS, **options: Any
) -> tuple[list[tuple[str, str, str]], dict[str, Any]]:
    """(schema's name, text, finish reason) of each generation, and the engine's counts."""
    llm = LLM(model, **({"max_model_len": 1024, "max_num_seqs": 32, "max_total_tokens": 32768} | options))
    names = [name for name in SCHEMAS for _ in range(times)]
    params = [
        SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed, grammar=Grammar.json(SCHEMAS[name]))
        for seed, name in enumerate(names)
    ]
    asked = [[{"role": "user", "content": f"Give me an example of {name!r} as JSON."}] for name in names]
    found = llm.chat(asked, params)
    stats = llm._engine.stats()
    texts = [(name, one.text, one.finish_reason or "") for name, one in zip(names, found, strict=True)]
    return texts, stats.counters | stats.seconds


def generate(model: str, times: int, **options: Any) -> int:
    began = perf_counter()
    texts, _ = answers(model, times, **options)
    outcomes: Counter[str] = Counter()
    for name, text, reason in texts:
        problem = wrong(text, SCHEMAS[name])
        outcome = "cut off" if reason != "stop" else "valid" if problem is None else "INVALID"
        outcomes[outcome] += 1
        if outcome != "valid":
            print(f"{outcome}: {name}: {text[:120]!r} {problem or ''}")
    print(f"{len(SCHEMAS)} schemas, {len(texts)} generations in {perf_counter() - began:.0f} s: {dict(outcomes)}")
    return int(outcomes["INVALID"] > 0)


FORMATS = jsonschema.FormatChecker(("date", "ipv4", "uuid"))


@FORMATS.checks("time", raises=ValueError)
def is_time(value: object) -> bool:
    """RFC 3339's, which jsonschema does not know by itself."""
    return not isinstance(value, str) or time.fromisoformat(value.replace(":60", ":59")).tzinfo is not None


@FORMATS.checks("date-time", raises=ValueError)
def is_date_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value.replace(":60", ":59")).tzinfo is not None


def wrong(text: str, schema: Any) -> str | None:
    """What is wrong with a text, None if nothing is."""
    try:
        value = json.loads(text)
    except ValueError as error:
        return f"not JSON: {error}"
    checker = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
    return next((error.message for error in checker.iter_errors(value)), None)


# --- the test suite ---


def suite(model: str, folder: Path | None) -> int:
    vocabulary = vocabulary_of(model)
    groups: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as place:
        for name, case in cases(folder or download(Path(place))):
            counts = groups.setdefault(name, Counter())
            try:
                compiled = Compiled(vocabulary, Grammar.json(case["schema"]), compact_json=False)
            except GrammarError:
                counts["refused"] += 1
                counts["refused tests"] += len(case["tests"])
                continue
            counts["compiled"] += 1
            end_check = EndCheck(Grammar.json(case["schema"])) if compiled.unchecked else None
            counts["checked at the end"] += end_check is not None
            for test in case["tests"]:
                accepts = accepted(compiled, test["data"])
                kind = "valid" if test["valid"] else "invalid"
                counts[f"{kind} {'accepted' if accepts else 'rejected'}"] += 1
                if accepts and end_check is not None:
                    found = end_check(json.dumps(test["data"])).valid
                    counts["found invalid at the end"] += not found and not test["valid"]
                    counts["found wrongly"] += found != test["valid"]
    columns = (
        "compiled",
        "checked at the end",
        "refused",
        "valid accepted",
        "valid rejected",
        "invalid rejected",
        "invalid accepted",
        "found invalid at the end",
        "found wrongly",
    )
    total: Counter[str] = sum(groups.values(), Counter())
    print("| keyword | " + " | ".join(columns) + " |\n" + "| --- " * (len(columns) + 1) + "|")
    for name, counts in [*groups.items(), ("all", total)]:
        print(f"| {name} | " + " | ".join(str(counts[column]) for column in columns) + " |")
    return 0


def download(place: Path) -> Path:
    """The suite's draft2020-12 folder out of jsonschema's source distribution."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-binary",
        "jsonschema",
        "--no-deps",
    ]
    subprocess.run([*command, "--quiet", "--dest", str(place), "jsonschema"], check=True)
    with tarfile.open(next(place.glob("*.tar.gz"))) as archive:
        archive.extractall(place, filter="data")
    return next(place.glob("*/json/tests/draft2020-12"))


def cases(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(keyword, case) of the mandatory tests."""
    for path in sorted(folder.glob("*.json")):
        for case in json.loads(path.read_text("utf-8")):
            yield path.stem, case


def accepted(compiled: Compiled, value: Any) -> bool:
    """Whether masks let a model write this value, and then end."""
    constraint = Constraint(compiled, position=0, stop_ids=compiled.vocabulary.eos_ids)
    bits = np.zeros((1, compiled.vocabulary.width), np.int32)
    for token in compiled.vocabulary.tokenizer.tokenize_str(json.dumps(value, ensure_ascii=False)):
        if constraint.done or not bit(fill(constraint, bits), token) or not constraint.accept(token):
            return False
    return constraint.done or bit(fill(constraint, bits), compiled.vocabulary.eos_ids[0])


def fill(constraint: Constraint, bits: Any) -> Any:
    matcher = constraint.begin(bits[0])
    if matcher is not None:
        matcher.unsafe_compute_mask_ptr(bits.ctypes.data, bits.nbytes)
    constraint.finish(bits[0])
    return bits[0]


def bit(bits_W: Any, token: int) -> bool:
    return bool(int(bits_W[token >> 5]) >> (token & 31) & 1)


# --- cost ---


def vocabulary_of(model: str) -> Vocabulary:
    text = TextModel.load(find(model, weights=False))
    return Vocabulary(spec_of(text, text.vocab_size))


def cost(model: str) -> int:
    began = perf_counter()
    vocabulary = vocabulary_of(model)
    print(f"vocabulary of {vocabulary.tokenizer.vocab_size}: {1000 * (perf_counter() - began):.0f} ms")
    texts, _ = answers(model, 1)
    compiling, masks, accepting = [], [], []
    bits = np.zeros((1, vocabulary.width), np.int32)
    for name, text, _ in texts:
        began = perf_counter()
        compiled = Compiled(vocabulary, Grammar.json(SCHEMAS[name]), compact_json=False)
        compiling.append(perf_counter() - began)
        constraint = Constraint(compiled, position=0, stop_ids=vocabulary.eos_ids)
        for token in vocabulary.tokenizer.tokenize_str(text):
            began = perf_counter()
            fill(constraint, bits)
            filled = perf_counter()
            constraint.accept(token)
            constraint.forced()
            masks.append(filled - began)
            accepting.append(perf_counter() - filled)
            if constraint.done:
                break
    for name, seconds in (("compile", compiling), ("mask", masks), ("accept", accepting)):
        micros = sorted(1e6 * one for one in seconds)
        p99 = micros[int(0.99 * (len(micros) - 1))]
        print(
            f"{name}: median {statistics.median(micros):.0f} µs, p99 {p99:.0f} µs, most {micros[-1]:.0f} µs ({len(micros)})"
        )
    return 0


def steps(model: str) -> int:
    for compact in (False, True):
        counts = {}
        for jump in (True, False):
            texts, stats = answers(
                model, 1, jump_forward=jump, constrained_json_disable_any_whitespace=compact, max_num_seqs=1
            )
            counts[jump] = stats | {"texts": texts}
        same = sum(a == b for a, b in zip(counts[True]["texts"], counts[False]["texts"], strict=True))
        ratio = counts[False]["steps"] / counts[True]["steps"]
        print(
            f"{'compact' if compact else 'free'} whitespace: {counts[True]['output_tokens']} tokens, "
            f"{counts[True]['forced_tokens']} forced; steps {counts[False]['steps']} -> {counts[True]['steps']} "
            f"({ratio:.2f}x fewer); {same} of {len(SCHEMAS)} texts the same"
        )
        extract(model, compact)
    return 0


def extract(model: str, compact: bool) -> None:
    """An invoice's fields: many names that the schema tells, short values."""
    found = {}
    params = SamplingParams(max_tokens=MAX_TOKENS, temperature=0, grammar=Grammar.json(EXTRACTION))
    for jump in (True, False):
        llm = LLM(model, max_num_seqs=1, jump_forward=jump, constrained_json_disable_any_whitespace=compact)
        llm.chat([{"role": "user", "content": "Extract as JSON."}], params)
        before, began = llm._engine.stats().counters, perf_counter()
        text = llm.chat([{"role": "user", "content": LETTER}], params)[0].text
        after, seconds = llm._engine.stats().counters, perf_counter() - began
        found[jump] = text, after["steps"] - before["steps"], seconds
    (text, few, fast), (other, many, slow) = found[True], found[False]
    print(f"  an invoice: steps {many} -> {few} ({few / many:.2f}), {slow:.2f} -> {fast:.2f} s, same {text == other}")


if __name__ == "__main__":
    raise SystemExit(main())
