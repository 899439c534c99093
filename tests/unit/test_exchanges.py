"""Outstanding requests: each has exactly one outcome, and what waits never exceeds its bounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session import exchanges as module
from mcp_proxy.session.exchanges import LARGE, Delivery, Exchange, Exchanges
from mcp_proxy.wire.errors import Overloaded, TooManyHeld, TooManyInFlight, TooMuchHeld
from mcp_proxy.wire.jsonrpc import parse
from tests.support.messages import encoded, request

CALL, READ = "tools/call", "resources/read"
LIMIT = 4
BYTES = 500


def exchange(identity: Any = 1, method: str = CALL, arrived: float = 0.0, **params: Any) -> Exchange:
    """A client's request."""
    message = parse(encoded(request(method, identity, params)))
    return Exchange(message, (), arrived, backend_id=message.id or b"")


def is_safe(each: Exchange) -> bool:
    """Whether it may be sent again."""
    return each.is_safe


def ids(them: Iterable[Exchange]) -> list[bytes]:
    """Their ids, in order."""
    return [each.message.id or b"" for each in them]


class One(SynchronousTestCase):
    def test_delivery(self) -> None:
        """Handing it to the network makes a delivery possible, and takes back nothing that is known."""
        about = exchange()
        self.assertEqual((about.delivery, about.is_on_link), (Delivery.NOT_SENT, False))
        about.was_sent()
        self.assertEqual((about.delivery, about.is_on_link), (Delivery.SENT, True))
        about.delivery, about.is_on_link = Delivery.ACCEPTED, False
        about.was_sent()
        self.assertEqual((about.delivery, about.is_on_link), (Delivery.ACCEPTED, True))

    def test_token(self) -> None:
        """The progress token is found where it belongs, and nowhere else."""
        self.assertEqual(exchange(_meta={"progressToken": "t"}).token, "t")
        for params in ({"progressToken": 1}, {"_meta": ["progressToken"]}, {"_meta": {"x": "progressToken"}}, {}):
            self.assertIsNone(exchange(**params).token, params)

    def test_forget_text(self) -> None:
        """What is never sent again keeps no text, but all that its answer needs."""
        about = exchange(9, big="x" * 1000, _meta={"progressToken": "t"})
        about.headers = ((b"name", b"value"),)
        self.assertEqual(about.size, len(about.message.raw) + 9)
        about.forget_text()
        self.assertEqual((about.size, about.message.id, about.message.method, about.token), (0, b"9", CALL, "t"))


class Holding(SynchronousTestCase):
    def setUp(self) -> None:
        self.exchanges = Exchanges(LIMIT, BYTES)

    def test_too_many(self) -> None:
        """One message too many is not kept, and leaves no trace."""
        for number in range(LIMIT):
            self.exchanges.hold(exchange(number), 10.0)
        self.assertRaises(TooManyHeld, self.exchanges.hold, exchange(LIMIT), 10.0)
        self.assertEqual((len(self.exchanges.held), self.exchanges.find(b"%d" % LIMIT)), (LIMIT, None))

    def test_too_large(self) -> None:
        """One byte too many is not kept; what fits exactly is."""
        about = exchange()
        about.headers = ((b"x", b"y" * (BYTES - about.size - 1)),)
        self.exchanges.hold(about, 10.0)
        self.assertEqual(self.exchanges.held_bytes, BYTES)
        self.assertRaises(TooMuchHeld, self.exchanges.hold, exchange(2), 10.0)
        self.exchanges.drop(about)
        about.headers = (*about.headers, (b"", b"z"))
        self.assertRaises(TooMuchHeld, self.exchanges.hold, about, 10.0)

    def test_time(self) -> None:
        """A message is taken when it is due, oldest first, and is out once its time is up."""
        early, late, short = exchange(1), exchange(2), exchange(3)
        late.not_before = 5.0
        for about, deadline in ((early, 10.0), (late, 10.0), (short, 3.0)):
            self.exchanges.hold(about, deadline)
        self.assertEqual(self.exchanges.expired(2.9), [])
        self.assertEqual(self.exchanges.expired(3.0), [short])
        self.assertEqual(self.exchanges.ready(4.9), [early])
        self.assertEqual((self.exchanges.find(b"1"), self.exchanges.find(b"2")), (None, late))
        self.assertEqual((self.exchanges.ready(5.0), self.exchanges.held), ([late], []))

    def test_take_held(self) -> None:
        """All is taken but what is to be kept, which stays known."""
        for about in (kept := exchange(1, READ), exchange(2), exchange(3)):
            self.exchanges.hold(about, 10.0)
        self.assertEqual(ids(self.exchanges.take_held(is_safe)), [b"2", b"3"])
        self.assertEqual((self.exchanges.held, self.exchanges.find(b"1")), ([kept], kept))

    def test_lasting(self) -> None:
        """A request whose answer is meant to last is in no hurry: it is only ever taken to be sent."""
        about = exchange()
        about.is_lasting = True
        self.exchanges.hold(about, 1.0)
        self.assertEqual([self.exchanges.expired(9.0), self.exchanges.take_held(lambda _: False)], [[], []])
        self.assertEqual(self.exchanges.ready(9.0), [about])


