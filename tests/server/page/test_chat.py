"""The chat of the page, in a real browser: what a user sees and does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from tests.server.page.conftest import KEY, PATIENCE, Pages, Site
from tests.waiting import eventually

expect.set_options(timeout=PATIENCE)

RICH = """# Steps

1. Take **two** eggs, *softly*
2. Boil them in `water`

```python
print("<b>three</b> minutes")
```

| egg | minutes |
| --- | --- |
| soft | 4 |

[a page](https://example.org/eggs) [no page](javascript:alert(1)) <img src=x onerror=alert(2)>"""
CALL = 'I look.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bergen"}}\n</tool_call>'


def ask(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_role("button", name="Send").click()


def answer(page: Page) -> Any:
    return page.get_by_role("article", name="Answer").last


def setting(page: Page, name: str, value: str) -> None:
    """Type a value into the settings, which are open."""
    field = page.locator(f"#setting-{name}")
    if not field.is_visible():
        field.locator("xpath=ancestor::details/summary").click()
    if field.evaluate("field => field.tagName") == "SELECT":
        field.select_option(value)
    else:
        field.fill(value)


def open_settings(page: Page) -> None:
    page.get_by_role("button", name="Settings", exact=True).click()


def test_an_answer_streams_is_rendered_and_survives_a_reload(page: Page, site: Site) -> None:
    site.says(RICH)
    site.engine.cached = 7
    ask(page, "How do I boil eggs?")
    expect(answer(page).locator("h3")).to_have_text("Steps")
    expect(answer(page).locator("ol > li")).to_have_count(2)
    expect(answer(page).locator("strong, em, li code")).to_have_text(["two", "softly", "water"])
    expect(answer(page).locator("pre code")).to_have_text('print("<b>three</b> minutes")')
    expect(answer(page).locator("td")).to_have_text(["soft", "4"])
    expect(answer(page).locator("a")).to_have_count(1)
    expect(answer(page).locator("img, script, b")).to_have_count(0)
    expect(answer(page)).to_contain_text("7 of")
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")
    page.reload()
    expect(answer(page).locator("h3")).to_have_text("Steps")
    expect(page.get_by_role("button", name="How do I boil eggs?", exact=True)).to_have_attribute("aria-current", "true")


def test_thoughts_are_folded(page: Page, site: Site) -> None:
    site.says("I weigh it.\n</think>\n\nThe dog did.")
    open_settings(page)
    setting(page, "thinking", "on")
    ask(page, "Who?")
    folded = answer(page).locator("details.thoughts")
    expect(answer(page).locator(".text")).to_have_text("The dog did.")
    expect(folded.locator("div")).not_to_be_visible()
    folded.locator("summary").click()
    expect(folded.locator("div")).to_have_text("I weigh it.")
    assert "<think>" in site.prompt()


def test_stop_ends_the_generation(page: Page, site: Site) -> None:
    site.says("the cat " * 500)
    site.engine.delay = 0.02
    before = site.engine.broken_off
    ask(page, "Say it often.")
    expect(answer(page)).to_contain_text("the cat the cat")
    page.get_by_role("button", name="Stop").click()
    expect(answer(page)).to_contain_text("stopped")
    eventually(lambda: site.engine.broken_off == before + 1 and site.engine.running == 0)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_edit_and_again(page: Page, site: Site) -> None:
    site.says("One.", "Two.", "Three.")
    ask(page, "first question")
    expect(answer(page)).to_contain_text("One.")
    page.get_by_role("button", name="Answer again").click()
    expect(answer(page)).to_contain_text("Two.")
    expect(page.get_by_role("article")).to_have_count(2)
    page.get_by_role("button", name="Edit and ask again").click()
    page.get_by_label("Edit the message").fill("second question")
    page.get_by_role("button", name="Ask again").click()
    expect(answer(page)).to_contain_text("Three.")
    expect(page.get_by_role("article")).to_have_count(2)
    assert "second question" in site.prompt() and "first" not in site.prompt()


def test_a_tool_by_hand(page: Page, site: Site) -> None:
    site.says(CALL, "It rains.")
    page.get_by_role("button", name="Try a tool").click()
    page.get_by_role("button", name="Send").click()
    expect(answer(page).locator(".call-head code")).to_have_text("get_weather")
    expect(answer(page).locator(".call pre").first).to_contain_text('"city": "Bergen"')
    page.get_by_label("What get_weather returns").fill('{"sky": "wet"}')
    page.get_by_role("button", name="Send the result").click()
    expect(answer(page).locator(".text")).to_have_text("It rains.")
    assert '{"sky": "wet"}' in site.prompt() and "<tools>" in site.prompt()


def test_a_schema_and_parameters_reach_the_engine(page: Page, site: Site) -> None:
    site.says('{"title": "cello", "steps": []}')
    page.get_by_role("button", name="Answer as JSON").click()
    open_settings(page)
    for name, value in (("temperature", "0.25"), ("top_k", "7"), ("seed", "11"), ("max_tokens", "99")):
        setting(page, name, value)
    setting(page, "system", "You play.")
    setting(page, "stop", "END\nSTOP")
    page.get_by_role("button", name="Send").click()
    expect(answer(page).locator(".text")).to_contain_text("cello")
    params = site.engine.asked[-1].params
    assert params.grammar is not None and "steps" in params.grammar.text
    assert (params.temperature, params.top_k, params.seed, params.max_tokens) == (0.25, 7, 11, 99)
    assert params.stop == ("END", "STOP") and "You play." in site.prompt()
    expect(page.locator(".given")).to_have_text(
        "instructions · temperature 0.25 · top k 7 · seed 11 · most tokens 99 · stop texts · schema"
    )


def test_what_is_wrong_is_said(page: Page, site: Site) -> None:
    open_settings(page)
    setting(page, "top_p", "7")
    ask(page, "Well?")
    expect(answer(page).get_by_role("alert")).to_contain_text("top_p must be in [0.0, 1.0], got 7")
    setting(page, "top_p", "")
    setting(page, "schema", "{nothing")
    page.get_by_role("button", name="Answer again").click()
    expect(answer(page).get_by_role("alert")).to_contain_text("Schema: not JSON")
    assert site.engine.running == 0


def test_tokens_and_what_might_have_stood_there(page: Page, site: Site) -> None:
    site.says("the cat sat")
    ask(page, "Tokens?")
    page.get_by_role("button", name="Tokens and their probabilities").click()
    tokens = page.get_by_role("listbox", name="Tokens of the answer").get_by_role("option")
    detail = page.locator(".token-detail")
    expect(tokens.first).to_be_visible()
    tokens.first.hover()
    expect(detail).to_contain_text("token 1 of")
    expect(detail.locator("li")).to_have_count(6)  # the one that was taken, and five others
    expect(detail.locator("li.taken")).to_have_count(1)
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    expect(detail).to_contain_text("token 2 of")
    expect(tokens.nth(1)).to_be_focused()
    page.keyboard.press("End")
    expect(tokens.last).to_be_focused()


def test_conversations_are_kept_exported_deleted_and_imported(page: Page, site: Site, tmp_path: Path) -> None:
    ask(page, "first")
    expect(answer(page)).to_contain_text("The cat sat")
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("article")).to_have_count(0)
    ask(page, "second")
    expect(answer(page)).to_contain_text("The cat sat")
    rows = page.locator(".conversation")
    expect(rows).to_have_text(["second", "first"])
    with page.expect_download() as loading:
        page.get_by_role("button", name="Export all conversations").click()
    file = tmp_path / "kept.json"
    loading.value.save_as(file)
    assert [one["title"] for one in json.loads(file.read_text())["conversations"]] == ["second", "first"]
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Delete second").click()
    expect(rows).to_have_text(["first"])
    expect(page.locator(".bubble")).to_have_text("first")
    page.reload()
    expect(rows).to_have_text(["first"])
    page.get_by_label("A file of conversations").set_input_files(file)
    expect(rows).to_have_count(3)
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    page.get_by_label("A file of conversations").set_input_files(broken)
    expect(page.get_by_role("alert")).to_have_text("The file is not JSON.")


def test_with_the_keyboard_alone(page: Page, site: Site) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("/")
    expect(page.get_by_label("Your message")).to_be_focused()
    page.keyboard.type("one line")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("another")
    page.keyboard.press("Enter")
    expect(page.locator(".bubble")).to_have_text("one line\nanother")
    expect(answer(page)).to_contain_text("The cat sat")
    page.keyboard.press("Shift+Tab")
    expect(page.get_by_role("button", name="Where this is in the cache")).to_be_focused()
    page.get_by_role("tab", name="Chat").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Live")).to_be_focused()
    expect(page.get_by_role("tabpanel", name="Live")).to_be_visible()


def test_on_a_phone(pages: Pages, site: Site) -> None:
    page = pages.open(site.url, viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    site.says("A long line:\n\n```\n" + "x = " + "y + " * 60 + "1\n```\n\n" + "w" * 200)
    ask(page, "z" * 120)
    expect(answer(page)).to_contain_text("www")
    sideways = "() => document.documentElement.scrollWidth > innerWidth || document.body.scrollWidth > innerWidth"
    assert not page.evaluate(sideways)
    side = page.get_by_role("navigation", name="Conversations")
    expect(side).not_to_be_visible()
    page.get_by_role("button", name="Conversations", exact=True).click()
    expect(side.get_by_role("button", name="New conversation")).to_be_focused()
    page.keyboard.press("Escape")
    expect(side).not_to_be_visible()
    open_settings(page)
    expect(page.get_by_label("Temperature")).to_be_visible()
    page.get_by_role("button", name="Close the settings").click()
    expect(page.get_by_label("Temperature")).not_to_be_visible()
    page.get_by_role("tab", name="Live").click()
    expect(page.get_by_role("group", name="Pages in use")).to_be_visible()
    assert not page.evaluate(sideways)


def test_a_server_that_asks_for_a_key(pages: Pages, locked_site: Site) -> None:
    page = pages.open(locked_site.url)
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key").fill("a wrong one")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog.get_by_role("alert")).to_have_text("The server does not know this key.")
    dialog.get_by_label("Key").fill(KEY)
    page.keyboard.press("Enter")
    expect(dialog).not_to_be_visible()
    expect(page.locator("#model")).to_have_text("tiny")
    ask(page, "Who?")
    expect(answer(page)).to_contain_text("The cat sat")


def test_light_and_dark(pages: Pages, site: Site) -> None:
    page = pages.open(site.url, color_scheme="dark")
    paper = "() => getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Light or dark").click()
    light = page.evaluate(paper)
    assert dark != light
    page.reload()
    assert page.evaluate(paper) == light
