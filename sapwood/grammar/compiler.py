"""Grammars compiled beside the engine's loop, and kept."""

from __future__ import annotations

import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from queue import SimpleQueue
from time import perf_counter
from typing import Any, TypeVar

import llguidance
import numpy as np

from sapwood.base.errors import GrammarError
from sapwood.base.grammar import Grammar
from sapwood.grammar.size import prescribes_much
from sapwood.grammar.translate import translate
from sapwood.grammar.trigger import Trigger
from sapwood.grammar.vocabulary import Vocabulary

T = TypeVar("T")

COMPILE_SECONDS = 2.0
CACHE_BYTES = 256 << 20
THREADS = 2

_BASE_BYTES = 64 << 10  # of a compiled grammar, roughly, and so much more per byte of its text
_BYTES_PER_BYTE = 64
_BYTES_PER_TOKEN = 8 << 10  # what a matcher finds out with a token, and keeps, is less
_REASON_CHARS = 400
_LIMITS = ("fuel exhausted", "too big", "too large", "recursion limit", "too many", "exceeded")  # in its messages


def limits() -> llguidance.LLParserLimits:
    """What one grammar may take: llguidance's own limits, below which public schemas stay."""
    return llguidance.LLParserLimits(verbose_errors=False)


class Compiled:
    """A grammar ready for any number of outputs: `matcher` is at its beginning and stays there; copy it.

    Attributes:
        unchecked: Keywords of JSON schemas that it leaves out, see `translate`.
        forcing: Matchers find the tokens that are forced. They do so to the end of a stretch, so where it is long, or has no
            end, they do not, and masks leave every way to write it.
        spoiled: Copies of the matcher share what they find out; one has run out of its limits, and says so here.
        num_followed: Tokens that they took since somebody last looked: what they find out takes memory too.
        num_bytes: What it takes, about.
    """

    def __init__(
        self, vocabulary: Vocabulary, grammar: Grammar, *, compact_json: bool, forcing: bool | None = None
    ) -> None:
        """`forcing` follows from the grammar where it is not given. Raises GrammarError for what is wrong, not supported or
        beyond the limits."""
        self.vocabulary = vocabulary
        self.spoiled = False
        self.num_followed = 0
        self.forcing = not prescribes_much(grammar) if forcing is None else forcing
        before = _resident()
        tried = self._make(grammar, compact_json)
        if self.forcing and tried.is_error() and not self.matcher.is_error():  # as a text without end shows itself
            self.forcing = False
            tried = self._make(grammar, compact_json)
        if tried.is_error():
            raise GrammarError(_reason(tried.get_error()))
        self.trigger = Trigger(grammar.after.encode(), vocabulary.pieces, self._allows) if grammar.after else None
        # What else takes memory meanwhile is counted in: better too much than too little.
        self.num_bytes = max(_BASE_BYTES + _BYTES_PER_BYTE * len(grammar.text), _resident() - before)

    def _make(self, grammar: Grammar, compact_json: bool) -> llguidance.LLMatcher:
        """Make the matcher; a copy that has been tried out, and says what is wrong if the grammar is of no use: one that cannot be
        compiled, or whose first masks already cannot be told.

        The second mask is looked at where the first token is prescribed: a text without end shows itself there.
        """
        text, self.unchecked = translate(grammar, compact_json=compact_json, forcing=self.forcing)
        self.matcher = copy = llguidance.LLMatcher(self.vocabulary.tokenizer, text, limits=limits(), log_level=0)
        bits_W = np.empty(self.vocabulary.width, np.int32)
        for count in (0, 1):
            if copy.is_error():
                break
            copy = copy.deep_copy()
            copy.consume_tokens(copy.compute_ff_tokens()[:count])
            copy.unsafe_compute_mask_ptr(bits_W.ctypes.data, bits_W.nbytes)
        return copy

    def begins_with(self, may: bytes) -> bool:
        """Whether an output may begin with one of the tokens of a mask, which has the model's width or less."""
        if self.trigger is not None:  # text in front of it is free
            return True
        may_W, bits_W = np.frombuffer(may, np.int32), np.empty(self.vocabulary.width, np.int32)
        self.matcher.deep_copy().unsafe_compute_mask_ptr(bits_W.ctypes.data, bits_W.nbytes)
        return bool((bits_W[: len(may_W)] & may_W).any())

    def _allows(self, rest: bytes) -> bool:
        tokens = self.vocabulary.tokenizer.tokenize_bytes(rest)
        return bool(self.matcher.deep_copy().try_consume_tokens(tokens) == len(tokens))


