"""Bytes that all sessions share, the last used of them, up to so many in all."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable


class Kept:
    """What was made under a key, until `most` bytes are kept and it is what was unused longest."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = 0  # bytes that are kept
        self._all: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """The bytes under a key. Nobody waits for what somebody else makes."""
        with self._lock:
            if key in self._all:
                self._all.move_to_end(key)
                return self._all[key]
        made = make()
        with self._lock:
            self.size += len(made) - len(self._all.pop(key, b""))
            self._all[key] = made
            while self.size > self.most:
                self.size -= len(self._all.popitem(last=False)[1])
        return made
