"""Tries every route of a server out, from what its own /openapi.json says: bodies as they should be, nearly so, and broken ones.

    python scripts/fuzz.py [--seconds 60] [--url http://...] [--api-key KEY] [--seed 0]

Without a URL a server is started, with a tiny random model, small pools and a short context. An answer 5xx that says more than "not
now" is a fault, so is one that never comes, a status or a body that the document does not know, a connection that is cut, and at the
end a page that has not come back. Exit code 1 where there is any; each is printed with the request that showed it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import randoms
from jsonschema import Draft202012Validator
from schemathesis import Case, GenerationMode
from schemathesis.checks import content_type_conformance, response_schema_conformance
from schemathesis.core.failures import FailureGroup

CALM = (501, 503, 504, 529)  # not here, not now, too late, too many: what a server may say that is well
PATIENCE = 60.0  # seconds for any answer, and for all that runs to end
ADMIN = "operator"  # the key of a server that is started here: routes for operators are tried too
PAUSES = ("/pause", "/pause_generation", "/sleep", "/release_memory_occupation")
KINDS = ("application/json", "application/json; charset=latin-1", "text/plain", "multipart/form-data", "", "/")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

GOOD: dict[str, Any] = {  # what makes a request whole, where its body has such a field and it may be so
    "model": "tiny", "prompt": "The quick brown fox", "messages": [{"role": "user", "content": "Hello"}], "text": "The quick",
    "input": "Hello", "tokens": [1, 2, 3], "max_tokens": 5, "max_output_tokens": 16, "sampling_params": {"max_new_tokens": 5},
    "options": {"num_predict": 5}, "rid": "r",
}  # fmt: skip

Operation = Any  # of schemathesis, which has no public name for it


class Fuzz:
    """Tries one server, with so many `examples` of each operation a round, right and wrong ones each. What goes wrong is in `faults`:
    what it is, and the request that first showed it."""

    def __init__(self, url: str, headers: dict[str, str], *, seed: int, examples: int = 12) -> None:
        self.faults: dict[str, str] = {}
        self.statuses: Counter[tuple[str, int]] = Counter()
        self._client = httpx.Client(base_url=url, headers=headers, timeout=PATIENCE)
        self._session = requests.Session()  # what schemathesis speaks by
        self._headers = headers
        self._url = url
        self._random = random.Random(seed)
        document = self._client.get("/openapi.json").raise_for_status().json()
        self._document = document
        self._examples = examples
        self._seen = ["tiny"]  # ids of what there is
        schema = schemathesis.openapi.from_dict(document)
        self.operations = [found.ok() for found in schema.get_all_operations()]

    def close(self) -> None:
        self._client.close()
        self._session.close()

    def run(self, seconds: float) -> None:
        """All operations in turn, a few cases each, until the time is over; each of them at least once."""
        until, rounds = monotonic() + seconds, 0
        while not rounds or monotonic() < until:
            for operation in self.operations:
                if rounds and monotonic() > until:
                    break
                self._generated(operation, GenerationMode.POSITIVE)
                if {"parameters", "requestBody"} & self._told(
                    operation
                ).keys():  # else there is nothing that could be wrong
                    self._generated(operation, GenerationMode.NEGATIVE)
                self._broken(operation)
                self._hung_up(operation)
            self._settled()
            rounds += 1

    def _generated(self, operation: Operation, mode: GenerationMode) -> None:
        @seed(self._random.getrandbits(32))
        @settings(
            max_examples=self._examples,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), keep=randoms())
        def tried(case: Case, keep: random.Random) -> None:
            if isinstance(case.body, dict) and keep.random() < 0.7:
                # Most of those that are made up wholly are refused at once.
                some = keep.sample(sorted(case.body), min(len(case.body), keep.randrange(3)))
                case.body = self._good(operation) | {field: case.body[field] for field in some}
            if case.path_parameters and keep.random() < 0.5:
                case.path_parameters = {name: keep.choice(self._seen) for name in case.path_parameters}
            self._try(operation, case)

        with suppress(Unsatisfiable):  # whatever it is, it is right
            tried()

    def _told(self, operation: Operation) -> dict[str, Any]:
        told: dict[str, Any] = self._document["paths"][operation.path][operation.method]
        return told

    def _good(self, operation: Operation) -> dict[str, Any]:
        """A body that would be served, as far as its schema tells."""
        body = self._told(operation).get("requestBody", {"content": {}})
        name = body["content"].get("application/json", {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
        known = self._document["components"]["schemas"].get(name, {}).get("properties", {})
        good = {field: value for field, value in GOOD.items() if field in known and self._fits(known[field], value)}
        for better, other in (("messages", "prompt"), ("max_output_tokens", "max_tokens")):
            if better in good:
                good.pop(other, None)
        return good

    def _fits(self, schema: dict[str, Any], value: Any) -> bool:
        return bool(Draft202012Validator({**schema, "components": self._document["components"]}).is_valid(value))

    def _try(self, operation: Operation, case: Case) -> None:
        try:
            reply = case.call(base_url=self._url, headers=self._headers, session=self._session, timeout=PATIENCE)
        except Exception as error:  # whatever it is, it goes into the report
            self._fault(operation, f"no answer ({type(error).__name__})", case.as_curl_command())
            return
        self._judge(operation, reply.status_code, case.as_curl_command(headers=dict(reply.request.headers)))
        if reply.status_code >= 500:
            return
        try:
            case.validate_response(reply, checks=[content_type_conformance, response_schema_conformance])
        except FailureGroup as error:
            self._fault(operation, f"an answer that is not as it is described: {error}", case.as_curl_command())
        if found := re.match(rb'\{"id": ?"([^"]+)"', reply.content):
            self._seen = [*self._seen[-20:], found[1].decode()]

    def _hung_up(self, operation: Operation) -> None:
        """A stream whose client goes away with the first of it."""
        good = self._good(operation)
        if not good or operation.path in PAUSES:
            return
        long = {name: 200 for name in ("max_tokens", "max_output_tokens") if name in good}
        body = good | long | {"stream": True}
        try:
            with self._client.stream(operation.method, operation.path, json=body) as reply:
                next(reply.iter_bytes(1), b"")
                self._judge(operation, reply.status_code, f"{operation.label} {body}")
        except httpx.HTTPError as error:
            self._fault(operation, f"no answer ({type(error).__name__})", str(body))

    def _broken(self, operation: Operation) -> None:
        """A few bodies that are none, under any content type and encoding."""
        if operation.method.upper() == "GET":
            return
        bodies = list(broken_bodies(self._random))
        for name, body in self._random.sample(bodies, 4):
            path = re.sub(r"\{\w+\}", lambda _: self._random.choice(("x", "%00", "..", "9" * 400)), operation.path)
            headers = {"content-type": self._random.choice(KINDS)}
            if self._random.random() < 0.3:
                headers["content-encoding"] = self._random.choice(("gzip", "deflate", "br", "identity"))
            shown = f"{operation.method.upper()} {path} {headers} {name}"
            try:
                reply = self._client.request(operation.method, path, content=body, headers=headers)
            except httpx.HTTPError as error:
                self._fault(operation, f"no answer ({type(error).__name__})", shown)
            else:
                self._judge(operation, reply.status_code, shown)

    def _judge(self, operation: Operation, status: int, shown: str) -> None:
        label = operation.label
        self.statuses[label, status] += 1
        if status >= 500 and status not in CALM:
            self._fault(operation, f"status {status}", shown)
        elif str(status) not in self._told(operation)["responses"]:
            self._fault(operation, f"status {status}, which is not described", shown)
        if operation.path in PAUSES and status == 200:
            for path in ("/wake_up", "/continue_generation"):
                self._client.post(path).raise_for_status()

    def _settled(self) -> None:
        """Wait until nothing runs, and see whether all pages are there."""
        until = monotonic() + PATIENCE
        while (state := self._state())["running"] or state["waiting"]:
            if monotonic() > until:
                self.faults["requests that never end"] = json.dumps(state)
                return
            sleep(0.1)
        for total, free, evictable in state["pages"]:
            if total != free + evictable:
                self.faults["pages that have not come back"] = json.dumps(state)
        if state["repaired_pages"]:
            self.faults["books that had to be mended"] = json.dumps(state)

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._client.get("/get_internal_state").raise_for_status().json()[0]
        return state

    def _fault(self, operation: Operation, what: str, shown: str) -> None:
        self.faults.setdefault(f"{operation.label}: {what}", shown[:4000])


def broken_bodies(random: random.Random) -> Iterator[tuple[str, bytes]]:
    """Bodies that are not JSON, or not what any route takes."""
    good = json.dumps(
        {"model": "tiny", "prompt": "x", "messages": [{"role": "user", "content": "x"}], "text": "x"}
    ).encode()
    packed = zlib.compress(good)
    field = random.choice(
        ("prompt", "messages", "text", "input", "tokens", "tools", "stop", "max_tokens", "stream", "model")
    )
    values = (10**400, -(2**63) - 1, 1e308, "\0", "𐏿" * 9, [], {}, [[[]]], None, True, "x" * 300_000, [0] * 100_000)
    yield from {
        "nothing": b"",
        "blanks": b" \n\t ",
        "cut off": good[: random.randrange(1, len(good))],
        "a list": b"[]",
        "null": b"null",
        "a word": b"hello",
        "a number": b"1e999999",
        "NaN": b'{"temperature": NaN}',
        "not UTF-8": b'{"prompt": "\xff\xfe"}',
        "UTF-16": good.decode().encode("utf-16"),
        "half a character": b'{"%s": "\\ud800"}' % field.encode(),
        "half a character as a name": b'{"\\udc00": 1}',
        "a name twice": b'{"prompt": "x", "prompt": "y"}',
        "deep": b"[" * 100_000,
        "deep in a field": b'{"%s": %s1%s}' % (field.encode(), b"[" * 50_000, b"]" * 50_000),
        "deep objects": b'{"%s": %s1%s}' % (field.encode(), b'{"a":' * 50_000, b"}" * 50_000),
        "gzip": packed,
        "gzip cut off": packed[: len(packed) // 2],
        "noise": random.randbytes(random.randrange(1, 2000)),
    }.items()
    for value in values:
        yield f"{field}: {str(value)[:40]}", json.dumps({field: value}).encode()


def make_model(folder: Path) -> Path:
    """A tiny Llama over bytes; its weights are drawn when it is loaded."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "<|im_end|>"}))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 258, "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "eos_token_id": 257,
        "tie_word_embeddings": False, "torch_dtype": "float32",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@contextmanager
