"""One server on the fake engine and one browser, for all tests of the page."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sapwood.cache import Sketch
from sapwood.config import Config
from sapwood.config.flags import from_options
from sapwood.server import create_app, serve
from sapwood.text import TextModel
from tests.server.fakes import MODEL, FakeEngine, make_text
from tests.server.test_tools import THINKING
from tests.sim.world import World
from tests.waiting import SECONDS

playwright = pytest.importorskip("playwright.sync_api", reason="the page is tested in a browser, by playwright")

CHROMIUM = shutil.which("chromium")
PATIENCE = 60_000  # milliseconds: a bound that says that something hangs
KEY = "a key of the tests"


class Site:
    """A server of the page, and the engine behind it."""

    def __init__(self, text: TextModel, config: Config) -> None:
        self.text, self.engine = text, FakeEngine(text, max_model_len=2048)
        self._app = create_app(self.engine, text, config, MODEL)
        self._config = config
        self.url = ""

    def says(self, answer: str, *more: str) -> None:
        """What the engine says to the next request, and to those after it."""
        answers = [answer, *more]

        def next_answer(tokens: list[int], params: Any) -> list[int]:
            said = answers.pop(0) if len(answers) > 1 else answers[0]
            return [*self.text.encode(said), self.text.eos_ids[0]]

        self.engine.answer = next_answer

    def prompt(self) -> str:
        """The last prompt."""
        return self.text.decode(self.engine.asked[-1].tokens, skip_special=False)

    def reset(self) -> None:
        self.engine.delay, self.engine.cached = 0.0, 0
        self.says("The cat sat on the mat.")
        self.sees(World())

    def sees(self, world: World, lanes: list[dict[str, Any]] | None = None) -> None:
        """Have the live view show the tree of `world`, and these requests."""
        sketch = Sketch(world.kv.tree, world.slots.running)
        while not (reply := sketch.go_on())["done"]:
            pass
        self.engine.replies["tree"] = reply
        self.engine.replies["live"] |= {"lanes": lanes or [], "running": len(lanes or []), "pages": world.kv.pages()}

    @contextmanager
    def open(self, loop: asyncio.AbstractEventLoop) -> Iterator[Site]:
        ready: Future[str] = Future()
        serving = asyncio.run_coroutine_threadsafe(serve(self._app, self._config, on_ready=ready.set_result), loop)
        self.url = ready.result(SECONDS)
        yield self
        serving.cancel()
        asyncio.run_coroutine_threadsafe(self._app.state.front.close(), loop).result(SECONDS)


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    asyncio.run_coroutine_threadsafe(_rest(), loop).result(SECONDS)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _rest() -> None:
    """Until nothing else goes on in this loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(scope="session")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    return make_text(tmp_path_factory.mktemp("thinker"), THINKING)


@pytest.fixture(scope="session")
def whole_site(loop: asyncio.AbstractEventLoop, thinker: TextModel) -> Iterator[Site]:
    with Site(thinker, from_options({"port": 0})).open(loop) as site:
        yield site


@pytest.fixture(scope="session")
def locked_site(loop: asyncio.AbstractEventLoop, thinker: TextModel) -> Iterator[Site]:
    with Site(thinker, from_options({"port": 0, "api_key": KEY})).open(loop) as site:
        site.reset()
        yield site


@pytest.fixture
def site(whole_site: Site) -> Site:
    whole_site.reset()
    return whole_site


@pytest.fixture(scope="module")
def browser(loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """Playwright runs a loop in this thread, which no other test must meet; `loop` sees the browser's connections end."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Pages:
    """Opens pages, each in a browser that nobody has used before, and remembers what they complained about."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser
        self._contexts: list[Any] = []
        self.complaints: list[str] = []

    def open(self, url: str, **options: Any) -> Any:
        context = self._browser.new_context(**{"reduced_motion": "reduce", **options})
        context.set_default_timeout(PATIENCE)
        self._contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", self._heard)
        page.goto(url)
        return page

    def _heard(self, message: Any) -> None:
        # What the server refuses is told to the user; the browser writes it down too.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.complaints.append(message.text)

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def pages(browser: Any) -> Iterator[Pages]:
    pages = Pages(browser)
    yield pages
    pages.close()
    assert not pages.complaints


@pytest.fixture
def page(pages: Pages, site: Site) -> Any:
    return pages.open(site.url)


@pytest.fixture
def folder() -> Path:
    from sapwood.server import page

    return Path(page.__file__).parent