class InFlight(SynchronousTestCase):
    def setUp(self) -> None:
        self.exchanges = Exchanges(LIMIT, BYTES)

    def test_answered_once(self) -> None:
        """An answer takes its request; a second one, one for another id and one without id take nothing."""
        about = exchange("a")
        about.backend_id = b'"b"'
        self.exchanges.dispatch(about)
        self.assertEqual((self.exchanges.find(b'"a"'), self.exchanges.is_in_flight(about)), (about, True))
        answers = [self.exchanges.answered(identity) for identity in (b'"a"', None, b'"b"', b'"b"')]
        self.assertEqual(answers, [None, None, about, None])
        self.assertEqual((self.exchanges.find(b'"a"'), self.exchanges.is_in_flight(about)), (None, False))

    def test_too_many(self) -> None:
        """There is a bound; requests that nobody waits for make room for others."""
        self.patch(module, "MAX_IN_FLIGHT", LIMIT)
        sent = [exchange(number) for number in range(LIMIT)]
        for about in sent:
            self.exchanges.dispatch(about)
        self.assertRaises(TooManyInFlight, self.exchanges.dispatch, exchange("more"))
        self.assertIsNone(self.exchanges.find(b'"more"'))
        sent[0].cancelled = sent[2].cancelled = True
        self.exchanges.dispatch(exchange("more"))
        self.assertEqual(ids(self.exchanges), [b"1", b"3", b'"more"'])

    def test_large(self) -> None:
        """Large requests share a bound of bytes; small ones pass, and text that was forgotten counts no longer."""
        self.patch(module, "MAX_IN_FLIGHT_BYTES", 2 * LARGE + 1000)
        first = exchange(1, big="x" * LARGE)
        self.exchanges.dispatch(first)
        self.assertRaises(TooManyInFlight, self.exchanges.dispatch, exchange(2, big="x" * LARGE + "y" * 1000))
        self.exchanges.dispatch(exchange(3))
        first.forget_text()
        self.exchanges.dispatch(exchange(2, big="x" * LARGE + "y" * 1000))

    def test_drop(self) -> None:
        """A dropped message is nowhere any more; a later request under its id is not harmed by dropping it again."""
        held, sent = exchange(1), exchange(2)
        self.exchanges.hold(held, 10.0)
        self.exchanges.dispatch(sent)
        self.exchanges.drop(held)
        self.exchanges.drop(sent)
        self.assertEqual((list(self.exchanges), self.exchanges.find(b"1"), self.exchanges.find(b"2")), ([], None, None))
        self.exchanges.dispatch(again := exchange(2))
        self.exchanges.drop(sent)
        self.assertEqual((self.exchanges.find(b"2"), self.exchanges.is_in_flight(again)), (again, True))


class Loss(SynchronousTestCase):
    def setUp(self) -> None:
        self.exchanges = Exchanges(LIMIT, BYTES)

    def sent(self, about: Exchange, delivery: Delivery) -> Exchange:
        """In flight, and this far."""
        self.exchanges.dispatch(about)
        about.delivery = delivery
        return about

    def test_fates(self) -> None:
        """What was not sent is held whatever it is, what may have arrived only if it is safe; the rest is answered."""
        for method, delivery, is_held, resends in (
            (CALL, Delivery.NOT_SENT, True, 0),
            (READ, Delivery.NOT_SENT, True, 0),
            (CALL, Delivery.SENT, False, 0),
            (READ, Delivery.SENT, True, 1),
            (CALL, Delivery.ACCEPTED, False, 0),
            (READ, Delivery.ACCEPTED, True, 1),
        ):
            self.exchanges = Exchanges(LIMIT, BYTES)
            about = self.sent(exchange(method=method), delivery)
            self.assertEqual(self.exchanges.lose(is_safe, 7.0), [] if is_held else [about], (method, delivery))
            self.assertEqual(self.exchanges.held, [about] if is_held else [])
            self.assertIs(self.exchanges.find(b"1"), about if is_held else None)
            self.assertEqual((about.resends, about.delivery), (resends, delivery), "how far it got stays known")
            self.assertEqual((about.deadline, self.exchanges.in_flight), (7.0 if is_held else 0.0, {}))

    def test_order(self) -> None:
        """What is held again goes by its arrival, before what came later and was held all the time."""
        self.exchanges.hold(exchange(9, arrived=9.0), 10.0)
        for arrived in (3, 1, 2):
            self.sent(exchange(arrived, READ, arrived), Delivery.SENT)
        self.assertEqual(self.exchanges.lose(is_safe, 10.0), [])
        self.assertEqual(ids(self.exchanges.held), [b"1", b"2", b"3", b"9"])

    def test_answered_oldest_first(self) -> None:
        """What must be answered is told by its arrival, whether it may not go again or finds no room."""
        self.exchanges = Exchanges(1, BYTES)
        for number, method in enumerate((READ, READ, CALL)):
            self.sent(exchange(number, method, number), Delivery.SENT)
        self.assertEqual(ids(self.exchanges.lose(is_safe, 10.0)), [b"1", b"2"])
        self.assertEqual(ids(self.exchanges.held), [b"0"])