class Compiler:
    """Compiles grammars in threads, which do not hold the interpreter's lock, and keeps the latest ones.

    `vocabulary` is called once, in a thread, and may raise GrammarError: `at_once`, or for the first grammar, as it takes
    a while and much memory. All methods may be called from any thread.

    Attributes:
        num_compiled: How many grammars were compiled; seconds: what that took altogether.
    """

    def __init__(
        self,
        vocabulary: Callable[[], Vocabulary],
        *,
        compact_json: bool = False,
        cache_bytes: int = CACHE_BYTES,
        threads: int = THREADS,
        at_once: bool = False,
    ) -> None:
        self.num_compiled = 0
        self.seconds = 0.0
        self._compact_json = compact_json
        self._cache_bytes = cache_bytes
        self._threads = _Threads(threads)
        weakref.finalize(self, self._threads.close)
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, Compiled] = OrderedDict()
        self._num_bytes = 0
        self._resident = _resident()  # when it was last looked
        self._running: dict[Grammar, Future[Compiled]] = {}
        self._make_vocabulary = vocabulary
        self._making: Future[Vocabulary] | None = None
        if at_once:
            self.vocabulary  # noqa: B018

    @property
    def vocabulary(self) -> Future[Vocabulary]:
        """The vocabulary, which is made beside from the first time on that it is asked for. The future raises GrammarError."""
        with self._lock:
            if self._making is None:
                self._making = self._threads.submit(self._make_vocabulary)
            return self._making

    def compile(self, grammar: Grammar, *, alone: bool = False) -> Future[Compiled]:
        """The compiled grammar, at once where it is kept; `alone`, one that nobody else uses, and that forces nothing, since
        that may be what has spoiled the other. The future raises GrammarError."""
        self.vocabulary  # noqa: B018  first: a thread that compiles waits for it
        if alone:
            return self._threads.submit(self._make, grammar, forcing=False)
        with self._lock:
            self._count_growth()
            kept = self._kept.get(grammar)
            if kept is not None and kept.spoiled:
                self._drop(grammar)
                kept = None
            if kept is not None:
                self._kept.move_to_end(grammar)
                self._make_room()
                done: Future[Compiled] = Future()
                done.set_result(kept)
                return done
            running = self._running.get(grammar)
            if running is None:
                running = self._running[grammar] = self._threads.submit(self._compile, grammar)
            return running

    def check(self, grammar: Grammar, *, seconds: float = COMPILE_SECONDS) -> Compiled:
        """The compiled grammar, waited for so long. Raises GrammarError if it cannot be used."""
        self.vocabulary.result()
        try:
            return self.compile(grammar).result(seconds)
        except TooLate:
            raise GrammarError(f"it takes more than {seconds:g} s to compile") from None

    def close(self) -> None:
        """Let the threads end when they have done what they are doing."""
        self._threads.close()

    def _make(self, grammar: Grammar, *, forcing: bool | None = None) -> Compiled:
        vocabulary = self.vocabulary.result()
        began = perf_counter()
        compiled = Compiled(vocabulary, grammar, compact_json=self._compact_json, forcing=forcing)
        with self._lock:
            self.num_compiled += 1
            self.seconds += perf_counter() - began
        return compiled

    def _compile(self, grammar: Grammar) -> Compiled:
        try:
            compiled = self._make(grammar)
            with self._lock:
                self._keep(grammar, compiled)
            return compiled
        finally:
            with self._lock:
                self._running.pop(grammar, None)

    def _keep(self, grammar: Grammar, compiled: Compiled) -> None:
        self._kept[grammar] = compiled
        self._num_bytes += compiled.num_bytes
        self._resident = _resident()  # its own growth is counted
        self._make_room()

    def _count_growth(self) -> None:
        """Count what this process has grown by as what those take who were followed meanwhile, each by its tokens."""
        before, self._resident = self._resident, _resident()
        followed = [one for one in self._kept.values() if one.num_followed]
        grown, num_tokens = self._resident - before, sum(one.num_followed for one in followed)
        for one in followed:
            share = min(max(grown, 0) // num_tokens, _BYTES_PER_TOKEN) * one.num_followed
            one.num_bytes += share
            self._num_bytes += share
            one.num_followed = 0

    def _make_room(self) -> None:
        while self._num_bytes > self._cache_bytes and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def _drop(self, grammar: Grammar) -> None:
        self._num_bytes -= self._kept.pop(grammar).num_bytes


class _Threads:
    """A pool that no interpreter waits for at its end: a compilation cannot be stopped, and need not be finished."""

    def __init__(self, count: int) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._count = count
        for number in range(count):
            threading.Thread(target=self._run, name=f"grammar-{number}", daemon=True).start()

    def submit(self, work: Callable[..., T], *args: Any, **named: Any) -> Future[T]:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(work(*args, **named))
            except BaseException as error:
                future.set_exception(error)

        self._work.put(run)
        return future

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            del work  # and with it whatever it refers to, while there is nothing to do

    def close(self) -> None:
        for _ in range(self._count):
            self._work.put(None)


def _resident() -> int:
    """Bytes of memory that this process has; 0 where nobody tells."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def _reason(error: str) -> str:
    """llguidance's message in one line."""
    text = " ".join(error.replace("<non-verbose/>", "").split())
    if any(word in text.lower() for word in _LIMITS):
        text = f"it is too large or too involved, a simpler one is needed: {text}"
    return text if len(text) <= _REASON_CHARS else f"{text[:_REASON_CHARS]} ..."