def served() -> Iterator[str]:
    """The URL of a server that lasts as long as the context."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "sapwood", "serve", str(make_model(Path(folder))), "--load-format", "dummy",
                   "--port", "0", "--device", "cpu", "--max-model-len", "256", "--max-num-seqs", "8", "--max-total-tokens", "1024",
                   "--served-model-name", "tiny", "--max-body-bytes", "1M", "--admin-api-key", ADMIN]  # fmt: skip
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, text=True)
        try:
            yield _url(process, said)
        finally:
            process.terminate()
            process.wait()
            said.seek(0)
            text = said.read()
            if "Traceback" in text:
                print(text[-20_000:], file=sys.stderr)


def _url(process: subprocess.Popen[str], said: Any) -> str:
    while process.poll() is None:
        said.seek(0)
        if found := re.search(r"ready at (http://\S+)", said.read()):
            return found[1]
        sleep(0.1)
    said.seek(0)
    raise SystemExit(f"the server did not start:\n{said.read()}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--url")
    parser.add_argument("--api-key", default=os.environ.get("SAPWOOD_API_KEY"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    key = args.api_key if args.url else ADMIN
    headers = {"authorization": f"Bearer {key}"} if key else {}
    with _given(args.url) if args.url else served() as url, closing(Fuzz(url, headers, seed=args.seed)) as fuzz:
        fuzz.run(args.seconds)
    for (label, status), count in sorted(fuzz.statuses.items()):
        print(f"{label:45} {status} {count:6}")
    for what, shown in fuzz.faults.items():
        print(f"FAULT {what}\n    {shown}")
    print(f"{sum(fuzz.statuses.values())} requests to {len(fuzz.operations)} operations, {len(fuzz.faults)} faults")
    return 1 if fuzz.faults else 0


@contextmanager
def _given(url: str) -> Iterator[str]:
    yield url


if __name__ == "__main__":
    raise SystemExit(main())