MOVES = st.lists(
    st.tuples(
        st.sampled_from(("hold", "hold", "send", "send", "sent", "accepted", "cancel", "answer", "drop"))
        | st.sampled_from(("release", "expire", "lose", "give up")),
        st.integers(0, 30),
    ),
    max_size=60,
)


class Fates:
    """A client's requests, and how often each had an outcome; to be cancelled is one."""

    def __init__(self) -> None:
        self.exchanges = Exchanges(LIMIT, BYTES)
        self.requests: list[Exchange] = []
        self.outcomes: Counter[bytes] = Counter()

    def over(self, gone: Iterable[Exchange | None]) -> None:
        """These need not wait any longer."""
        self.outcomes.update(ids(each for each in gone if each is not None and not each.cancelled))

    def begin(self, about: Exchange, move: Callable[[Exchange], None]) -> None:
        """Hold or dispatch a request."""
        try:
            move(about)
        except Overloaded:
            self.over([about])

    def make(self, move: str, amount: int, now: int) -> None:
        """Make a move, if there is something to make it with."""
        exchanges, chosen = self.exchanges, [*self.exchanges.in_flight.values()]
        about = chosen[amount % len(chosen)] if chosen else None
        if move in ("hold", "send"):
            self.requests.append(exchange(now, READ if amount % 2 else CALL, now, text="x" * 10 * amount))
            hold = partial(exchanges.hold, deadline=now + amount)
            self.begin(self.requests[-1], hold if move == "hold" else exchanges.dispatch)
        elif move == "release":
            for each in exchanges.ready(now):
                self.begin(each, exchanges.dispatch)
        elif move == "expire":
            self.over(exchanges.expired(now))
        elif move == "give up":
            self.over(exchanges.take_held(lambda _: False))
        elif move == "lose":
            self.over(exchanges.lose(is_safe, now + amount))
        elif about is None:
            return
        elif move == "answer":
            self.over([exchanges.answered(about.backend_id)])
        elif move == "sent":
            about.was_sent()
        elif move == "accepted":
            about.delivery = Delivery.ACCEPTED
        else:
            self.over([about])
            about.cancelled = about.cancelled or move == "cancel"
            if move == "drop":
                exchanges.drop(about)


class Outcomes(SynchronousTestCase):
    @settings(max_examples=300, deadline=None)
    @given(MOVES)
    def test_exactly_one(self, moves: list[tuple[str, int]]) -> None:
        """Whatever happens in whatever order, no bound is exceeded, and each request has exactly one outcome."""
        self.patch(module, "MAX_IN_FLIGHT", LIMIT)
        fates = Fates()
        exchanges = fates.exchanges
        for now, (move, amount) in enumerate([*moves, ("lose", 0), ("give up", 0)]):
            fates.make(move, amount, now)
            self.assertLessEqual(max(len(exchanges.held), len(exchanges.in_flight)), LIMIT)
            self.assertLessEqual(exchanges.held_bytes, BYTES)
            self.assertFalse([each for each in exchanges.held if each.cancelled], "held although nobody waits")
            waiting = list(exchanges)
            for each in fates.requests:
                (identity,) = ids([each])
                is_over = each not in waiting or each.cancelled
                self.assertEqual(fates.outcomes[identity], int(is_over), f"{move}: {identity!r}")
                self.assertIs(exchanges.find(identity), each if each in waiting else None)
        self.assertEqual(waiting, [])
