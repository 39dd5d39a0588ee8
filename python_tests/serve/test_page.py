"""The chat page in a real browser, on an engine that answers what the test tells it."""

import os

import pytest

from crs_fast.serve import Engine
from crs_fast.serve.app import create_app
from crs_fast.serve.http.guard import Access
from crs_fast.serve.requests import Busy, Done, Ranked, Text, TurnAnswer

from .doubles import (
    EVENTS,
    TIMINGS,
    USAGE,
    ScriptedEngine,
    running,
    scripted_store,
    wait_until,
)

pytestmark = pytest.mark.browser
SCHEMES = ("light", "dark")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CRS_FAST_CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def server():
    engine = ScriptedEngine()
    with running(create_app(engine, store=scripted_store(), name="films")) as url:
        yield engine, url


@pytest.fixture
def engine(server):
    engine, _ = server
    engine.events, engine.error = EVENTS, None
    engine.tickets.clear()
    return engine


@pytest.fixture
def page(browser, server, engine):
    """The page, just opened. Everything that the browser complains of fails the test, and so does
    a request to another server."""
    url, complaints = server[1], []
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: r.url.startswith((url, "data:")) or complaints.append(r.url))
    page.goto(url)
    page.locator("#suggestions button").first.wait_for()
    page.complaints = complaints
    yield page
    context.close()
    assert not complaints


def ask(page, text="I liked Film 3, any more?"):
    """Type a message with the keyboard, wherever the focus is, and wait for the reply."""
    page.keyboard.type(text)
    page.keyboard.press("Enter")
    page.locator(".assistant:last-child.done").wait_for()


def texts(page, selector):
    return [text.strip() for text in page.locator(selector).all_inner_texts()]


def test_a_turn_appears_as_it_is_made(page, engine):
    engine.events = EVENTS[:2]
    page.keyboard.type("I liked Film 3")
    page.keyboard.press("Enter")
    page.locator(".assistant p", has_text="See Film 1").wait_for()
    assert texts(page, ".item .title") == ["Film 1 (1991)", "Film 2 (1992)"]
    assert page.locator(".assistant").get_attribute("class") == "message assistant writing"
    assert texts(page, "#send") == ["Stop"]
    assert not page.locator("#latency").is_visible()
    for event in EVENTS[2:]:
        engine.tickets[-1].put(event)
    page.locator(".assistant.done").wait_for()
    assert texts(page, ".user p") == ["I liked Film 3"]
    assert texts(page, ".assistant p") == ["See Film 1 (1991)."]
    assert texts(page, ".assistant strong") == ["Film 1 (1991)"]
    assert texts(page, ".assistant .tag") == ["recommends"]
    assert texts(page, "#intent-text") == ["Recommends (probability 75\xa0%)."]
    assert page.locator("#meter").get_attribute("aria-valuenow") == "75"
    assert "score −2.50" in texts(page, ".item .why")[1]
    assert "in the reply" in texts(page, ".item .why")[0]
    assert "Film 3 (1993)" in texts(page, "#removed-items")[0]
    figures = texts(page, "#figures")[0]
    assert "items 30 ms" in figures
    assert texts(page, "#total") == ["91 ms"]
    assert "12 tokens of context (5 from the cache), 3 written" in figures
    assert texts(page, "#status") == ["Reply: See Film 1 (1991)."]
    assert texts(page, "#send") == ["Send"]


def test_a_turn_of_a_model(browser, recommender):
    """The page on a real engine shows what `respond` answers."""
    expected = recommender.respond(
        [{"role": "user", "content": "I like Film 3, any more?"}], "rec", 5, repeat_named=False
    )
    with running(create_app(Engine(recommender), name="films")) as url:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.goto(url)
        page.get_by_text("Options").click()
        page.get_by_label("Intent").select_option("rec")
        page.get_by_label("Items", exact=True).fill("5")
        page.keyboard.press("Escape")
        page.locator("#message").focus()
        ask(page, "I like Film 3, any more?")
        assert texts(page, ".item .title") == [title for _, title, _ in expected.items]
        assert texts(page, ".assistant p")[0].split() == expected.text.split()
        assert "Film 3" in texts(page, "#removed-items")[0]
        page.close()


def test_the_next_turn_holds_the_conversation(page, engine):
    ask(page, "first")
    ask(page, "second")
    first, second = (ticket.request for ticket in engine.tickets)
    spoken = [(message["role"], message["content"]) for message in second.messages]
    assert spoken == [("user", "first"), ("assistant", "See Film 1 (1991)."), ("user", "second")]
    assert second.messages[1]["shown"] == ["i1", "i2"]
    assert first.conversation == second.conversation
    page.get_by_role("button", name="New conversation").click()
    assert texts(page, ".message") == []
    ask(page, "third")
    assert engine.request.conversation != first.conversation
    assert len(engine.request.messages) == 1


def test_an_item_is_excluded_with_the_keyboard_and_allowed_again(page, engine):
    ask(page)
    page.get_by_role("button", name="Exclude Film 1").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Allow")
    assert texts(page, ".item.out .title") == ["Film 1 (1991)"]
    assert "excluded from the next answers" in texts(page, "#status")[0]
    page.get_by_role("button", name="Answer again without them").press("Enter")
    page.locator(".assistant:last-child.done").wait_for()
    wait_until(lambda: len(engine.tickets) == 2)
    assert list(engine.request.exclude) == ["i1"]
    assert len(engine.request.messages) == 1
    assert len(texts(page, ".assistant")) == 1
    page.locator("#removed-items").get_by_role("button", name="Allow Film 1").press("Enter")
    page.locator("#message").focus()
    ask(page)
    assert list(engine.request.exclude) == []


