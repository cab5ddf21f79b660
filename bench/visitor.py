"""One session of the web app without a browser: the messages that Streamlit's frontend sends.

It opens pages, acts on our own elements as their JavaScript does (numbered actions until Python has
acknowledged them), runs fragments that ask to be run every few seconds, keeps messages that it said
it has, and fetches the evidence that a deck shows. It draws nothing, and of Streamlit's own widgets
it touches none.
"""

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from streamlit.proto.Alert_pb2 import Alert
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ClientState_pb2 import ClientState
from streamlit.proto.Delta_pb2 import Delta
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from streamlit.web.server.starlette.starlette_app_utils import generate_xsrf_token_string
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from pages.parts.reviewer import COOKIE

PATIENCE = 60.0  # seconds for an answer; what takes longer is an error
AHEAD = 3  # images whose evidence a deck fetches before it shows them
KEPT = 30  # the large messages that came last, and need not be sent again
FINISHED = (
    ForwardMsg.FINISHED_SUCCESSFULLY,
    ForwardMsg.FINISHED_FRAGMENT_RUN_SUCCESSFULLY,
    ForwardMsg.FINISHED_EARLY_FOR_RERUN,
)


@dataclass(frozen=True)
class Element:
    """One of our own elements, as the page last had it."""

    id: str  # under which its state goes back
    data: dict[str, Any]
    fragment: str  # which an action runs; "" for the whole page


