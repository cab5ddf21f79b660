"""The deck is put in place anew, as Streamlit does when a run was cut short: no act is lost.

Streamlit's side is played by the test: it calls the real module's export in a real Chromium.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import ROOT, chromium_path
from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.skipif(
    chromium_path() is None and "CI" not in os.environ,
    reason="no Chromium here: the deck was not tried in a browser",
)

PARTS = ROOT / "pages" / "parts"
HOME = "http://localhost/review"
STREAMLIT = """async (script) => {
  window.mount = async (data) => {
    const host = document.createElement("div");
    host.innerHTML = '<div class="pc"></div>';
    document.body.append(host);
    // A module of its own each time.
    const address = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
    const element = (await import(address)).default;
    const setStateValue = (name, value) => (window.sent = structuredClone(value));
    window.again = (more) =>
      element({ data: { ...data, ...more }, parentElement: host, setStateValue });
    window.gone = () => host.remove();
    window.again({});
    await new Promise((done) => setTimeout(done, 20));
  };
}"""


def item(position: int) -> dict[str, Any]:
    return {
        "id": position, "src": "data:,", "alt": f"image {position}", "name": str(position),
        "given": 0, "suggested": 1, "probabilities": ["10 %", "90 %"], "suspicion": "90 %",
        "why": [], "spot": False,
    }  # fmt: skip


def data(
    ack: int = 0, items: range = range(6), epoch: str = "one", build: str = "b"
) -> dict[str, Any]:
    return {
        "key": "deck", "queue": f"deck {build}", "epoch": epoch, "ack": ack,
        "items": [item(i) for i in items], "verdicts": {}, "classes": ["a", "b"],
        "keys": ["0", "1"], "focus": None,
        "pending": "open", "settle": False, "less": False, "more": True, "place": "1",
        "chosen": "", "share": 0, "progress": "", "tally": "", "evidence": "/none/",
        "reach": "/none/", "reviewer": "ann", "empty": "nothing",
    }  # fmt: skip


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    opened.route(
        "**/*", lambda route: route.fulfill(body="<body></body>", content_type="text/html")
    )
    opened.goto(HOME)
    script = "\n".join((PARTS / f"{name}.js").read_text("utf-8") for name in ("common", "deck"))
    opened.evaluate(STREAMLIT, script)
    yield opened
    opened.close()


def mount(page: Page, **given: Any) -> None:
    page.evaluate("(data) => window.mount(data)", data(**given))


def sent(page: Page) -> list[tuple[int, str, list[int]]]:
    """Number, verdict or type, and images of each act that the server was told of last."""
    found = page.evaluate("window.sent")["actions"]
    return [
        (one["seq"], one["each"][0]["verdict"], [each["id"] for each in one["each"]])
        if one["type"] == "decide"
        else (one["seq"], one["type"], [])
        for one in found
    ]


def test_what_is_on_its_way_and_keys_that_come_meanwhile_reach_the_server(page: Page) -> None:
    page.evaluate("performance.now = () => 0")  # no key was too long ago, however slow we are
    mount(page)
    page.keyboard.press("x")
    page.keyboard.press("ArrowRight")  # to the third image
    page.evaluate("window.gone()")
    page.keyboard.press("k")
    page.keyboard.press("x")
    mount(page)  # drawn before the server had the first act
    assert sent(page) == [(1, "drop", [0]), (2, "keep", [2]), (3, "drop", [3])]
    page.keyboard.press("x")
    assert sent(page)[3:] == [(4, "drop", [4])]


def test_each_key_acts_once_however_often_the_deck_is_put_in_place(page: Page) -> None:
    mount(page)
    for _ in range(3):
        page.evaluate("window.gone()")
        mount(page)
    page.keyboard.press("x")
    assert sent(page) == [(1, "drop", [0])]


def test_a_redraw_sends_nothing_again(page: Page) -> None:
    mount(page)
    page.keyboard.press("x")
    page.evaluate("window.sent = null")
    page.evaluate("(data) => window.again(data)", data())
    assert page.evaluate("window.sent") is None


def test_what_the_server_has_is_not_sent_again(page: Page) -> None:
    mount(page)
    page.keyboard.press("x")
    page.evaluate("window.gone()")
    page.evaluate("window.sent = null")
    mount(page, ack=1)
    assert page.evaluate("window.sent") is None
    page.keyboard.press("x")
    assert sent(page) == [(2, "drop", [1])]


def test_what_a_server_that_is_gone_did_not_have_goes_to_the_next(page: Page) -> None:
    mount(page)
    page.keyboard.press("x")
    page.evaluate("window.gone()")
    mount(page, epoch="two", ack=0)
    assert page.evaluate("window.sent")["epoch"] == "two"
    assert sent(page) == [(1, "drop", [0])]


def test_keys_hit_no_image_until_the_next_page_is_here(page: Page) -> None:
    mount(page, items=range(2))
    page.keyboard.press("x")
    page.keyboard.press("x")  # the last one: the next page is asked for
    page.evaluate("window.gone()")
    mount(page, items=range(2), ack=1)
    page.keyboard.press("x")
    assert sent(page) == [(2, "drop", [1]), (3, "more", [])]
    page.evaluate("(data) => window.again(data)", data(items=range(2, 4), ack=3))
    page.keyboard.press("x")
    assert sent(page) == [(4, "drop", [2])]


def test_back_and_forth_at_once_is_the_page_that_was_there(page: Page) -> None:
    mount(page, items=range(2))
    page.keyboard.press("x")
    page.keyboard.press("x")  # the last one: the next page is asked for
    page.evaluate("(data) => window.again(data)", data(items=range(2), ack=3))
    page.keyboard.press("k")
    assert sent(page) == [(4, "keep", [0])]


def test_acts_and_keys_are_of_the_build_they_were_meant_for(page: Page) -> None:
    mount(page)
    page.keyboard.press("x")
    page.evaluate("(data) => window.again(data)", data(items=range(3, 6), build="c"))
    page.keyboard.press("k")
    assert page.evaluate("window.sent.name") == "deck c"
    assert sent(page) == [(1, "keep", [3])]
    page.evaluate("window.gone()")
    page.keyboard.press("x")
    mount(page)  # the first build again, which has not heard of its act yet
    assert page.evaluate("window.sent.name") == "deck b"
    assert sent(page) == [(1, "drop", [0])]
    page.keyboard.press("k")
    assert sent(page) == [(1, "drop", [0]), (2, "keep", [1])]
    page.evaluate("window.gone()")
    mount(page, items=range(3, 6), build="c")
    assert (page.evaluate("window.sent.name"), sent(page)) == ("deck c", [(1, "keep", [3])])


def test_keys_of_another_page_are_not_kept_for_the_deck(page: Page) -> None:
    mount(page)
    page.evaluate("window.sent = null")
    page.evaluate("window.gone()")
    page.evaluate("history.pushState({}, '', '/explain')")
    page.keyboard.press("x")
    page.evaluate("history.pushState({}, '', '/review')")
    mount(page)
    assert page.evaluate("window.sent") is None
