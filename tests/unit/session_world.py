"""A world for sessions without a network: a backend whose every move is the test's, clients that keep what they saw."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock

from mcp_proxy.session.interfaces import ILinkOwner, IOutlet, ISeeker, Loss, Outgoing, Refusal
from mcp_proxy.session.outlet import SSEOutlet
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.registry import Registry
from mcp_proxy.session.session import Session
from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.sse import Decoder, Event

#: What the backend's view may tell a session.
SIGNS = ("doubted", "ending", "not_ending", "was_gone")


def signal(session: Session, sign: str) -> None:
    """The backend seems to want to stop, does, or does not; or it was gone, which the link has not noticed."""
    uplink: Any = session.uplink
    if sign in ("doubted", "ending"):
        getattr(uplink, f"backend_{sign}")()
        return
    was_gone = sign == "was_gone"
    if uplink.link is not None:
        uplink.link.is_blind = was_gone
    uplink.backend_not_ending(was_gone=was_gone)


class FakeLink:
    """A link; the test plays the backend."""

    correlates = False
    is_judged = True
    is_owed = True
    is_blind = False

    def __init__(self, owner: ILinkOwner, headers: Headers) -> None:
        self.owner = owner
        self.headers = headers
        self.is_opening = self.is_open = self.is_closed = self.is_paused = False
        self.queue: list[Outgoing] = []
        self.taken: list[dict[str, Any]] = []

    def open(self) -> None:
        """Connect."""
        self.is_opening = True

    def send(self, outgoing: Outgoing) -> None:
        """Take a message."""
        assert self.is_open and not self.is_closed, "sent on a link that is not open"
        self.queue.append(outgoing)

    def pause(self, source: object) -> None:
        """Stop."""
        self.is_paused = True

    def resume(self, source: object) -> None:
        """Go on."""
        self.is_paused = False

    def close(self, *, done: bool = False) -> None:
        """End."""
        self.is_closed = True

    # -- the test's moves --------------------------------------------------------------------------------------

    def accept(self) -> None:
        """The backend gives a stream and tells where messages go."""
        self.is_open = True
        self.owner.link_opened(self)

    def take(self, outcome: str = "accepted") -> dict[str, Any] | None:
        """The oldest message is handed to the network, and this comes of it; returns the message."""
        outgoing = self.queue.pop(0)
        message: dict[str, Any] = json.loads(outgoing.raw)
        if outcome == "refused":  # no connection: nothing was handed over
            self.owner.link_refused(self, outgoing, Refusal(0, "connection refused"))
            return None
        self.owner.link_sent(self, outgoing)
        if outcome == "accepted":
            self.taken.append(message)
            self.owner.link_accepted(self, outgoing)
        elif outcome == "lost":
            self.owner.link_refused(self, outgoing, Refusal(0, "connection reset"))
        elif outcome != "unheard":
            self.owner.link_refused(self, outgoing, Refusal(int(outcome), f"HTTP {outcome}"))
        return message

    def say(self, **message: Any) -> None:
        """The backend sends a message."""
        if not self.is_closed:
            self.owner.link_received(self, jsonrpc.parse(json.dumps({"jsonrpc": "2.0", **message}).encode()))

    def lose(self, reason: str = "the stream ended", reachable: bool = False) -> None:
        """The link breaks."""
        if not self.is_closed:
            self.is_closed = True
            self.owner.link_lost(self, Loss(reason, reachable))


class FakeBackend:
    """The shared view; who may connect is the test's decision."""

    def __init__(self) -> None:
        self.outage = 0.0
        self.spent = self.is_doubted = False
        self.waiting: dict[ISeeker, None] = {}
        self.links: list[FakeLink] = []

    def seek(self, seeker: ISeeker) -> None:
        """A session wants to connect."""
        self.waiting[seeker] = None

    def withdraw(self, seeker: ISeeker) -> None:
        """It does not any more."""
        self.waiting.pop(seeker, None)

    def succeeded(self, seeker: ISeeker) -> None:
        """It has a link."""
        self.outage, self.spent = 0.0, False

    def failed(self, seeker: ISeeker, loss: Loss) -> None:
        """It got none."""

    def lost(self, loss: Loss) -> None:
        """It has one no longer."""
        self.outage = self.outage or 1.0

    def make_link(self, owner: ILinkOwner, headers: Headers, *, stateless: bool = False) -> FakeLink:
        """A link for it."""
        link = FakeLink(owner, headers)
        self.links.append(link)
        return link

    def give_turn(self, seeker: ISeeker) -> None:
        """Let it connect."""
        if self.waiting.pop(seeker, seeker) is None:
            seeker.backend_turn()


