"""Streamable HTTP clients whose connections break, and links that know which message is about which request."""

from __future__ import annotations

import json
from typing import Any

from mcp_proxy.frontend.stream import NOBODY
from mcp_proxy.frontend.streamable import StreamableFront
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.session.interfaces import HTTPAnswer, Outgoing, Refusal
from mcp_proxy.session.replies import StreamableOutlet
from mcp_proxy.session.session import Session
from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.errors import ProxyError
from mcp_proxy.wire.headers import Headers
from tests.support.http1 import read_events
from tests.unit.session_world import FakeBackend, FakeLink


class Link(FakeLink):
    """A link that knows which message belongs to which request."""

    correlates = True
    is_owed = True
    is_blind = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pausers: set[object] = set()
        self.posted: list[Outgoing] = []

    def pause(self, source: object) -> None:
        """Stop what feeds this source."""
        self.pausers.add(source)

    def resume(self, source: object) -> None:
        """Go on."""
        self.pausers.discard(source)

    def take(self, outcome: str = "accepted") -> dict[str, Any] | None:
        """The oldest message is posted; a status comes with what the backend says."""
        if not outcome.isdigit() or outcome in ("404", "503"):
            if outcome == "accepted":
                self.posted.append(self.queue[0])
            return super().take(outcome)
        outgoing = self.queue.pop(0)
        self.owner.link_sent(self, outgoing)
        answer = HTTPAnswer(int(outcome), ((b"content-type", b"text/plain"),), b"no")
        self.owner.link_refused(self, outgoing, Refusal(int(outcome), f"HTTP {outcome}", answer))
        message: dict[str, Any] = json.loads(outgoing.raw)
        return message

    def say_about(self, about: Exchange, **message: Any) -> None:
        """The backend sends a message on the stream of a request."""
        raw = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.owner.link_received(self, jsonrpc.parse(raw), about)


class Backend(FakeBackend):
    """It is spoken to over such links."""

    def make_link(self, owner: Any, headers: Headers, *, stateless: bool = False) -> Link:
        """A link for a session."""
        link = Link(owner, headers)
        self.links.append(link)
        return link


class Stream:
    """The client's end of one request of HTTP, as the front sees it, and what the client reads on it."""

    def __init__(self, client: Client, post: Post | None) -> None:
        self.paused = self.started = self.closed = False
        self.is_cut = False  # the connection broke, whether or not the proxy knows
        self.status = 0
        self.headers: Headers = ()
        self._client = client
        self._post = post
        self.watcher = NOBODY

    def respond(self, status: int, body: bytes, headers: Headers = ()) -> None:
        """The proxy answers whole."""
        assert not self.closed and not self.started, "answered twice"
        self.status, self.headers = status, headers
        if self._post is not None and not self.is_cut:
            self._client.read(self._post, status, body)
        self.go()

    def start(self, headers: Headers = ()) -> None:
        """The proxy begins a stream."""
        assert not self.started, "begun twice"
        self.started, self.status = True, 200

    def write(self, data: bytes) -> None:
        """The proxy sends events."""
        if self.started and not (self.closed or self.is_cut):
            for event in read_events(data):
                self._client.heard(self._post, event.id, event.data)

    def close(self) -> None:
        """The proxy ends the stream."""
        if self.started and not self.closed:
            self.go()

    def go(self) -> None:
        """It is over, and the proxy knows."""
        if not self.closed:
            self.closed = True
            self.watcher.gone()


class Request:
    """What the front sees of a request of HTTP."""

    has_length = True

    def __init__(self, method: str, headers: Headers, body: bytes, stream: Stream) -> None:
        self.method, self.headers, self.stream = method, headers, stream
        self._body = body

    def header(self, name: bytes) -> bytes:
        """The value of a header."""
        return dict(self.headers).get(name, b"")

    def body(self) -> bytes:
        """The body."""
        return self._body


class Post:
    """A POST with requests in it, and how far the client has read its reply."""

    def __init__(self, identities: list[str]) -> None:
        self.identities = identities
        self.last_event = ""
        self.stream: Stream