class Visitor:
    """A session; `visiting` makes one. Not to be used by two tasks at once."""

    def __init__(self, address: str, stream: ClientConnection) -> None:
        self.address = address
        self.errors: list[str] = []
        self.elements: dict[str, Element] = {}
        self.page = ""
        self.runs = 0  # that ended, those that nobody clicked for too
        self._stream = stream
        self._hash = ""  # of the page that is shown
        self._query = ""
        self._arrived = False  # on the page that was asked for last
        self._pages: dict[str, str] = {}  # hash by name
        self._queues: dict[str, str] = {}  # state of elements by their id
        self._kept: dict[str, ForwardMsg] = {}
        self._timers: dict[str, tuple[float, asyncio.Task[None]]] = {}
        self._evidence: set[str] = set()
        self._ended: tuple[Callable[[], bool], asyncio.Future[None]] | None = None

    async def open(self, page: str) -> float:
        """Go to a page by its name ("overview" is the first); seconds until it is all there."""
        wanted = ClientState()
        if self._hash:
            wanted.page_script_hash = self._pages[page]
        else:
            wanted.page_name = "" if page == "overview" else page
        self.page = page
        self.rest()  # as a browser does at once: a tick would name the page that is left
        self._queues.clear()
        self.elements.clear()
        self._arrived = False
        seconds = await self._run(wanted, lambda: self._arrived)
        await self._look()
        return seconds

    async def act(self, key: str, **action: Any) -> float:
        """Do something in element `key`; seconds until a run that has applied it ended."""
        element = self.elements[key]
        seq = element.data["ack"] + 1
        at = {"name": element.data["queue"], "epoch": element.data["epoch"]}
        queue = {**at, "actions": [{**action, "seq": seq}]}
        self._queues[element.id] = json.dumps({"queue": queue})

        def done() -> bool:
            return key in self.elements and self.elements[key].data["ack"] >= seq

        seconds = await self._run(ClientState(fragment_id=element.fragment), done)
        await self._look()
        return seconds

    async def _run(self, wanted: ClientState, done: Callable[[], bool]) -> float:
        began, loop = time.perf_counter(), asyncio.get_running_loop()
        self._ended = done, loop.create_future()
        await self._send(wanted)
        try:
            await asyncio.wait_for(self._ended[1], PATIENCE)
        except TimeoutError:
            self.errors.append(f"no answer on {self.page} within {PATIENCE:.0f} s")
        self._ended = None
        return time.perf_counter() - began

    async def _send(self, wanted: ClientState) -> None:
        if not wanted.page_name and not wanted.page_script_hash:
            wanted.page_script_hash, wanted.query_string = self._hash, self._query
            for name, state in self._queues.items():
                wanted.widget_states.widgets.add(id=name, json_value=state)
        wanted.cached_message_hashes.extend(self._kept)
        wanted.context_info.url = f"{self.address}/{self.page}"
        wanted.context_info.timezone = "UTC"
        try:
            await self._stream.send(BackMsg(rerun_script=wanted).SerializeToString())
        except ConnectionClosed as closed:
            self._lost(closed)

    async def _look(self) -> None:
        """Fetch the evidence on the images that a deck shows next, each once."""
        deck = self.elements.get("deck")
        if deck is None:
            return
        waiting = [i["id"] for i in deck.data["items"] if str(i["id"]) not in deck.data["verdicts"]]
        paths = [f"{deck.data['evidence']}{i}.json" for i in waiting[: 1 + AHEAD]]
        for path in dict.fromkeys(p for p in paths if p not in self._evidence):
            self._evidence.add(path)
            try:
                await asyncio.to_thread(fetched, self.address + path)
            except (OSError, urllib.error.URLError) as error:
                self.errors.append(f"{path}: {error}")

    async def listen(self) -> None:
        """Take in what comes, until the connection ends."""
        try:
            async for content in self._stream:
                assert isinstance(content, bytes)
                self._take(ForwardMsg.FromString(content))
        except ConnectionClosed as closed:
            self._lost(closed)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # else nobody would hear of it
            self.errors.append(repr(error))
            raise
        else:
            self.errors.append("the server ended the connection")

    def _lost(self, closed: ConnectionClosed) -> None:
        self.errors.append(f"disconnected: {closed}")
        if self._ended and not self._ended[1].done():
            self._ended[1].set_result(None)

    def _take(self, message: ForwardMsg) -> None:
        kind = message.WhichOneof("type")
        if kind == "ref_hash":
            kept = self._kept.get(message.ref_hash)
            if kept is None:
                self.errors.append("a message that was not sent before")
                return
            self._kept[message.ref_hash] = self._kept.pop(message.ref_hash)  # used last
            whole = ForwardMsg()
            whole.CopyFrom(kept)
            whole.metadata.CopyFrom(message.metadata)
            message, kind = whole, whole.WhichOneof("type")
        elif message.metadata.cacheable:
            self._kept.pop(message.hash, None)
            self._kept[message.hash] = message
        if kind == "delta":
            self._draw(message.delta)
        elif kind == "navigation":
            pages = message.navigation.app_pages
            self._pages = {p.url_pathname or "overview": p.page_script_hash for p in pages}
            self._arrive(message.navigation.page_script_hash)
        elif kind == "page_info_changed":
            self._query = message.page_info_changed.query_string
        elif kind == "auto_rerun":
            self._every(message.auto_rerun.interval, message.auto_rerun.fragment_id)
        elif kind == "stop_auto_rerun":
            for name in message.stop_auto_rerun.fragment_ids:
                self._stop(name)
        elif kind == "page_not_found":
            self.errors.append("page not found")
        elif kind == "script_finished":
            self._end(message.script_finished)

    def _arrive(self, page_hash: str) -> None:
        """The page that is shown; with another one, what the last one asked for is over."""
        if page_hash != self._hash:
            self.rest()
        self._hash, self._arrived = page_hash, page_hash == self._pages.get(self.page)

    def _draw(self, delta: Delta) -> None:
        """Note our elements, and what is an error."""
        if delta.WhichOneof("type") != "new_element":
            return
        new = delta.new_element
        kind = new.WhichOneof("type")
        if kind == "bidi_component":
            made = new.bidi_component
            key = made.id.split("-", 2)[2]
            self.elements[key] = Element(made.id, json.loads(made.json), delta.fragment_id)
        elif kind == "exception":
            self.errors.append(f"{new.exception.type}: {new.exception.message}")
        elif kind == "alert" and new.alert.format in (Alert.ERROR, Alert.WARNING):
            self.errors.append(new.alert.body)

    def _end(self, how: "ForwardMsg.ScriptFinishedStatus.ValueType") -> None:
        self.runs += 1
        for name in list(self._kept)[:-KEPT]:  # not while a run goes on, which counts on them
            del self._kept[name]
        if how not in FINISHED:
            self.errors.append(f"a run ended as {ForwardMsg.ScriptFinishedStatus.Name(how)}")
        over = how != ForwardMsg.FINISHED_EARLY_FOR_RERUN  # else another run follows
        if over and self._ended and not self._ended[1].done() and self._ended[0]():
            self._ended[1].set_result(None)

    def _every(self, seconds: float, fragment: str) -> None:
        if fragment in self._timers and self._timers[fragment][0] == seconds:
            return
        self._stop(fragment)

        async def again() -> None:
            while True:
                await asyncio.sleep(seconds)
                await self._send(ClientState(fragment_id=fragment, is_auto_rerun=True))

        self._timers[fragment] = seconds, asyncio.create_task(again())

    async def tick(self) -> None:
        """Run now what asked to be run every few seconds; nobody waits for it."""
        for fragment in list(self._timers):
            await self._send(ClientState(fragment_id=fragment, is_auto_rerun=True))

    def _stop(self, fragment: str) -> None:
        if fragment in self._timers:
            self._timers.pop(fragment)[1].cancel()

    def rest(self) -> None:
        """Ask for nothing any more."""
        for name in list(self._timers):
            self._stop(name)


@asynccontextmanager
async def visiting(address: str, name: str = "") -> AsyncIterator[Visitor]:
    """A session of the app at `address`, as a browser on the same machine would have it.

    `name` is who reviewed in that browser before.
    """
    token = generate_xsrf_token_string()
    cookies = f"_streamlit_xsrf={token}; {COOKIE}={quote(name)}"
    said: Sequence[Subprotocol] = [Subprotocol("streamlit"), Subprotocol(token)]
    async with connect(
        f"{address.replace('http', 'ws', 1)}/_stcore/stream",
        additional_headers={"Origin": address, "Cookie": cookies},
        subprotocols=said,
        max_size=None,
        ping_interval=None,  # as in a browser, it is the server that asks whether we are there
        proxy=None,
        open_timeout=PATIENCE,
    ) as stream:
        made = Visitor(address, stream)
        listening = asyncio.create_task(made.listen())
        try:
            yield made
        finally:
            made.rest()
            listening.cancel()


def fetched(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        content: bytes = answer.read()
        return content
