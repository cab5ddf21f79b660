"""Screenshots of every page into docs/screenshots: light and dark, two widths, empty and full.

    python tests/screenshots.py [--cache DIR] [--only PAGE]

Full is what the newest build of the cache shows; decisions made on the way are thrown away.
"""

import argparse
import tempfile
from io import BytesIO
from pathlib import Path

from chromium import ROOT, app_server, chromium
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Page

FOLDER = ROOT / "docs" / "screenshots"
COMPARE = "compare?view="
PAGES = {
    "overview": "",
    "explain": "explain",
    "patterns": "groups",
    "map": "map",
    "try-image": "try_image?invert=true",
    "review": "review",
    "before-after": "changes",
    "compare": "compare",
    "compare-side-by-side": f"{COMPARE}side+by+side",
    "compare-agreement": f"{COMPARE}agreement",
    "compare-advice": f"{COMPARE}advice",
    "builds": "builds",
}  # name of the picture, and address
KEYS = ("Enter", "Enter", "k", "Enter", "x", "Enter", "Enter")
SIZES = ((1280, 800), (1920, 1080))


def settle(page: Page) -> None:
    """Wait until Streamlit is done and every image in view is drawn."""
    page.wait_for_selector("h1")
    page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(700)


def decide(page: Page) -> None:
    """Some decisions, so that the review shows what they look like."""
    for key in KEYS:
        page.keyboard.press(key)
    settle(page)


def bring(page: Page) -> None:
    """A seven, drawn in black on white."""
    drawn = Image.new("L", (400, 400), "white")
    ImageDraw.Draw(drawn).line([(120, 90), (280, 90), (180, 330)], fill="black", width=34)
    file = BytesIO()
    drawn.save(file, "PNG")
    picture = {"name": "seven.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.set_input_files("input[type=file]", [picture])
    page.get_by_text("Your picture").wait_for()
    settle(page)


def shoot(browser: Browser, url: str, name: str, kind: str) -> None:
    for scheme in ("light", "dark"):
        for width, height in SIZES:
            context = browser.new_context(
                viewport={"width": width, "height": height}, color_scheme=scheme
            )
            page = context.new_page()
            page.goto(f"{url}/{PAGES[name]}")
            settle(page)
            if name == "review" and kind == "full":
                decide(page)
            if name == "try-image" and kind == "full":
                bring(page)
            path = FOLDER / f"{name}-{kind}-{scheme}-{width}.png"
            page.screenshot(path=path)
            # Few colours: a palette loses nothing to be seen and is a third of the size.
            Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
                path, optimize=True
            )
            print(path.relative_to(ROOT))
            if name == "review" and kind == "full":
                for _ in KEYS:
                    page.keyboard.press("u")
                settle(page)
            context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / "cache")
    parser.add_argument("--only", choices=PAGES)
    given = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    names = (given.only,) if given.only else tuple(PAGES)
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        places = {"full": given.cache.absolute(), "empty": Path(folder) / "cache"}
        for kind, cache in places.items():
            # In the empty cache's folder, so that the command shown names no other.
            start = ROOT if kind == "full" else Path(folder)
            with app_server(cache, Path(folder) / kind, start) as url:
                for name in names:
                    shoot(browser, url, name, kind)


if __name__ == "__main__":
    main()