class FakeStream:
    """A client's stream: decodes what it gets."""

    def __init__(self, on_event: Callable[[int, dict[str, Any]], None]) -> None:
        self.paused = False
        self.is_closed = False
        self._decoder = Decoder(1 << 24)
        self._on_event = on_event

    def write(self, data: bytes) -> None:
        """The client receives bytes."""
        assert not self.is_closed, "written after close"
        for event in self._decoder.feed(data):
            assert isinstance(event, Event)
            self._on_event(int(event.id.rpartition(".")[2]), json.loads(event.data))

    def close(self) -> None:
        """The proxy ends it."""
        self.is_closed = True


class Client:
    """A client of one session; keeps what it saw, in order."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.headers: Headers = ((b"authorization", name.encode()),)
        self.session: Session = world.registry.create(self.headers, SSEOutlet)
        self.seen: list[dict[str, Any]] = []
        self.last_event = 0
        self.stream: FakeStream | None = None

    def attach(self) -> None:
        """Connect, as an EventSource does that remembers the last event."""

        def received(number: int, message: dict[str, Any]) -> None:
            assert number > self.last_event, "an event came twice, or out of order"
            self.last_event = number
            self.seen.append(message)

        self.stream = FakeStream(received)
        self.session.attach(self.stream, self.last_event)

    def detach(self) -> None:
        """Lose the connection."""
        if self.stream is not None:
            self.session.detach(self.stream)
            self.stream = None

    def send(self, **message: Any) -> None:
        """Post a message."""
        self.session.receive(jsonrpc.parse(json.dumps({"jsonrpc": "2.0", **message}).encode()), self.headers)

    def answers(self, identity: Any) -> list[dict[str, Any]]:
        """What came for a request."""
        return [m for m in self.seen if "method" not in m and m.get("id") == identity]

    def told(self, method: str) -> list[dict[str, Any]]:
        """The notifications and requests of this kind that came."""
        return [m for m in self.seen if m.get("method") == method]

    @property
    def link(self) -> FakeLink:
        """The session's newest link."""
        return next(link for link in reversed(self.world.backend.links) if link.owner is self.session.uplink)


class World:
    """A clock, a backend, a registry."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.clock = Clock()
        self.backend = FakeBackend()
        self.policy = policy or Policy()
        self.registry = Registry(self._make, max_sessions=100, idle_timeout=1800)

    def _make(self, token: str, owner: bytes, headers: Headers, outlet: IOutlet) -> Session:
        return Session(
            token,
            owner,
            headers,
            outlet,
            backend=self.backend,
            clock=self.clock,
            policy=self.policy,
            forget=self.registry.forget,
            remember=self.registry.remember,
            recall=self.registry.recall,
        )

    def client(self, name: str = "alice") -> Client:
        """A client that has just connected."""
        client = Client(self, name)
        client.attach()
        return client

    def connect(self, client: Client) -> FakeLink:
        """Give the client's session its turn, and a stream of the backend's."""
        self.backend.give_turn(client.session.uplink)
        client.link.accept()
        return client.link

    def live(self, name: str = "alice", **capabilities: Any) -> Client:
        """A client that has initialized."""
        client = self.client(name)
        link = self.connect(client)
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": name, "version": "1"}}
        client.send(id=0, method="initialize", params=params)
        link.take()
        link.say(id=0, result=initialize_result(**capabilities))
        client.send(method="notifications/initialized")
        link.take()
        return client

    def restore(self, client: Client) -> FakeLink:
        """A new link, and the handshake on it."""
        link = self.connect(client)
        self.shake_hands(link)
        return link

    @staticmethod
    def shake_hands(link: FakeLink, lists: dict[str, list[Any]] | None = None) -> None:
        """The backend answers what the proxy replays."""
        while (
            link.queue
            and str(json.loads(link.queue[0].raw).get("id", "")).startswith("mcp-proxy/")
            or (link.queue and json.loads(link.queue[0].raw).get("method") == "notifications/initialized")
        ):
            message = link.take()
            assert message is not None
            if "id" not in message:
                continue
            method = message["method"]
            result: dict[str, Any] = {}
            if method == "initialize":
                result = initialize_result()
            elif method.endswith("/list"):
                result = {method.split("/")[0]: (lists or {}).get(method, [])}
            link.say(id=message["id"], result=result)


def initialize_result(**capabilities: Any) -> dict[str, Any]:
    """What a backend answers to initialize."""
    return {
        "protocolVersion": "2025-06-18",
        "capabilities": capabilities or {"tools": {}},
        "serverInfo": {"name": "backend", "version": "1"},
    }
