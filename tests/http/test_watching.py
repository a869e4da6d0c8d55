"""What operators see of a real server: Prometheus scrapes it, the dashboard's queries find something, the log can be read."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from sapwood.observe.peers import PEERS
from sapwood.observe.table import ENGINE, FRONT
from tests.http.conftest import Server
from tests.waiting import SECONDS, eventually

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
QUERIES = [
    (panel["title"], target["expr"])
    for panel in json.loads((DEPLOY / "grafana/sapwood.json").read_text("utf-8"))["panels"]
    for target in panel.get("targets", [])
]
NAMED = FRONT | ENGINE

needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")), reason="prometheus is not installed"
)


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Server]:
    flags = (
        "--speculation",
        "auto",
        "--metrics-compat",
        "vllm",
        "--log-format",
        "json",
        "--log-requests",
        "--log-level",
        "debug",
    )
    server = Server(tiny_model, "--kv-cache-memory", "32M", "--served-model-name", "tiny", *flags)
    yield server
    assert server.stop() == 0, server.output


def use(server: Server) -> None:
    """A little of everything that is counted."""
    body = {"prompt": "the same beginning, then " * 3, "max_tokens": 12, "ignore_eos": True}
    for _ in range(2):
        assert server.post("/v1/completions", json=body).status_code == 200
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["a", "b"]}}}
    chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8, "response_format": schema}
    assert server.post("/v1/chat/completions", json=chat, headers={"x-request-id": "mine-1"}).status_code == 200
    assert server.post("/v1/completions", json={"prompt": ""}).status_code == 400


def exposed(server: Server) -> dict[str, Any]:
    text = server.get("/metrics").text
    families = list(text_string_to_metric_families(text))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families if not family.name.endswith("_created")}


def documented() -> dict[str, dict[str, str]]:
    """The rows of the tables of docs/metrics.md, by metric, but for those of several models behind one front, which this server has not."""
    text = (ROOT / "docs/metrics.md").read_text("utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if "| `sapwood_" in line and "`sapwood_house_" not in line
    ]
    head = ("metric", "kind", "labels", "what", "vllm", "sglang")
    return {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in rows}


def test_every_metric_is_documented_and_every_documented_one_exists(server: Server) -> None:
    use(server)
    eventually(lambda: "sapwood_engine_steps" in exposed(server))
    found = {name: family for name, family in exposed(server).items() if name.startswith("sapwood_")}
    told = documented()
    assert {name.removesuffix("_total"): row["kind"] for name, row in told.items()} == {
        name: family.type for name, family in found.items()
    }
    for name, row in told.items():
        named = NAMED[name.removesuffix("_total")]
        labels = re.sub(r"\(.*?\)", "", row["labels"])  # a row may say in brackets which values a label has
        assert re.findall(r"`(\w+)`", labels) == list(named.labels), name
        for family_sample in found[named.name].samples:
            assert set(family_sample.labels) - {"le"} == set(named.labels), name
    assert set(NAMED) == set(found)


def test_names_of_other_engines_are_documented() -> None:
    told, text = documented(), (ROOT / "docs/metrics.md").read_text("utf-8")
    for peer in PEERS.values():
        column = peer.prefix.rstrip(":")
        rows = {
            name.removesuffix("_total"): {one.removesuffix("_total") for one in re.findall(r"`(\w+)`", row[column])}
            for name, row in told.items()
        }
        made = {name: {one.theirs.removesuffix("_total") for one in peer.aliases if one.ours == name} for name in rows}
        assert rows == made
        for one in peer.derived:
            assert f"`{peer.prefix}{one.theirs}`" in text


def test_other_engines_names_are_served(server: Server) -> None:
    use(server)
    (sample,) = (s for s in exposed(server)["vllm:prompt_tokens"].samples if s.name.endswith("_total"))
    assert sample.labels == {"model_name": "tiny", "engine": "0"} and sample.value > 0


@needs_prometheus
def test_prometheus_takes_the_configuration_and_the_alerts() -> None:
    for what in ("check config prometheus.yml", "check rules --lint-fatal alerts.yml", "test rules alerts_test.yml"):
        done = subprocess.run(
            ["promtool", *what.split()], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """One that scrapes a server four times a second."""

    def __init__(self, folder: Path, target: str) -> None:
        given = (DEPLOY / "prometheus/prometheus.yml").read_text("utf-8")
        config = given.replace("127.0.0.1:8000", target).replace("interval: 5s", "interval: 250ms")
        (folder / "prometheus.yml").write_text(config.replace("evaluation_interval: 15s", "evaluation_interval: 250ms"))
        shutil.copy(DEPLOY / "prometheus/alerts.yml", folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        options = {
            "config.file": folder / "prometheus.yml",
            "storage.tsdb.path": folder / "data",
            "web.listen-address": self.url.removeprefix("http://"),
            "log.level": "warn",
        }
        self.process = subprocess.Popen(["prometheus", *(f"--{name}={value}" for name, value in options.items())])

    def ask(self, path: str, **params: str) -> Any:
        return httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=SECONDS).json()

    def value(self, query: str) -> float:
        """What a query finds first, -1 for nothing."""
        found = self.ask("query", query=query)["data"]["result"]
        return float(found[0]["value"][1]) if found else -1.0

    def ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=SECONDS).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    use(server)
    prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), server.url.removeprefix("http://"))
    try:
        eventually(prometheus.ready)
        eventually(lambda: prometheus.value("count_over_time(sapwood_engine_steps_total[1m])") >= 2)
        use(server)
        yield prometheus
    finally:
        prometheus.process.kill()
        prometheus.process.wait()


@needs_prometheus
def test_every_query_of_the_dashboard_finds_something(prometheus: Prometheus) -> None:
    """Rates are over all that there is, so that what happened once is in them."""
    eventually(lambda: prometheus.value("sum(increase(sapwood_engine_output_tokens_total[5m]))") > 0)
    for title, query in QUERIES:
        query = query.replace("$__rate_interval", "5m").replace("$job", "sapwood").replace("$instance", ".*")
        assert "$" not in query, title
        told = prometheus.ask("query", query=query)
        assert told["status"] == "success", (title, told)
        assert told["data"]["result"], (title, query)


@needs_prometheus
def test_alerts_are_evaluated_and_a_healthy_server_fires_none(prometheus: Prometheus) -> None:
    def rules() -> list[dict[str, Any]]:
        groups = prometheus.ask("rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    eventually(lambda: rules() and all(rule["health"] == "ok" for rule in rules()))
    assert {rule["name"] for rule in rules() if rule["state"] != "inactive"} <= {"SapwoodServerErrors"}
    named = set(re.findall(r"sapwood_\w+", (DEPLOY / "prometheus/alerts.yml").read_text("utf-8")))
    assert {re.sub("_(total|bucket)$", "", name) for name in named} <= set(NAMED)


def test_queries_are_of_what_there_is() -> None:
    assert len(QUERIES) > 50
    for title, query in QUERIES:
        names = {re.sub("_(total|bucket|sum|count)$", "", name) for name in re.findall(r"sapwood_\w+", query)}
        assert names and names <= set(NAMED), title


def test_lines_of_both_processes_can_be_read_by_programs(server: Server) -> None:
    use(server)

    def told() -> list[dict[str, Any]]:
        return [json.loads(line) for line in server.output.splitlines() if line.startswith('{"time"')]

    eventually(lambda: any(line.get("request_id") == "mine-1" for line in told()))
    mine = next(line for line in told() if line.get("request_id") == "mine-1" and "route" in line)
    assert (mine["process"], mine["pid"], mine["level"]) == ("server", server.process.pid, "info")
    assert (mine["route"], mine["status"], mine["finish"]) == ("/v1/chat/completions", 200, "stop")
    assert mine["prompt_tokens"] > mine["cached_tokens"] >= 0 and 0 < mine["first_token_seconds"] <= mine["seconds"]
    assert {line["pid"] for line in told() if line["process"] == "engine"} == {server.engine_pid}
    assert "the same beginning" not in server.output


def test_top_looks_at_it(server: Server) -> None:
    use(server)
    command = [sys.executable, "-m", "sapwood", "top", server.url, "--once", "--json", "--interval", "0.2"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["model"] == "tiny" and found["pages"][0]["total"] > 0
