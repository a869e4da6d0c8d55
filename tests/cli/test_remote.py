"""The small client, against a small server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from sapwood.base.errors import SapwoodError, UserError
from sapwood.cli.remote import Remote

CHUNKS = [
    {"choices": [{"delta": {"content": "Grüß "}}]},
    {"choices": [{"delta": {"content": "Gott"}}]},
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}},
]


class Server(BaseHTTPRequestHandler):
    """Streams CHUNKS; the content of the only message chooses what goes wrong."""

    def do_GET(self) -> None:
        self._send(200, b'{"data": [{"id": "small"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert body["stream_options"] == {"include_usage": True}
        match body["messages"][0]["content"]:
            case "refused":
                self._send(400, b'{"error": {"message": "no such field"}}')
            case "overloaded":
                self._send(503, b"gateway page")
            case "cut":
                self._send(200, b"data: " + json.dumps(CHUNKS[0]).encode() + b"\n\n")
            case "fails":
                self._send(200, b'data: {"error": {"message": "the engine has ended"}}\n\n')
            case _:
                key = self.headers.get("Authorization", "")
                events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in [*CHUNKS, {"choices": [], "key": key}])
                self._send(200, f": comment\n\n{events}data: [DONE]\n\n".encode())

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def ask(remote: Remote, content: str) -> list[dict[str, object]]:
    return list(remote.chat([{"role": "user", "content": content}], model="small"))


def test_chunks_arrive_in_order(url: str) -> None:
    *chunks, last = ask(Remote(url, api_key="secret"), "hello")
    assert chunks == CHUNKS
    assert last["key"] == "Bearer secret"


def test_the_url_may_be_spelled_in_several_ways(url: str) -> None:
    assert {Remote(form).model() for form in (url, url + "/", url + "/v1", url.removeprefix("http://"))} == {"small"}


@pytest.mark.parametrize(
    ("content", "user", "said"),
    [
        ("refused", True, "400: no such field"),
        ("overloaded", False, "503"),
        ("cut", False, "closed the connection"),
        ("fails", False, "the engine has ended"),
    ],
)
def test_what_goes_wrong_is_told(url: str, content: str, user: bool, said: str) -> None:
    with pytest.raises(SapwoodError, match=said) as caught:
        ask(Remote(url), content)
    assert isinstance(caught.value, UserError) is user
