"""A server that says what a server says, and has nothing to say: `python pretend.py [fail|hang]`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

METRICS = """sapwood_running 3.0
sapwood_waiting 2.0
sapwood_page_size 16.0
sapwood_pages{group="0",state="used"} 7.0
"""
WAYS = {
    "/health": b"{}",
    "/metrics": METRICS.encode(),
    "/v1/models": b'{"data": [{"id": "m"}]}',
    "/v1/chat/completions": json.dumps({"model": "m", "by": str(os.getpid())}).encode(),
}


class Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        said = WAYS.get(self.path)
        keyed = self.headers.get("authorization") == f"Bearer {os.environ.get('SAPWOOD_API_KEY')}"
        self.send_response(404 if said is None else 200 if keyed else 401)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(said or b"nothing is here")

    do_GET = do_POST = _answer

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    print(f"pid {os.getpid()}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if "fail" in sys.argv:
        sys.exit("no such model")
    if "hang" in sys.argv:
        time.sleep(600)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"ready at http://127.0.0.1:{server.server_address[1]} (m) in 0.0 s", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
