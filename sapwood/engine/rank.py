"""Another rank of an engine, in a process of its own.

What it is to be comes through its standard input, which stays open: what comes there later wakes it up, and when the engine is gone,
however it went, this process reads its end there and goes too.
"""

from __future__ import annotations

if __name__ == "__main__":
    from sapwood.engine import lean

    lean.thin_torch()

import logging
import os
import signal
import threading

import msgspec

from sapwood.base.errors import Lost, UserError
from sapwood.catalogue import joined
from sapwood.engine import lean
from sapwood.engine.declared import declared
from sapwood.engine.spawn import read_told
from sapwood.engine.speculation import draft_of
from sapwood.executor.ranks import Follower, RankStart, beat, segment_of
from sapwood.executor.stages import executor_of
from sapwood.hub.files import find_configured
from sapwood.observe.log import set_up_logging
from sapwood.parallel.segment import Segment

log = logging.getLogger("sapwood.engine.rank")  # this module runs as __main__

_STDIN = 0


def main() -> None:
    # The engine decides when we end, as its front does of the engine.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    lean.begin()
    start = msgspec.msgpack.decode(read_told(), type=RankStart)
    server = start.config.server
    set_up_logging(server.log_level, format=server.log_format, process=f"rank {start.rank}", whole=True)
    segment, woken = segment_of(start), threading.Event()
    threading.Thread(target=_watch_engine, args=(woken,), daemon=True).start()
    threading.Thread(target=beat, args=(segment,), daemon=True).start()
    try:
        follower = _follower(start, segment, woken)
        lean.trim()
        follower.run()
    except UserError as error:
        segment.raise_alarm(start.rank, str(error), mendable=True)
        raise SystemExit(2) from None
    except Lost as error:
        log.debug("ends: %s", error)
        raise SystemExit(1) from None
    except BaseException as error:
        segment.raise_alarm(start.rank, f"has failed: {type(error).__name__}: {error}")
        raise


def _follower(start: RankStart, segment: Segment, woken: threading.Event) -> Follower:
    config, catalogue = start.config, joined()
    if config.model.load_format == "dummy":
        lean.whole_torch()
    files = find_configured(config.model, families=catalogue.families)
    decoder = declared(config, files, catalogue)
    follower = Follower(executor_of(config, catalogue, segment), segment, woken)
    follower.start(start, decoder, files, draft_of(config, decoder, files, catalogue))
    return follower


def _watch_engine(woken: threading.Event) -> None:
    while os.read(_STDIN, 1 << 12):
        woken.set()
    os._exit(1)


if __name__ == "__main__":
    main()
