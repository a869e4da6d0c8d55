"""The live view, on trees that the cache itself has made."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

from tests.server.page.conftest import PATIENCE, Site
from tests.sim.world import World

expect.set_options(timeout=PATIENCE)

PREFIX = [*range(10, 26)]


def busy() -> tuple[World, list[dict[str, Any]]]:
    """Two requests that run on one prefix, which the second found in the cache."""
    world = World(page_size=4, max_num_batched_tokens=64)
    world.add([*PREFIX, 30], 1)
    world.run()
    ids = [world.add([*PREFIX, *([tail] * 9)], 8) for tail in (37, 38)]
    world.step()
    world.step()
    lanes = world.scheduler.lanes(9)
    assert {lane.id for lane in lanes} == set(ids)
    return world, [lane._asdict() | {"age": 1.5} for lane in lanes]


def watch(page: Page) -> None:
    page.get_by_role("tab", name="Live").click()


def test_a_shared_prefix_is_seen_as_shared(page: Page, site: Site) -> None:
    world, lanes = busy()
    site.sees(world, lanes)
    watch(page)
    expect(page.get_by_text("2 requests run", exact=True)).to_be_visible()
    expect(page.locator("#tree-sum")).to_contain_text("4 shared by running requests")
    page.locator("canvas").focus()
    page.keyboard.press("Home")
    detail = page.locator(".detail")
    expect(detail).to_contain_text("tokens 0 to 16, 4 pages · found 2 times · 2 requests run on it")
    page.keyboard.press("ArrowRight")
    expect(detail).to_contain_text("nobody runs on it; 0 pages would be evicted before it")
    page.keyboard.press("ArrowDown")
    expect(detail).to_contain_text("found 0 times · 1 request runs on it")
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    expect(page.locator(".prefix").first).to_contain_text("32 tokens not computed: 16, found 2 times")


def test_a_lane_says_what_was_cached(page: Page, site: Site) -> None:
    world, lanes = busy()
    site.sees(world, lanes)
    watch(page)
    lane = page.locator(".lane").first
    expect(lane).to_contain_text("25 tokens (16 cached)")
    lane.hover()
    expect(page.locator(".detail")).to_have_text("This request: 25 prompt tokens, 16 of them found in the cache.")


def test_the_picture_is_drawn_in_the_colours_of_use(page: Page, site: Site) -> None:
    """A pixel in the middle of the shared prefix has the colour that the legend gives to it, and none has in an empty tree."""
    world, lanes = busy()
    site.sees(world, lanes)
    watch(page)
    expect(page.locator("#tree-sum")).to_contain_text("shared")
    drawn = """canvas => {
        const [x, y] = [canvas.width / 8, canvas.height / 2];
        return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3).join(", ");
    }"""
    legend = page.locator(".swatch.shared").evaluate("swatch => getComputedStyle(swatch).backgroundColor")
    assert f"rgb({page.locator('canvas').evaluate(drawn)})" == legend


def test_where_an_answer_comes_from_in_the_cache(page: Page, site: Site) -> None:
    """Its prompt is found in the tree by its tokens: lit up, with what was found and what was computed."""
    site.engine.cached = 8
    buttons = page.get_by_role("button", name="Where this is in the cache")
    for number, question in enumerate(("Where am I?", "And now?"), 1):
        page.get_by_label("Your message").fill(question)
        page.keyboard.press("Enter")
        expect(buttons).to_have_count(number)
    world = World(page_size=4, vocab_size=site.text.vocab_size, num_pages=200)
    first, last = (asked.tokens for asked in site.engine.asked[-2:])
    for prompt in (first, last):
        world.add(prompt, 4)
        world.run()
    site.sees(world)
    detail = page.locator(".detail")
    for button, prompt in ((buttons.last, last), (buttons.first, first)):
        page.get_by_role("tab", name="Chat").click()
        button.click()
        of = f"of {len(prompt)} prompt tokens the first 8 were found in the cache, the other {len(prompt) - 8} were computed"
        expect(detail).to_contain_text(of)
        expect(detail).to_contain_text(f"{len(prompt)} are cached now")
    page.get_by_role("button", name="Show all").click()
    expect(detail).to_contain_text("Point at a box")


def test_figures_follow_from_two_looks(page: Page, site: Site) -> None:
    counters = site.engine.replies["live"]["counters"]
    watch(page)
    hits = page.get_by_role("group", name="Cache hit rate")
    expect(hits.locator(".figure")).to_have_text("–")
    counters |= {"cached_tokens": 75, "prompt_tokens": 25, "output_tokens": 40}
    expect(hits.locator(".figure")).to_have_text("75 %")
    counters.clear()


def test_a_server_that_goes_away_is_said(page: Page, site: Site) -> None:
    watch(page)
    expect(page.get_by_text("Idle", exact=True)).to_be_visible()
    site.engine.dead = "killed by signal 9"
    try:
        expect(page.locator(".state")).to_contain_text("signal 9")
    finally:
        site.engine.dead = None
    expect(page.get_by_text("Idle", exact=True)).to_be_visible()
