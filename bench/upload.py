"""From a picture's upload to its hits on the page Try an image, 3 networks x 10 masks, in Chromium.

ResNet-9 of a quarter of its width on pictures of 32 x 32; what a query takes depends on network and
members, not on how many pictures they were trained on or how well, so that is few and one epoch.
The first upload after the app's start also reads networks and directions from the disk. The
pictures are CIFAR-10's with --cifar10, else noise.
"""

import json
import os
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .click import SCRIPT, browser_path
from .images import pictures
from .rows import Options, Row, row
from .running import VIEW, app, command

TRAIN, TEST = 200, 50
ENSEMBLE = (
    "--model", "resnet9", "--width", ".25", "--models", "3", "--masks", "10", "--epochs", "1",
)  # fmt: skip


def measure(options: Options) -> list[Row]:
    path = browser_path()
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        place, cache = Path(folder) / "pictures", options.cache or Path(folder) / "cache"
        pictures(options.cifar10, place, TRAIN, TEST)
        words = ("--data", str(place), *ENSEMBLE)
        made = json.loads(command(cache, options.threads, "build", *words))
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        with app(cache, Path(folder)) as address:
            rows = upload_rows(chromium, address, made["build"], options.times(5))
        chromium.close()
    return [*rows, row("load average of the machine at the end", os.getloadavg()[0], "")]


def upload_rows(chromium: Any, address: str, build_id: str, times: int) -> list[Row]:
    """Seconds from the choice of a file to its proponents and their pictures, each in a session."""
    found = []
    for turn in range(1 + times):
        page = chromium.new_page(**VIEW)
        page.add_init_script(SCRIPT)
        page.goto(f"{address}/try_image?build={build_id}")
        page.wait_for_selector("input[type=file]", state="attached", timeout=120_000)
        page.wait_for_timeout(1000)  # a person looks for the file
        began = page.evaluate("Date.now()")
        page.set_input_files("input[type=file]", [brought(turn)])
        page.wait_for_function("hitsThere()", timeout=120_000)
        found.append((page.evaluate("Date.now()") - began) / 1000)
        page.close()
    what = "upload to hits, 3 x 10 members"
    return [
        row(f"{what}, the first after the app's start", found[0], "s", at_most=5),
        row(what, found[1:], "s", at_most=5),
    ]


def brought(turn: int) -> Any:
    """Another picture each time, 320 x 240, as a JPEG."""
    pixels = np.random.default_rng(turn).integers(0, 256, (6, 8, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).resize((320, 240), Image.Resampling.BICUBIC).save(file, "JPEG")
    return {"name": f"{turn}.jpg", "mimeType": "image/jpeg", "buffer": file.getvalue()}
