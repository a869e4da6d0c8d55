"""A process that tries grammars out, each in a child that may be stopped: threads cannot be.

It reads its vocabulary, then grammars, from standard input, and answers each on standard output with what is wrong
with it. The tokenizer is loaded once; a child begins as a copy of this process and costs a millisecond or two. What a
child takes of processor time and memory is bounded by the system, so no grammar can hold up another one's trial.

Frames are msgpack behind four bytes of length.
"""

from __future__ import annotations

import contextlib
import os
import resource
import selectors
import signal
import struct
from collections import deque
from dataclasses import dataclass

import msgspec

from sapwood.base.errors import GrammarError
from sapwood.grammar.checker import Question, Setup, Verdict
from sapwood.grammar.compiler import Compiled
from sapwood.grammar.vocabulary import Vocabulary

NICENESS = 5
MOST_NAMED = 16  # of the keywords that a grammar leaves out
AT_ONCE = 16  # more than processors, so that a few that take long leave room for those that do not
_PATIENCE = 30  # how much longer than its processor time a trial may last, on a machine that has other work
_STDIN, _STDOUT = 0, 1


@dataclass(frozen=True)
class _Child:
    question: Question
    pid: int
    pipe: int


class Trials:
    """Forks a child per question."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._vocabulary = Vocabulary(setup.vocabulary)
        self._waiting: deque[Question] = deque()
        self._children: dict[int, _Child] = {}
        self._most = AT_ONCE
        self._selector = selectors.DefaultSelector()
        self._selector.register(_STDIN, selectors.EVENT_READ)
        self._buffer = bytearray()

    def run(self) -> None:
        """Until nobody asks any more."""
        while True:
            for key, _ in self._selector.select():
                if key.fd == _STDIN:
                    if not self._read():
                        return
                else:
                    self._end(self._children.pop(key.fd))
            while self._waiting and len(self._children) < self._most:
                self._start(self._waiting.popleft())

    def _read(self) -> bool:
        data = os.read(_STDIN, 1 << 16)
        self._buffer += data
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "big")
            if len(self._buffer) < 4 + size:
                break
            self._waiting.append(msgspec.msgpack.decode(self._buffer[4 : 4 + size], type=Question))
            del self._buffer[: 4 + size]
        return bool(data)

    def _start(self, question: Question) -> None:
        if question.grammar.after:
            _ = self._vocabulary.pieces  # made once here rather than in each child
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._try(question, writing)
        os.close(writing)
        self._children[reading] = _Child(question, pid, reading)
        self._selector.register(reading, selectors.EVENT_READ)

    def _try(self, question: Question, writing: int) -> None:
        """In the child; does not return."""
        problem: str | None = "it could not be compiled"
        unchecked: tuple[str, ...] = ()
        try:
            self._restrain()
            compiled = Compiled(self._vocabulary, question.grammar, compact_json=self._setup.compact_json)
            unchecked = compiled.unchecked[:MOST_NAMED]
            if question.may and not compiled.begins_with(question.may):
                raise GrammarError("none of the tokens that may be drawn may be its first")
            problem = None
        except GrammarError as error:
            problem = str(error)
        except Exception as error:
            problem = f"it could not be compiled: {type(error).__name__}: {error}"
        finally:
            cut = problem and problem.encode("utf-8", "replace")[:4000].decode("utf-8", "ignore")
            os.write(writing, msgspec.msgpack.encode(Verdict(0, cut, [name[:80] for name in unchecked])))
            os._exit(0)

    def _restrain(self) -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # what an allocator says when there is no more memory concerns nobody
        with contextlib.suppress(OSError):
            os.nice(NICENESS)
        with contextlib.suppress(ValueError, OSError):
            most = _address_space() + self._setup.memory
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, self._setup.seconds)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE * self._setup.seconds)

    def _end(self, child: _Child) -> None:
        self._selector.unregister(child.pipe)
        with os.fdopen(child.pipe, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child.pid, 0)
        problem, unchecked = None, []
        if said:
            verdict = msgspec.msgpack.decode(said, type=Verdict)
            problem, unchecked = verdict.problem, verdict.unchecked
        elif os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM):
            problem = f"it takes more than {self._setup.seconds:g} s to compile"
        else:
            problem = f"it takes more than {self._setup.memory >> 20} MiB of memory to compile"
        answer = msgspec.msgpack.encode(Verdict(child.question.id, problem, unchecked))
        _write_all(_STDOUT, struct.pack(">I", len(answer)) + answer)


def _address_space() -> int:
    """Bytes that this process has mapped."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _read_exactly(descriptor: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = os.read(descriptor, min(size - len(data), 1 << 20))
        if not more:
            raise SystemExit(0)
        data += more
    return data


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks decides when this ends
    size = int.from_bytes(_read_exactly(_STDIN, 4), "big")
    setup = msgspec.msgpack.decode(_read_exactly(_STDIN, size), type=Setup)
    Trials(setup).run()


if __name__ == "__main__":
    main()
