"""The routes tried out by `scripts/fuzz.py`, a round of it, and that it would see what is wrong."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sapwood.config import Config
from sapwood.server import create_app
from sapwood.server.admin import Version
from sapwood.server.app import ROOMS
from sapwood.server.front import Front
from sapwood.server.rooms import Room
from sapwood.server.routes import Described, plain
from tests.http.conftest import ADMIN, Server
from tests.server.fakes import MODEL, FakeEngine, make_text
from tests.waiting import eventually


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "scripts" / "fuzz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_wrong_in_a_round(fuzz: ModuleType, server: Server) -> None:
    with closing(fuzz.Fuzz(server.url, {"x-api-key": ADMIN}, seed=1, examples=1)) as trying:
        trying.run(0)
    assert not trying.faults, trying.faults
    tried = {label for label, _ in trying.statuses}
    assert {"POST /generate", "POST /v1/chat/completions", "GET /v1/models/{name}"} <= tried
    served = {label for label, status in trying.statuses if status == 200}
    assert {"POST /generate", "POST /v1/chat/completions", "POST /v1/completions", "POST /pause"} <= served


def planted(front: Front) -> list[Described]:
    async def breaks(request: Request) -> Response:
        """Fails."""
        raise RuntimeError("this is not handled")

    async def surprises(request: Request) -> Response:
        """Has a status that nobody knows of."""
        return JSONResponse({"version": "1"}, 418)

    async def lies(request: Request) -> Response:
        """Says something else than it says that it says."""
        return JSONResponse({"version": 1})

    return [plain(f"/{each.__name__}", each, gives=Version) for each in (breaks, surprises, lies)]


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    text = make_text(folder)
    engine = FakeEngine(text)
    engine.replies["status"] |= {"pages": [[9, 4, 4]], "repaired_pages": 0}
    app = create_app(engine, text, Config(), MODEL, rooms=(*ROOMS, Room(planted)))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_what_is_wrong_is_found(fuzz: ModuleType, tmp_path: Path) -> None:
    with serving(tmp_path) as url, closing(fuzz.Fuzz(url, {}, seed=1, examples=1)) as trying:
        trying.operations = [one for one in trying.operations if one.path in ("/breaks", "/surprises", "/lies")]
        trying.run(0)
    found = sorted(trying.faults)
    assert [fault.split(":")[0] for fault in found] == [
        "GET /breaks",
        "GET /lies",
        "GET /surprises",
        "pages that have not come back",
    ]
    assert "status 500" in found[0] and "as it is described" in found[1] and "418" in found[2]
