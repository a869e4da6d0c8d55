"""A fleet of simulated engines behind the router's own policies: `python bench/fleet.py --trace agents --replicas 4 16 64`.

Engines are real but for their devices, which only keep time (`fleet_engine.py`), so thousands fit in one process; policies are those of
`sapwood route`, and `exact`, which looks into the engines' trees: as well as one can know them. Traces (`traces.py`) are open: sessions come at
`--rate` a second and replica, whatever becomes of earlier ones. Time is simulated, so what else the machine does changes nothing.

`--check` runs W1 to W4 on one engine, beside what the card was measured to do. `--replay URL` sends the trace to a server, or
to a router before several, instead; its model has to know token ids up to 10,000.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from fleet_engine import H100_8B, Card, Simulated
from traces import KINDS, LONGEST, Talk, Turn

from sapwood.base.plan import Ints
from sapwood.base.sampling import SamplingParams
from sapwood.base.wire import Deltas, Submit
from sapwood.bench.workloads import find_all
from sapwood.route.fleet import Replica
from sapwood.route.policies import Chosen, Policy, policies
from sapwood.route.prefixes import Prefixes
from sapwood.route.table import Server

BLOCK = 64  # tokens of a prompt that the router tells apart
TTFT_GOOD, ITL_GOOD = 1.0, 0.05  # seconds within which an answer begins, and goes on, for it to count as good
MEASURED = {
    "W1": 8623,
    "W2": 11653,
    "W3": 10680,
    "W4": 5213,
}  # output tok/s of llama-8b on an H100, docs/performance.md
ANSWER = 1  # the token that simulated answers are made of


@dataclass
class Done:
    """What became of a request, times in seconds."""

    at: float
    prompt_len: int
    output_len: int
    server: str
    cached: int = 0
    first: float = 0.0
    end: float = 0.0

    @property
    def ttft(self) -> float:
        return self.first - self.at

    @property
    def itl(self) -> float:
        return (self.end - self.first) / max(self.output_len - 1, 1)

    @property
    def good(self) -> bool:
        return self.ttft <= TTFT_GOOD and self.itl <= ITL_GOOD


@dataclass
class Ask:
    """What policies look at."""

    prompt: Ints
    session: str | None
    model: str = "m"
    tokens: bytes | None = None  # nobody here tells of what caches hold, but for `exact`
    blocks: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.blocks, number = [], 0
        for start in range(0, len(self.prompt) - BLOCK + 1, BLOCK):
            number = hash((number, self.prompt[start : start + BLOCK].tobytes()))
            self.blocks.append(number)


class Exact(Policy):
    """As `cache_aware` chooses, but by what the engines' trees hold, and what waits there to be computed."""

    def __init__(self, engines: Mapping[str, Simulated]) -> None:
        self._engines = engines

    def choose(self, ask: Any, replicas: Sequence[Replica]) -> Chosen:
        def left(one: Replica) -> float:
            return (len(ask.prompt) - self._held(ask, one.name)) / BLOCK + 8 * one.load

        return Chosen(min(replicas, key=left), "cached")

    def _held(self, ask: Any, name: str) -> int:
        tree = self._engines[name].kv.tree
        root = tree.roots.get(next(iter(tree.roots), b""))
        if root is None:
            return 0
        return self._engines[name].kv.page_size * len(tree.match(root, ask.prompt.tobytes(), len(ask.prompt)))


class Fleet:
    """Everything that happens, in the order of simulated time."""

    def __init__(self, card: Card, replicas: int, policy: str, *, longest: int, seed: int = 0) -> None:
        self.engines = {f"e{number}": Simulated(card, longest=longest) for number in range(replicas)}
        self.now = 0.0
        self.replicas = [
            Replica(Server(url=f"http://{name}"), f"http://{name}", name, clock=lambda: self.now)
            for name in self.engines
        ]
        self.prefixes = Prefixes(clock=lambda: self.now)
        rng = random.Random(seed)
        self.policy: Policy = Exact(self.engines) if policy == "exact" else policies(self.prefixes, rng=rng)[policy]
        self.done: list[Done] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers, self._ids = count(), count()
        self._running: dict[int, tuple[Done, Replica, Callable[[], None]]] = {}

    def run(self, talks: Sequence[Talk]) -> list[Done]:
        for talk in talks:
            self._turn(talk, 0, np.zeros(0, np.int32), talk.at)
        while self._events:
            self.now, _, happens = heapq.heappop(self._events)
            happens()
        assert not self._running, "some request has had no answer"
        return self.done

    def _at(self, time: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time, next(self._numbers), happens))

    def _turn(self, talk: Talk, number: int, history: Ints, at: float) -> None:
        """One of a session's requests is sent at that time, if there is one."""
        if number < len(talk.turns):
            self._at(at, lambda: self._send(talk, number, history))

    def _send(self, talk: Talk, number: int, history: Ints) -> None:
        turn = talk.turns[number]
        prompt = np.concatenate([history, turn.tokens])
        ask = Ask(prompt, talk.name)
        chosen = self.policy.choose(ask, self.replicas).replica  # type: ignore[arg-type]
        self.policy.sent(ask, chosen)  # type: ignore[arg-type]
        chosen.running += 1
        id, done = next(self._ids), Done(self.now, len(prompt), turn.output_len, chosen.name)

        def ended() -> None:
            answered = np.concatenate([prompt, np.full(turn.output_len, ANSWER, np.int32)])
            self._turn(talk, number + 1, answered, self.now + turn.pause)

        self._running[id] = done, chosen, ended
        params = SamplingParams(max_tokens=turn.output_len, ignore_eos=True)
        engine = self.engines[chosen.name]
        refused = engine.loop.submit(Submit(id, prompt.tolist(), params))
        assert refused is None, refused
        if engine.asleep:
            engine.asleep = False
            self._step(engine)

    def _step(self, engine: Simulated) -> None:
        began = engine.clock.seconds
        news = engine.loop.step()
        self._at(self.now + engine.clock.seconds - began, lambda: self._landed(engine, news))

    def _landed(self, engine: Simulated, news: Sequence[Deltas]) -> None:
        for deltas in news:
            for delta in deltas.deltas:
                assert delta.error is None, delta.error
                done, replica, ended = self._running[delta.id]
                if delta.cached_tokens >= 0:
                    done.cached = delta.cached_tokens
                if delta.tokens and not done.first:
                    done.first = self.now
                if delta.finish is not None:
                    done.end = self.now
                    replica.running -= 1
                    self.done.append(done)
                    del self._running[delta.id]
                    ended()
        engine.asleep = engine.loop.idle
        if not engine.asleep:
            self._step(engine)


