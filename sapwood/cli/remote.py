"""A small client of an OpenAI-compatible server, from the standard library alone."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from sapwood.base.errors import SapwoodError, UserError


class Remote:
    """`url` is the server's root, with or without /v1. Raises UserError for what the server refuses or where there is none."""

    def __init__(self, url: str, *, api_key: str | None = None) -> None:
        if "://" not in url:
            url = f"http://{url}"
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str) -> Any:
        with self._open(path, None) as response:
            return json.load(response)

    def post(self, path: str, body: Any) -> Any:
        with self._open(path, body) as response:
            return json.load(response)

    def model(self) -> str:
        """The first model that the server names."""
        name: str = self.get("/v1/models")["data"][0]["id"]
        return name

    def chat(self, messages: list[dict[str, str]], **fields: Any) -> Iterator[dict[str, Any]]:
        """Yield the chunks of a streamed chat completion; the last one carries `usage`."""
        body = {"messages": messages, "stream": True, "stream_options": {"include_usage": True}, **fields}
        with self._open("/v1/chat/completions", body) as response:
            for raw in response:
                line = raw.decode("utf-8").strip()
                if not line.startswith("data:"):
                    continue
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                chunk = json.loads(data)
                if "error" in chunk:
                    raise SapwoodError(_message(chunk))
                yield chunk
        raise SapwoodError(f"{self.url} closed the connection in the middle of an answer.")

    def _open(self, path: str, body: Any) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self._headers)
        try:
            return urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            try:
                message = _message(json.load(error))
            except ValueError:
                message = error.reason
            kind = UserError if error.code < 500 else SapwoodError
            raise kind(f"{self.url} answered {error.code}: {message}") from error
        except urllib.error.URLError as error:
            raise UserError(f"{self.url} cannot be reached: {error.reason}. Is `sapwood serve` running?") from error


def _message(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)
