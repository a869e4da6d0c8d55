"""The page's files: what is served, to whom, and that nothing else is."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from sapwood.config import Config, ServerConfig
from sapwood.server import create_app
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine

pytestmark = pytest.mark.anyio

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
MOST_LINES = 400


def client(app: Starlette) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


async def test_browsers_get_the_page_and_all_others_what_they_got(http: httpx.AsyncClient) -> None:
    page = await http.get("/", headers=HTML)
    assert page.headers["content-type"] == "text/html; charset=utf-8" and "<title>Sapwood</title>" in page.text
    for headers in ({}, {"accept": "*/*"}, {"accept": "application/json"}):
        reply = await http.get("/", headers=headers)
        assert reply.json()["name"] == "sapwood" and reply.headers["vary"] == page.headers["vary"] == "Accept"
        assert "/page/{name}" not in reply.json()["routes"]
    assert (await http.head("/", headers=HTML)).status_code == 200


async def test_all_that_the_page_names_is_there(http: httpx.AsyncClient, folder: Path) -> None:
    index = (folder / "index.html").read_text()
    named = set(re.findall(r'(?:href|src)="page/([^"]+)"', index))
    for module in folder.glob("*.js"):
        named |= set(re.findall(r'from "\./([^"]+)"', module.read_text()))
        named |= set(re.findall(r'"page/([^"]+)"', module.read_text()))
    assert named == {file.name for file in folder.iterdir() if file.suffix in (".js", ".css", ".svg")}
    for name in named:
        reply = await http.get(f"/page/{name}")
        assert (reply.status_code, reply.content) == (200, (folder / name).read_bytes()), name
        kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
        assert reply.headers["content-type"] == kinds[Path(name).suffix]


async def test_a_strict_policy_and_nothing_in_line(http: httpx.AsyncClient) -> None:
    page = await http.get("/", headers=HTML)
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none';") and "unsafe" not in policy and "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<style|style=|<script(?! type=\"module\" src=)| on\w+=|https?://(?!www\.w3\.org)", page.text)


async def test_a_file_is_sent_once(http: httpx.AsyncClient) -> None:
    first = await http.get("/page/main.js")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f'"other", W/{tag}'):
        again = await http.get("/page/main.js", headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    other = await http.get("/page/main.js", headers={"if-none-match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path", ["__init__.py", "__init__.js", "..%2fapp.py", "%2e%2e/app.py", "../../app.py", "%2fetc%2fpasswd", ".", ""]
)
async def test_nothing_else_can_be_had(http: httpx.AsyncClient, path: str) -> None:
    reply = await http.get(f"/page/{path}")
    assert reply.status_code == 404 and "No such path" in reply.json()["error"]["message"]


async def test_the_page_needs_no_key_and_all_else_does(engine: FakeEngine, text: TextModel) -> None:
    app = create_app(engine, text, Config(server=ServerConfig(api_key="hidden")), MODEL)
    async with client(app) as http:
        assert (await http.get("/", headers=HTML)).status_code == 200
        assert (await http.get("/page/main.js")).status_code == 200
        for path in ("/", "/live", "/v1/models"):
            assert (await http.get(path)).status_code == 401, path
        assert (await http.get("/v1/models", headers=HTML)).status_code == 401
        assert (await http.post("/page/main.js")).status_code == 401


async def test_without_the_page(engine: FakeEngine, text: TextModel) -> None:
    app = create_app(engine, text, Config(server=ServerConfig(api_key="hidden", page=False)), MODEL)
    async with client(app) as http:
        assert (await http.get("/", headers=HTML)).status_code == 401
        assert (await http.get("/page/main.js")).status_code == 401
        known = {"authorization": "Bearer hidden"}
        assert (await http.get("/", headers=HTML | known)).json()["name"] == "sapwood"
        assert (await http.get("/page/main.js", headers=known)).status_code == 404


def test_modules_are_short_and_make_no_html_of_text(folder: Path) -> None:
    for module in folder.glob("*.js"):
        source = module.read_text()
        assert source.count("\n") < MOST_LINES, module.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", source)


def test_modules_can_be_read(folder: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node here")
    check = "for (const file of process.argv.slice(1)) new vm.SourceTextModule(fs.readFileSync(file, 'utf8'), {identifier: file})"
    command = [node, "--no-warnings", "--experimental-vm-modules", "-e", check, *map(str, folder.glob("*.js"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
