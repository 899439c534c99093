"""The client's outstanding requests, and what becomes of them when the link is lost.

A client's request is *held* while it waits for a link and *in flight* once it was given to one. Delivery decides
its fate: what was not sent is sent later, whatever it is; what may have arrived is repeated only if that is safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum

import msgspec

from mcp_proxy.session.room import Allowance, Room
from mcp_proxy.wire import revisions
from mcp_proxy.wire.errors import Overloaded, TooManyInFlight
from mcp_proxy.wire.headers import Headers, once, size_of
from mcp_proxy.wire.jsonrpc import Kind, Message

#: How often a safe request is sent again before it is taken to be what breaks the backend.
MAX_RESENDS = 3
#: How many requests a client may have in flight.
MAX_IN_FLIGHT = 1000
#: How many bytes large requests in flight may keep in all; one is large over this size.
MAX_IN_FLIGHT_BYTES = 64 * 1024 * 1024
LARGE = 64 * 1024
#: A request of no more bytes is kept until it is answered, also when its text is not needed any more.
SMALL = 1024


class Delivery(Enum):
    """How far a message got; the value is what a client is told."""

    NOT_SENT = "no"
    SENT = "maybe"
    ACCEPTED = "yes"


class Exchange(msgspec.Struct, eq=False):
    """A client's message and, if it is a request, its answer to come. (A struct, for these are made fastest.)

    ``backend_id`` is its id towards the backend. ``deadline``, in seconds of the session's clock, is set while it is
    held. ``is_on_link`` tells whether its last try got as far as the network, whatever became of those before.
    ``is_request``: somebody waits for an answer. ``token`` is what the client wants to hear of progress under.
    ``cancelled``: the client does not wait for an answer.
    ``progress`` is what the backend has last reported of it; when it is sent again, ``floor`` is the number in that,
    for what the client sees must grow. ``is_lasting``: its answer is a stream that is meant to last, so there is no
    hurry. ``reply`` is where the answer goes, if it has a place of its own. ``sent_at`` is when it was
    first handed to the network; ``held_since`` when it was held, if it ever was. ``span`` is its tracer's.
    """

    message: Message
    headers: Headers
    arrived: float
    backend_id: bytes = b""
    delivery: Delivery = Delivery.NOT_SENT
    is_on_link: bool = False
    deadline: float = 0.0
    not_before: float = 0.0
    beat: float = 0.0
    beats: int = 0
    resends: int = 0
    rejected: bool = False
    cancelled: bool = False
    is_lasting: bool = False
    progress: Message | None = None
    floor: float | None = None
    reply: object = None
    sent_at: float = 0.0
    held_since: float | None = None
    span: object = None
    token: object = None
    fingerprint: int = 0
    is_request: bool = False
    is_safe: bool = False

    def __post_init__(self) -> None:
        message = self.message
        self.fingerprint = hash(message.raw)
        self.is_request = message.kind is Kind.REQUEST
        if self.is_request:
            self.is_safe = revisions.is_safe(message)
            if b"progressToken" in message.body:
                meta = message.params().get("_meta")
                self.token = meta.get("progressToken") if isinstance(meta, dict) else None

    def was_sent(self, now: float = 0.0) -> None:
        """It is being handed to the network, so the backend may have it."""
        self.is_on_link = True
        if self.delivery is Delivery.NOT_SENT:
            self.delivery = Delivery.SENT
            self.sent_at = now

    def forget_text(self) -> None:
        """It will never be sent again: keep little more than its answer needs."""
        if len(self.message.raw) <= SMALL:
            return
        self.message = self.message.without_text()
        self.headers = ()

    @property
    def size(self) -> int:
        """How many bytes it keeps."""
        return len(self.message.raw) + once(self.headers, size_of)


class Exchanges:
    """The client's requests: which are held, which are in flight.

    :param max_held: how many messages may be held.
    :param max_held_bytes: how many bytes they may have in all.
    :param room: what those of all sessions may have.
    """

    __slots__ = ("_allowance", "_requests", "_room", "_taken", "held", "in_flight")

    def __init__(self, max_held: int, max_held_bytes: int, room: Room | None = None) -> None:
        self._room = Room() if room is None else room
        self._allowance = Allowance(max_held, max_held_bytes, self._room)
        self._taken = 0  # of the room
        self.held: list[Exchange] = []
        self.in_flight: dict[bytes, Exchange] = {}  # by backend id
        self._requests: dict[bytes, Exchange] = {}  # the client's, by its own id

    def __iter__(self) -> Iterator[Exchange]:
        yield from self.held
        yield from self.in_flight.values()

    @property
    def held_bytes(self) -> int:
        """How many bytes are held."""
        return sum(exchange.size for exchange in self.held)

    def find(self, identity: bytes) -> Exchange | None:
        """The client's outstanding request with this id."""
        return self._requests.get(identity)

    def is_in_flight(self, exchange: Exchange) -> bool:
        """Whether this very request waits for the backend's answer."""
        return self.in_flight.get(exchange.backend_id) is exchange

    def hold(self, exchange: Exchange, deadline: float) -> None:
        """Keep a message until there is a link.

        :raises Overloaded: there is no room for it; it is not kept.
        """
        refusal = self.refusal(exchange)
        if refusal is not None:
            raise refusal
        exchange.deadline = exchange.deadline or deadline
        self.held.append(exchange)
        self._use_room()
        self._register(exchange)

    def refusal(self, exchange: Exchange) -> Overloaded | None:
        """Why there is no room for another message; None if there is."""
        return self._allowance.refusal(len(self.held), self.held_bytes, exchange.size)

    def dispatch(self, exchange: Exchange) -> None:
        """A request is given to the link.

        :raises TooManyInFlight: too many are in flight.
        """
        if len(self.in_flight) >= MAX_IN_FLIGHT:
            for cancelled in [each for each in self.in_flight.values() if each.cancelled]:
                self.drop(cancelled)
            if len(self.in_flight) >= MAX_IN_FLIGHT:
                raise TooManyInFlight()
        if exchange.size > LARGE:
            kept = sum(each.size for each in self.in_flight.values())
            if kept + exchange.size > MAX_IN_FLIGHT_BYTES:
                raise TooManyInFlight()
        exchange.is_on_link = False
        self.in_flight[exchange.backend_id] = exchange
        self._register(exchange)

    def _register(self, exchange: Exchange) -> None:
        if exchange.is_request and exchange.message.id is not None:
            self._requests[exchange.message.id] = exchange

    def _unregister(self, exchange: Exchange) -> None:
        identity = exchange.message.id
        if exchange.is_request and identity is not None and self._requests.get(identity) is exchange:
            del self._requests[identity]
            self._requests = self._requests or {}  # an emptied one is large

    def ready(self, now: float) -> list[Exchange]:
        """Take what is held and may be sent now, oldest first."""
        return self._take(lambda exchange: exchange.not_before <= now)

    def expired(self, now: float) -> list[Exchange]:
        """Take what was held for too long."""
        return self._take(lambda exchange: exchange.deadline <= now and not exchange.is_lasting)

    def take_held(self, keep: Callable[[Exchange], bool]) -> list[Exchange]:
        """Take all that is held but what is to be kept."""
        return self._take(lambda exchange: not (keep(exchange) or exchange.is_lasting))

    def _take(self, wanted: Callable[[Exchange], bool]) -> list[Exchange]:
        taken = [exchange for exchange in self.held if wanted(exchange)]
        if taken:
            self.held = [exchange for exchange in self.held if not wanted(exchange)]
            self._use_room()
            for exchange in taken:
                self._unregister(exchange)
        return taken

    def answered(self, backend_id: bytes | None) -> Exchange | None:
        """Take the request that this id answers; None for an answer nobody waits for."""
        exchange = None if backend_id is None else self.in_flight.pop(backend_id, None)
        if exchange is not None:
            self._unregister(exchange)
            self.in_flight = self.in_flight or {}
        return exchange

    def drop(self, exchange: Exchange) -> None:
        """Forget a message, wherever it is."""
        if exchange in self.held:
            self.held.remove(exchange)
            self._use_room()
        if self.is_in_flight(exchange):
            del self.in_flight[exchange.backend_id]
        self._unregister(exchange)

    def lose(self, is_repeatable: Callable[[Exchange], bool], deadline: float) -> list[Exchange]:
        """The link is lost: hold what can be sent (again); return, oldest first, what must be answered."""
        lost, self.in_flight = sorted(self.in_flight.values(), key=lambda each: each.arrived), {}
        for exchange in lost:
            self._unregister(exchange)
        lost = [exchange for exchange in lost if not exchange.cancelled]
        unknown = [exchange for exchange in lost if not self._may_go_again(exchange, is_repeatable)]
        back: list[Exchange] = []
        held = self.held_bytes
        for exchange in lost:
            if exchange in unknown:
                continue
            if self._allowance.refusal(len(self.held) + len(back), held, exchange.size) is not None:
                unknown.append(exchange)
                continue
            # how far it got stays known: should it never be sent again, the client is told the truth
            exchange.deadline = exchange.deadline or deadline
            exchange.resends += exchange.delivery is not Delivery.NOT_SENT
            held += exchange.size
            back.append(exchange)
            self._taken = self._room.change(self._taken, self._taken + exchange.size)
            self._register(exchange)
        self.held = back + self.held  # they came before what is held
        return sorted(unknown, key=lambda each: each.arrived)

    def leave_room(self) -> list[Exchange]:
        """The session is over; take what it held still."""
        held, self.held = self.held, []
        self._use_room()
        return held

    def _use_room(self) -> None:
        """What is held has changed."""
        self._taken = self._room.change(self._taken, self.held_bytes)

    @staticmethod
    def _may_go_again(exchange: Exchange, is_repeatable: Callable[[Exchange], bool]) -> bool:
        if exchange.delivery is Delivery.NOT_SENT:
            return True
        return exchange.resends < MAX_RESENDS and is_repeatable(exchange)