def figures(done: Sequence[Done], replicas: int) -> dict[str, float]:
    """Of the requests that came after the first tenth of the time, when caches were no longer empty."""
    last = max(one.at for one in done)
    warm = [one for one in done if one.at >= last / 10]
    ttft = np.array([one.ttft for one in warm])
    seconds = max(one.end for one in warm) - min(one.at for one in warm)
    by_server: dict[str, int] = {}
    for one in warm:
        by_server[one.server] = by_server.get(one.server, 0) + one.prompt_len - one.cached + one.output_len
    busiest = max(by_server.values()) / (sum(by_server.values()) / replicas)
    return {
        "requests": len(warm),
        "hit_%": 100 * sum(one.cached for one in warm) / sum(one.prompt_len for one in warm),
        "ttft_p50_ms": 1e3 * float(np.quantile(ttft, 0.5)),
        "ttft_p99_ms": 1e3 * float(np.quantile(ttft, 0.99)),
        "itl_p99_ms": 1e3 * float(np.quantile([one.itl for one in warm], 0.99)),
        "good_%": 100 * sum(one.good for one in warm) / len(warm),
        "output_tok_s": sum(one.output_len for one in warm) / seconds / replicas,
        "busiest": busiest,
    }


def check(card: Card) -> None:
    """W1 to W4 on one engine, beside what was measured."""
    for spec in find_all(["w1", "w2", "w3", "w4"]):
        work = spec.make()
        talks = [
            Talk(0.0, str(number), [Turn(np.array(turn.tokens, np.int32), turn.output_len, 0.0) for turn in session])
            for number, session in enumerate(work.sessions)
        ]
        done = Fleet(card, 1, "round_robin", longest=work.longest + 1).run(talks)
        rate = sum(one.output_len for one in done) / max(one.end for one in done)
        measured = MEASURED[spec.name.split()[0]]
        print(f"{spec.name:20} {rate:8,.0f} output tok/s, measured {measured:,}: {rate / measured:.2f}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*policies(Prefixes()), "exact"]
    parser.add_argument("--trace", choices=list(KINDS), default="agents")
    parser.add_argument("--replicas", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--policies", nargs="+", choices=names, default=names)
    parser.add_argument("--rate", type=float, nargs="+", default=[1.0], help="sessions a second, of each replica")
    parser.add_argument("--seconds", type=float, default=120.0, help="of simulated time in which sessions begin")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="W1 to W4 on one engine, beside what was measured")
    parser.add_argument(
        "--replay", metavar="URL", help="send the trace there instead, for as many servers as --replicas says"
    )
    parser.add_argument("--json", type=Path, help="write the rows there, a line each")
    parser.add_argument("--plot", type=Path, help="draw them there (svg or png)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.check:
        check(H100_8B)
        return 0
    rows: list[dict[str, Any]] = []
    for replicas in args.replicas:
        for rate in args.rate:
            talks = KINDS[args.trace](rate * replicas, args.seconds, args.seed)
            for policy in args.policies if args.replay is None else ["replay"]:
                began = perf_counter()
                if args.replay is None:
                    done = Fleet(H100_8B, replicas, policy, longest=LONGEST + 1, seed=args.seed).run(talks)
                else:
                    from fleet_replay import replay

                    done = [Done(**one) for one in asyncio.run(replay(args.replay, talks))]
                row = {"trace": args.trace, "replicas": replicas, "rate": rate, "policy": policy}
                rows.append(row | figures(done, replicas))
                _tell(rows[-1], perf_counter() - began)
    if args.json:
        args.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    if args.plot:
        from fleet_plot import draw

        draw(rows, args.plot)
    return 0


def _tell(row: Mapping[str, Any], took: float) -> None:
    numbers = ", ".join(f"{name} {value:,.4g}" for name, value in row.items() if isinstance(value, float))
    print(f"{row['trace']} x{row['replicas']} {row['policy']:13} {numbers} ({took:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
