"""Batches as they are kept: what is told of one, the lines that are done, and the files that come of them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from sapwood.base.errors import RequestError
from sapwood.server.openai import files
from sapwood.server.openai.batches.lines import Fault, LineResult
from sapwood.server.store import Books

KIND = "batch"
FINAL = ("completed", "failed", "expired", "cancelled")


class Faults(msgspec.Struct):
    data: list[Fault]
    object: str = "list"


class Counts(msgspec.Struct):
    total: int = 0
    completed: int = 0
    failed: int = 0


class InputDetails(msgspec.Struct):
    cached_tokens: int = 0


class OutputDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Of all answers together, by the names of the responses API."""

    input_tokens: int = 0
    input_tokens_details: InputDetails = msgspec.field(default_factory=InputDetails)
    output_tokens: int = 0
    output_tokens_details: OutputDetails = msgspec.field(default_factory=OutputDetails)
    total_tokens: int = 0


class Batch(msgspec.Struct, kw_only=True):
    """`status`: validating, in_progress, finalizing, completed; or failed, expired; or cancelling, cancelled."""

    id: str
    object: str = "batch"
    endpoint: str
    model: str
    errors: Faults | None = None
    input_file_id: str
    completion_window: str
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: Counts = msgspec.field(default_factory=Counts)
    usage: Usage | None = None
    metadata: dict[str, str] | None = None

    def become(self, status: str) -> None:
        self.status = status
        setattr(self, f"{status}_at", int(time.time()))


class Job(NamedTuple):
    """A batch that has not ended: whose it is, and for how many seconds its results are kept."""

    owner: str
    batch: Batch
    output_seconds: int | None


def create(books: Books, owner: str, batch: Batch, output_seconds: int | None) -> None:
    """Its file is held until it has ended. Raises RequestError (404) where there is none."""
    files.find(books, owner, batch.input_file_id)
    books.hold(batch.input_file_id, held=True)
    books.put(KIND, owner, batch.id, _encoded(batch), msgspec.json.encode(output_seconds), held=True)


def new_id() -> str:
    return f"batch_{secrets.token_hex(16)}"


def unfinished(books: Books) -> list[Job]:
    """All batches that have not ended, whoever's they are."""
    rows = books.db.execute("SELECT owner, body, more FROM objects WHERE kind = ? AND held = 1 ORDER BY place", (KIND,))
    return [Job(owner, msgspec.json.decode(body, type=Batch), msgspec.json.decode(more)) for owner, body, more in rows]


def cancel(books: Books, id: str) -> Job | None:
    """A batch that is to end as soon as it can; None if it has ended."""
    job = next((job for job in unfinished(books) if job.batch.id == id), None)
    if job is not None:
        job.batch.become("cancelling")
        save(books, job.batch)
    return job


def find(books: Books, owner: str, id: str) -> Batch:
    """Raises RequestError (404)."""
    thing = books.get(KIND, owner, id)
    if thing is None:
        raise RequestError(f"There is no batch {id!r}.", status=404)
    return told(books, thing.body)


def told(books: Books, body: str) -> Batch:
    """A batch, with its lines counted."""
    batch = msgspec.json.decode(body, type=Batch)
    if batch.status not in FINAL:
        _count(books, batch)
    return batch


def save(books: Books, batch: Batch) -> None:
    books.tell(batch.id, _encoded(batch))


def add(books: Books, batch_id: str, number: int, result: LineResult) -> None:
    """A line is done; what was done before counts."""
    books.db.execute(
        "INSERT OR IGNORE INTO lines (batch, number, failed, body) VALUES (?, ?, ?, ?)",
        (batch_id, number, not result.good, msgspec.json.encode(result).decode()),
    )


def done(books: Books, batch_id: str) -> set[int]:
    """The numbers of the lines that are done."""
    return {number for (number,) in books.db.execute("SELECT number FROM lines WHERE batch = ?", (batch_id,))}


def end(books: Books, job: Job, status: str, faults: Sequence[Fault] = ()) -> None:
    """The batch ends: its lines become files, and what it held is held no longer."""
    owner, batch, seconds = job
    if status == "completed":
        batch.become("finalizing")
    _count(books, batch)
    batch.usage = Usage()
    for failed, name in ((False, "output"), (True, "errors")):
        bodies = _bodies(books, batch.id, failed=failed)
        if bodies:
            content = "".join(f"{body}\n" for body in bodies).encode()
            file = files.new_file(f"{batch.id}_{name}.jsonl", "batch_output", content, seconds=seconds)
            files.put(books, owner, file, content)
            setattr(batch, "error_file_id" if failed else "output_file_id", file.id)
        if not failed:
            for body in bodies:
                _add_usage(batch.usage, body)
    batch.become(status)
    batch.errors = Faults(list(faults)) if faults else None
    books.db.execute("DELETE FROM lines WHERE batch = ?", (batch.id,))
    save(books, batch)
    books.hold(batch.input_file_id, held=False)
    books.hold(batch.id, held=False)


def _encoded(batch: Batch) -> str:
    return msgspec.json.encode(batch).decode()


def _bodies(books: Books, batch_id: str, *, failed: bool) -> list[str]:
    query = "SELECT body FROM lines WHERE batch = ? AND failed = ? ORDER BY number"
    return [body for (body,) in books.db.execute(query, (batch_id, failed))]


def _count(books: Books, batch: Batch) -> None:
    query = "SELECT count(*), coalesce(sum(failed), 0) FROM lines WHERE batch = ?"
    num_done, num_failed = books.db.execute(query, (batch.id,)).fetchone()
    batch.request_counts.completed, batch.request_counts.failed = num_done - num_failed, num_failed


class _Answered(msgspec.Struct):
    class Response(msgspec.Struct):
        class Body(msgspec.Struct):
            usage: dict[str, Any] = {}

        body: Body

    response: Response


def _add_usage(total: Usage, body: str) -> None:
    used = msgspec.json.decode(body, type=_Answered).response.body.usage
    names = ("input_tokens", "output_tokens") if "input_tokens" in used else ("prompt_tokens", "completion_tokens")
    given, made = (used.get(name, 0) for name in names)
    total.input_tokens += given
    total.output_tokens += made
    total.total_tokens += given + made
    total.input_tokens_details.cached_tokens += _detail(used, f"{names[0]}_details", "cached_tokens")
    total.output_tokens_details.reasoning_tokens += _detail(used, f"{names[1]}_details", "reasoning_tokens")


def _detail(used: dict[str, Any], details: str, name: str) -> int:
    found: int = (used.get(details) or {}).get(name, 0)
    return found