class Client:
    """A client; keeps what it saw."""

    def __init__(self, front: StreamableFront, name: str) -> None:
        self.front, self.name = front, name
        self.headers: Headers = ((b"authorization", name.encode()), (b"accept", b"*/*"))
        self.posts: list[Post] = []
        self.answers: dict[str, int] = {}
        self.seen: list[Any] = []
        self.told: list[int] = []  # numbers of the events that belong to no request
        self.last_event = ""
        self.general: Stream | None = None
        self.streams: list[Stream] = []
        self.session: Session

    # -- what it does ------------------------------------------------------------------------------------------

    def send(self, message: Any, identities: list[str]) -> Stream:
        """Post a message, or an array."""
        post = Post(identities)
        post.stream = Stream(self, post)
        head = ((b"content-type", b"application/json"), (b"content-length", b"1"))
        self._ask(self.front.post, Request("POST", (*self.headers, *head), json.dumps(message).encode(), post.stream))
        if identities:
            self.posts.append(post)
        return post.stream

    def listen(self) -> None:
        """Open the stream for all that belongs to no request."""
        self.general = Stream(self, None)
        self._ask(self.front.listen, Request("GET", self._since(self.last_event), b"", self.general))

    def resume(self, post: Post) -> None:
        """Ask for the rest of a reply."""
        post.stream = Stream(self, post)
        self._ask(self.front.listen, Request("GET", self._since(post.last_event), b"", post.stream))
        assert post.stream.status in (200, 405)

    def _since(self, event: str) -> Headers:
        return (*self.headers, *(((b"last-event-id", event.encode()),) if event else ()))

    def _ask(self, handle: Any, request: Request) -> None:
        self.streams.append(request.stream)
        try:
            handle(request)
        except ProxyError as error:
            request.stream.respond(error.answer.status, b"")

    @property
    def link(self) -> Link:
        """The session's newest link."""
        links: list[Link] = self.session.uplink._backend.links  # type: ignore[attr-defined]
        return next(link for link in reversed(links) if link.owner is self.session.uplink)

    @property
    def outlet(self) -> StreamableOutlet:
        """The session's side towards it."""
        outlet = self.session.outlet
        assert isinstance(outlet, StreamableOutlet)
        return outlet

    # -- what it reads -----------------------------------------------------------------------------------------

    def read(self, post: Post, status: int, body: bytes) -> None:
        """A whole answer."""
        if status == 200:
            value = json.loads(body)
            for message in value if isinstance(value, list) else [value]:
                self._answered(post, message)
        elif status not in (202, 405):  # a refusal is the answer to all that was in the POST
            for identity in post.identities:
                self.answers[identity] = self.answers.get(identity, 0) + 1

    def heard(self, post: Post | None, event: str, data: str) -> None:
        """An event of a stream."""
        place, number = event.split(".")[1:]
        last = post.last_event if post is not None else self.last_event
        if last:
            assert last.split(".")[1] == place, "an event of another reply"
            assert int(last.split(".")[2]) < int(number), "an event came twice, or out of order"
        if post is None:
            self.last_event = event
            self.told.append(int(number))
        else:
            post.last_event = event
        if not data:
            return
        message = json.loads(data)
        if "method" in message:
            self.seen.append(message)
            about = message.get("params", {}).get("about")
            assert post is None or about is None or about in post.identities, "a message on another's reply"
        else:
            assert post is not None, "an answer where none belongs"
            self._answered(post, message)

    def _answered(self, post: Post, message: dict[str, Any]) -> None:
        identity = message["id"]
        assert identity in post.identities, "an answer on another's reply"
        self.seen.append(message)
        self.answers[identity] = self.answers.get(identity, 0) + 1

    def lost(self) -> list[Post]:
        """The replies that broke."""
        return [post for post in self.posts if post.stream.is_cut and self.missing(post)]

    def missing(self, post: Post) -> list[str]:
        """What was not answered."""
        return [identity for identity in post.identities if identity not in self.answers]
