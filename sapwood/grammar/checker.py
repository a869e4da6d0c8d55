"""Finding out whether a grammar can be used before anything is done with it, at a bounded cost to everybody else."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar
from sapwood.grammar.compiler import COMPILE_SECONDS
from sapwood.grammar.translate import MAX_BYTES
from sapwood.grammar.vocabulary import VocabularySpec

MEMORY = 512 << 20
_KEPT_BYTES = 32 << 20
_COMMAND = (sys.executable, "-m", "sapwood.grammar.trial")

Fate = asyncio.Future["Verdict"]


class Setup(msgspec.Struct, frozen=True):
    """What all trials have in common. `seconds` are of processor time, `memory` bytes beyond what is there."""

    vocabulary: VocabularySpec
    compact_json: bool
    seconds: float
    memory: int


class Question(msgspec.Struct, frozen=True, array_like=True):
    """`may` are the tokens that an output may begin with, a mask (`first_words`); empty is all."""

    id: int
    grammar: Grammar
    may: bytes = b""


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """`problem` is None for a grammar that can be used. `unchecked` are keywords that it leaves out, see `translate`."""

    id: int
    problem: str | None
    unchecked: list[str] = []


class _Case(NamedTuple):
    """What is tried out."""

    grammar: Grammar
    may: bytes

    @property
    def num_bytes(self) -> int:
        return len(self.grammar.text) + len(self.may)


class Checker:
    """Has grammars tried out by another process (`trial`), which is started when the first one comes.

    What was found is kept, refusals as well, for the latest grammars. `vocabulary` is called once.
    """

    def __init__(
        self,
        vocabulary: Callable[[], VocabularySpec],
        *,
        compact_json: bool = False,
        seconds: float = COMPILE_SECONDS,
        memory: int = MEMORY,
    ) -> None:
        self._setup = lambda: Setup(vocabulary(), compact_json, seconds, memory)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._numbers = itertools.count()
        self._asked: dict[int, Fate] = {}
        self._kept: OrderedDict[_Case, Fate] = OrderedDict()
        self._num_bytes = 0

    async def check(self, grammar: Grammar, may: bytes = b"") -> list[str]:
        """The keywords that a grammar leaves out, see `translate`. Raises GrammarError, saying why, if it cannot be used: for an
        output that begins with a token that `may`, see `Question`."""
        if len(grammar.text) > MAX_BYTES:
            raise GrammarError(f"it has {len(grammar.text)} characters; at most {MAX_BYTES} are compiled")
        case = _Case(grammar, may)
        fate = self._kept.get(case)
        if fate is None:
            fate = self._keep(case)
            await self._ask(case, fate)
        else:
            self._kept.move_to_end(case)
        verdict = await asyncio.shield(fate)
        if verdict.problem is not None:
            raise GrammarError(verdict.problem)
        return verdict.unchecked

    def _keep(self, case: _Case) -> Fate:
        fate = self._kept[case] = asyncio.get_running_loop().create_future()
        self._num_bytes += case.num_bytes
        while self._num_bytes > _KEPT_BYTES and len(self._kept) > 1:
            oldest, _ = self._kept.popitem(last=False)
            self._num_bytes -= oldest.num_bytes
        return fate

    async def _ask(self, case: _Case, fate: Fate) -> None:
        number = next(self._numbers)
        self._asked[number] = fate
        try:
            stdin = await self._stdin()
            stdin.write(_frame(Question(number, *case)))
            await stdin.drain()
        except BaseException as error:
            # Whoever else waits for this grammar must not wait for ever, and the next request asks again.
            self._forget(case)
            self._asked.pop(number, None)
            if not fate.done():
                fate.set_exception(error if isinstance(error, Exception) else ConnectionError("the check was cut off"))
                fate.exception()
            raise

    def _forget(self, case: _Case) -> None:
        if self._kept.pop(case, None) is not None:
            self._num_bytes -= case.num_bytes

    async def _stdin(self) -> asyncio.StreamWriter:
        async with self._starting:
            if self._process is None:
                setup = await asyncio.to_thread(self._setup)
                pipe = asyncio.subprocess.PIPE
                self._process = await asyncio.create_subprocess_exec(*_COMMAND, stdin=pipe, stdout=pipe)
                self._reading = asyncio.create_task(self._read(self._process))
                assert self._process.stdin is not None
                self._process.stdin.write(_frame(setup))
            assert self._process.stdin is not None
            return self._process.stdin

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            while True:
                size = int.from_bytes(await process.stdout.readexactly(4), "big")
                verdict = msgspec.msgpack.decode(await process.stdout.readexactly(size), type=Verdict)
                fate = self._asked.pop(verdict.id, None)
                if fate is not None and not fate.done():
                    fate.set_result(verdict)
        except asyncio.IncompleteReadError:
            pass
        finally:
            self._process = None  # the next grammar starts another
            lost, self._asked = set(self._asked.values()), {}
            for case in [case for case, fate in self._kept.items() if fate in lost]:
                self._forget(case)
            for fate in lost:
                if not fate.done():
                    fate.set_exception(ConnectionError("the process that checks grammars is gone"))
                    fate.exception()

    async def close(self) -> None:
        """End the process; those who wait get an error."""
        process, reading = self._process, self._reading
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if reading is not None:
            await asyncio.wait([reading])


def _frame(message: msgspec.Struct) -> bytes:
    data = msgspec.msgpack.encode(message)
    return len(data).to_bytes(4, "big") + data
