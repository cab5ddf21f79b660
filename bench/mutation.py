"""Valid files made invalid, as damage and malice make them, for `fuzz`."""

import gzip
import hashlib
import json
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from io import BytesIO
from lzma import LZMAError
from random import Random
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from hypothesis import strategies as st

EDGES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    2**40,
    2**63 - 1,
    2**64 - 1,
)
NAMES = (
    "", ".", "..", "../x", "/etc/passwd", "C:\\x", "a/../../x", "=cmd()", "<b>x</b>",
    "<script>alert(1)</script>", "two\nlines", "\r", "\0", "a\0b", "'\";--", "%s%n{0}", "é",
    "e\u0301", "猫", "\u202egnp.x", "\u2028", "\ufffe", "x" * 300, "CON", "nan", "-1", "1e999",
    "9" * 5000, "None", "__proto__", "train", "test", "*", "~", "`", "[a](javascript:x)", "]]>",
)  # fmt: skip
LONE = ("\ud800", "\udcff", "a\udfffb")  # halves of characters, which JSON can write
WORDS = tuple(name.encode() for name in NAMES)
Change = Callable[[bytes, Random], bytes]


def mutations(valid: Sequence[bytes], *mended: Change) -> st.SearchStrategy[bytes]:
    """Files of `valid` with one to four changes; those in `mended` keep a format's sums right."""

    def one(first: bytes, seed: int) -> bytes:
        draw = Random(seed)
        content = first
        for _ in range(draw.choice((1, 1, 2, 4))):
            if mended and draw.random() < 0.5:
                content = draw.choice(mended)(content, draw)
            else:
                content = changed(content, draw, draw.choice(valid))
        return content

    return st.builds(one, st.sampled_from(valid), st.integers(0, 2**64 - 1))


def changed(content: bytes, draw: Random, other: bytes) -> bytes:
    """One change anywhere; `other` is a file to take a piece of."""
    size = len(content)
    if not size:
        return other[: draw.randrange(len(other) + 1)]
    # Headers lie at the beginning, or at the end, more often than not.
    near = draw.choice((size, min(size, 64), min(size, 512)))
    at = draw.randrange(near)
    at = size - 1 - at if draw.random() < 0.3 else at
    end = min(size, at + draw.choice((1, 4, 16, 256, size)))
    kind = draw.randrange(9)
    if kind == 0:
        flipped = content[at] ^ (1 << draw.randrange(8))
        return content[:at] + bytes([flipped]) + content[at + 1 :]
    if kind == 1:
        return content[:at] + draw.randbytes(draw.choice((1, 4, 64))) + content[at:]
    if kind == 2:
        width = draw.choice((1, 2, 4, 8))
        number = draw.choice(EDGES) & (2 ** (8 * width) - 1)
        written = number.to_bytes(width, draw.choice(("little", "big")))
        return content[:at] + written + content[at + width :]
    if kind == 3:
        return content[:at]
    if kind == 4:
        return content[:at] + content[end:]
    if kind == 5:
        return content[:end] + content[at:end] * draw.choice((1, 2, 50)) + content[end:]
    if kind == 6:
        cut = draw.randrange(len(other) + 1)
        return content[:at] + other[cut:]
    if kind == 7:
        return content[:at] + draw.choice(WORDS) + content[end:]
    return number_changed(content, draw)


def number_changed(content: bytes, draw: Random) -> bytes:
    """Another number in place of one that is written in digits."""
    found = list(re.finditer(rb"-?\d+", content[: 2**16]))
    if not found:
        return content
    one = draw.choice(found)
    number = draw.choice((*EDGES, -1, -(2**63), 10**30))
    written = draw.choice((str(number), f"{number}e999", "NaN", f"-{number}", "null"))
    return content[: one.start()] + written.encode() + content[one.end() :]


def some(content: bytes, draw: Random) -> bytes:
    """`changed`, with nothing but itself to take pieces of."""
    return changed(content, draw, content)


# --- the same with a format's own sums right, so that a reader gets past them ------------------


def png(content: bytes, draw: Random) -> bytes:
    """A chunk of a PNG changed, checksums right."""
    head, at, chunks = content[:8], 8, []
    while at + 12 <= len(content):
        (size,) = struct.unpack(">I", content[at : at + 4])
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    if not chunks:
        return content
    which = draw.randrange(len(chunks))
    kind, body = chunks[which]
    chunks[which] = kind, some(body, draw)
    return head + b"".join(chunk(kind, body) for kind, body in chunks)


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    check = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + check


def tar(content: bytes, draw: Random) -> bytes:
    """A header of a .tar changed, its checksum right."""
    blocks = max(1, len(content) // 512)
    heads = [n for n in range(blocks) if content[512 * n + 257 : 512 * n + 262] == b"ustar"]
    if not heads:
        return content
    at = 512 * draw.choice(heads)
    head = bytearray(some(content[at : at + 512], draw)[:512].ljust(512, b"\0"))
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    return content[:at] + bytes(head) + content[at + 512 :]


def gzipped(inner: Change) -> Change:
    """What is inside of a .gz changed."""

    def change(content: bytes, draw: Random) -> bytes:
        try:
            return gzip.compress(inner(gzip.decompress(content), draw), 1, mtime=0)
        except (OSError, EOFError, zlib.error):
            return content

    return change


def zipped(inner: Change = some) -> Change:
    """A file inside of a .zip changed, packed again."""

    def change(content: bytes, draw: Random) -> bytes:
        out = BytesIO()
        try:
            with ZipFile(BytesIO(content)) as old, ZipFile(out, "w") as new:
                names = old.namelist()
                which = draw.choice(names)
                for name in names:
                    packed = (
                        draw.choice((ZIP_STORED, ZIP_DEFLATED)) if name == which else ZIP_STORED
                    )
                    body = old.read(name)
                    changed = inner(body, draw) if name == which else body
                    new.writestr(ZipInfo(name), changed, packed)  # of no time: it is the same again
        except (BadZipFile, OSError, EOFError, zlib.error, LZMAError, ValueError, RuntimeError,
                IndexError):  # fmt: skip
            return content
        return out.getvalue()

    return change


def sealed(content: bytes, draw: Random) -> bytes:
    """A manifest of the store changed, its own checksum right."""
    try:
        found = json.loads(number_changed(content, draw))
        found.pop("sha256", None)
        key = draw.choice(sorted(found))
        found[key] = draw.choice((None, [], {}, 0, "x", "../x", [found[key]], {"x": {}}))
    except (ValueError, AttributeError, IndexError):
        return content
    return seal(found)


def seal(manifest: dict) -> bytes:
    """A manifest as the store writes it."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": digest}).encode()