def test_options_of_a_turn(page, engine):
    page.get_by_text("Options").click()
    page.get_by_label("Intent").select_option("rec")
    page.get_by_label("Items", exact=True).fill("7")
    page.get_by_label("Only").select_option("comedy")
    page.get_by_label("repeat items").check()
    page.keyboard.press("Escape")
    assert not page.get_by_label("Intent").is_visible()
    page.locator("#message").focus()
    ask(page)
    request = engine.request
    assert (request.mode, request.num_items, request.repeat_named) == ("rec", 7, True)
    assert list(request.groups) == ["comedy"]
    assert texts(page, ".item .tag") == ["new", "copied"]
    assert "as the options say" in texts(page, "#intent-text")[0]


def test_a_suggestion_starts_the_conversation(page, engine):
    page.get_by_role("button", name="I loved Film 1").press("Enter")
    page.locator(".assistant.done").wait_for()
    assert engine.request.messages[0]["content"] == "I loved Film 1. What else could I like?"
    assert page.evaluate("document.activeElement.id") == "message"
    assert not page.locator("#empty").is_visible()


def test_escape_stops_a_reply(page, engine):
    engine.events = EVENTS[:2]
    page.keyboard.type("go on")
    page.keyboard.press("Enter")
    page.locator(".assistant p", has_text="See Film 1").wait_for()
    page.keyboard.press("Escape")
    page.locator(".assistant.done").wait_for()
    wait_until(lambda: engine.tickets[0].is_cancelled)
    engine.events = EVENTS
    ask(page, "and now?")
    contents = [message["content"] for message in engine.request.messages]
    assert contents == ["go on", "See Film 1", "and now?"]


def test_markup_is_shown_as_text(page, engine):
    evil = "<img src=x onerror=alert(1)><b>Film</b>"
    items = [("e1", evil, -1.0)]
    reply = f"See {evil}"
    answer = TurnAnswer("rec", items, reply, 0.9, ["e1"], 0, [], ["e1"], "v", TIMINGS, USAGE)
    engine.events = [Ranked("rec", items, 0.9, [], ["e1"], "v"), Text(reply), Done(answer)]
    engine.recommender.titles["e1"] = evil
    ask(page, evil)
    assert texts(page, ".user p, .assistant p") == [evil, f"See {evil}"]
    assert texts(page, ".item .title") == [evil]
    assert page.locator("#log img, #turn img").count() == 0


def test_an_error_is_said(page, engine):
    engine.error = Busy("the queue is full")
    ask(page)
    assert texts(page, ".assistant.failed p") == ["No answer: the queue is full"]
    assert texts(page, "#status") == ["No answer: the queue is full"]
    engine.error = None
    ask(page)
    assert texts(page, ".assistant:last-child p") == ["See Film 1 (1991)."]
    assert ["503" in text for text in page.complaints] == [True]  # the browser's own note
    page.complaints.clear()


def test_a_token_is_asked_for_once(browser):
    engine = ScriptedEngine()
    with running(
        create_app(engine, store=scripted_store(), name="films", access=Access("s3cret"))
    ) as url:
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.goto(url)
        page.get_by_role("textbox", name="Token").fill("wrong")
        page.keyboard.press("Enter")
        page.get_by_role("textbox", name="Token").fill("s3cret")
        page.keyboard.press("Enter")
        page.locator("#suggestions button").first.wait_for()
        assert texts(page, "#model") == ["films"]
        page.locator("#message").focus()
        ask(page)
        assert texts(page, ".assistant p") == ["See Film 1 (1991)."]
        page.close()


def test_nothing_needs_a_wide_screen(page, engine):
    page.set_viewport_size({"width": 320, "height": 640})
    ask(page, "a" * 300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.locator("#message").is_visible()
    assert page.locator("#turn").is_visible()


# The contrast (WCAG 2) of every element that shows text of its own, with its nearest background.
CONTRASTS = """() => {
  const channels = (colour) => {
    const [r, g, b, a = 1] = colour.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255)
      .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const { rgb, a } = channels(getComputedStyle(e).backgroundColor);
      if (a === 1) return rgb;
    }
    return [255, 255, 255];
  };
  const shows = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && shows(e) && !e.closest(".hidden, .skip"))
    .map((e) => {
      const pair = [light(channels(getComputedStyle(e).color).rgb), light(background(e))];
      return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), e.outerHTML.slice(0, 80)];
    });
}"""


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_can_be_read(page, scheme):
    page.emulate_media(color_scheme=scheme)
    ask(page)
    page.get_by_role("button", name="Exclude Film 1").click()
    page.get_by_text("Options").click()
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 20
    assert [pair for pair in contrasts if pair[0] < 4.5] == []


def test_every_control_has_a_name(page):
    ask(page)
    page.get_by_text("Options").click()
    snapshot = page.locator("body").aria_snapshot()
    for line in snapshot.splitlines():
        role = line.strip().removeprefix("- ").split(" ")[0].rstrip(":")
        if role in ("button", "textbox", "combobox", "spinbutton", "checkbox", "meter"):
            assert '"' in line, line
    assert 'list "Recommended items, best first"' in snapshot
