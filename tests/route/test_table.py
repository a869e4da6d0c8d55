"""What is written into a table, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sapwood.base.errors import ConfigError
from sapwood.route.table import checked, of_urls, read

WHOLE = """
policy = "session"
retries = 1

[[server]]
url = "http://127.0.0.1:8001/v1/"
weight = 2

[[server]]
url = "dns+http://engines:8000"
name = "pool"
key_file = "KEY"
models = ["a", "b"]

[model.fast]
to = ["a", "c"]
policy = "round_robin"
"""


def test_a_table_is_read(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-1\n")
    path = tmp_path / "table.toml"
    path.write_text(WHOLE.replace("KEY", str(tmp_path / "key")))
    table = read(path)
    first, pool = table.server
    assert (first.url, first.shown, first.weight) == ("http://127.0.0.1:8001", "127.0.0.1:8001", 2)
    assert (pool.shown, pool.looked_up, pool.key, pool.models) == ("pool", True, "sk-1", ("a", "b"))
    assert table.model["fast"].to == ("a", "c") and table.retries == 1


def test_addresses_need_no_scheme() -> None:
    assert [server.url for server in of_urls(["localhost:1", "https://b/v1"], "least_load").server] == [
        "http://localhost:1",
        "https://b",
    ]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"server": []}, "length >= 1"),
        ({"server": [{"url": "http://a"}], "policy": "best"}, "there is no policy 'best'; take one of cache_aware"),
        ({"server": [{"url": "http://a"}], "polizy": "best"}, "unknown field `polizy`"),
        ({"server": [{"url": "ftp://a"}]}, "'ftp://a' is no address of a server"),
        ({"server": [{"url": "http://a:99999"}]}, "is no address of a server"),
        ({"server": [{"url": "http://a"}, {"url": "http://a"}]}, "two servers are called a"),
        ({"server": [{"url": "http://a", "weight": 0}]}, r"\$.server\[0\].weight"),
        ({"server": [{"url": "http://a", "key": "k", "key_file": "f"}]}, "either key or key_file"),
        ({"server": [{"url": "http://a", "key_file": "/nowhere/at/all"}]}, "key_file of a cannot be read"),
        ({"server": [{"url": "http://a"}], "model": {"x": {"to": []}}}, r"to"),
        ({"server": [{"url": "http://a"}], "model": {"x": {"to": ["y"], "policy": "no"}}}, "there is no policy 'no'"),
    ],
)
def test_what_is_wrong_is_named(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(raw, "table.toml")


def test_a_file_that_is_no_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "table.toml").write_text("[[server")
    with pytest.raises(ConfigError, match=r"table.toml cannot be read"):
        read(tmp_path / "table.toml")
