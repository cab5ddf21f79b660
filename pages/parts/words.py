"""Numbers as people read them, and names as they are."""

import math
import re

MARKS = re.compile(r"([!-/:-@\[-`{-~])")  # ASCII punctuation, all that Markdown has


UNLABELLED = (
    "The test images have no labels: each is explained for what it is called, and which are called "
    "right is not known."
)


def blink(seconds: float) -> str:
    """A short duration in milliseconds: 4.1 ms, 109 ms."""
    count = 1000 * seconds
    return f"{count:.0f} ms" if abs(count) >= 10 else f"{count:.2g} ms"


def sure(margin: float) -> str:
    """How sure a network with this margin is: 62 %, 99.97 %, < 0.01 %."""
    share = 1 / (1 + math.exp(-min(max(margin, -700.0), 700.0)))
    tail = min(share, 1 - share)
    if tail < 1e-4:
        return "> 99.99 %" if share > 0.5 else "< 0.01 %"
    return f"{100 * share:.{max(0, int(-math.log10(tail)) - 1)}f} %"


def readable(largest: float) -> tuple[float, str]:
    """A factor that makes scores up to `largest` easy to read, and how to say it."""
    power = 0
    while 0 < largest * 1000**power < 1 and power < 4:
        power += 1
    return 1000.0**power, f"Scores are shown times {1000**power:,}. " if power else ""


def percent(probability: float) -> str:
    """A probability that is never quite sure: <1%, 42%, >99%."""
    if 0.01 <= probability <= 0.99:
        return f"{probability:.0%}"
    return "<1%" if probability < 0.5 else ">99%"


def literal(name: str) -> str:
    """A name from a person's files, for a text that is read as Markdown."""
    return MARKS.sub(r"\\\1", " ".join(name.split()))


def code(name: str) -> str:
    """An address as it is, in a text that is read as Markdown, which would make a link of it."""
    return "`" + name.replace("`", "'") + "`"
