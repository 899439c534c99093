"""The registry: a session is found by its owner alone, and neither sessions nor memories exceed their number."""

from __future__ import annotations

from base64 import urlsafe_b64decode
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session import registry as module
from mcp_proxy.session.handshake import Memory
from mcp_proxy.session.outlet import SSEOutlet
from mcp_proxy.session.registry import Registry
from mcp_proxy.session.session import Session
from mcp_proxy.wire.errors import TooManySessions, UnknownSession
from mcp_proxy.wire.headers import Headers
from tests.unit.session_world import Client, World

TIMEOUT = 60


def headers(name: str, agent: str = "") -> Headers:
    """The headers of a client."""
    return ((b"authorization", name.encode()), *(((b"User-Agent", agent.encode()),) if agent else ()))


class SmallWorld(World):
    """A world with little room."""

    def __init__(self, max_sessions: int = 3) -> None:
        super().__init__()
        self.registry = Registry(self._make, max_sessions, TIMEOUT)

    def create(self, name: str, agent: str = "", version: str = "") -> Session:
        """A session; with a version it has initialized, and that is remembered."""
        session = self.registry.create(headers(name, agent), SSEOutlet)
        if version:
            session.memory = Memory(b"{}", version, subscriptions={"a:b": None})
            self.registry.remember(session)
        return session


class RegistryCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = SmallWorld()
        self.registry = self.world.registry

    def tearDown(self) -> None:
        for session in self.world.registry:
            session.close()
        self.assertEqual((len(self.world.registry), self.world.clock.getDelayedCalls()), (0, []))

    def is_unknown(self, session: Session) -> bool:
        """Whether not even its owner finds it."""
        try:
            return self.registry.find(session.id, session.headers) is not session
        except UnknownSession:
            return True


class Finding(RegistryCase):
    def test_ids(self) -> None:
        """An id is long, random, and fit for a URL and a header; a client may have several sessions."""
        first, second = self.world.create("ann"), self.world.create("ann")
        self.assertNotEqual(first.id, second.id)
        self.assertRegex(first.id, "^[A-Za-z0-9_-]{40,}$")
        self.assertGreaterEqual(len(urlsafe_b64decode(first.id + "=" * (-len(first.id) % 4))), 16)
        self.assertIs(self.registry.find(first.id, headers("ann")), first)
        self.assertIs(self.registry.find(second.id, headers("ann")), second)

    def test_outlet_knows_the_id(self) -> None:
        """The client's side is made from the id that the session has."""
        outlets: dict[str, SSEOutlet] = {}
        session = self.registry.create(headers("ann"), lambda token: outlets.setdefault(token, SSEOutlet(token)))
        self.assertEqual(outlets, {session.id: session.outlet})

    def test_strangers(self) -> None:
        """Whoever shows another credential, or none, learns what one learns who has made up the id."""
        session = self.world.create("ann")
        told = set[str]()
        for token, own in (
            *((session.id, other) for other in (headers("eve"), (), ((b"x-api-key", b"ann"),), headers("ann") * 2)),
            *((token, headers("ann")) for token in ("", session.id[:-1], session.id + "A", session.id.swapcase())),
        ):
            for find in (self.registry.find, self.registry.find_for_message):
                told.add(self.assertRaises(UnknownSession, find, token, own).message)
        self.assertEqual(len(told), 1)

    def test_credential_alone(self) -> None:
        """Of the headers only the credential decides, whatever the case of its name."""
        session = self.world.create("ann", agent="a")
        own = ((b"X-Other", b"1"), (b"AUTHORIZATION", b"ann"), (b"user-agent", b"b"))
        self.assertIs(self.registry.find(session.id, own), session)
        anonymous = self.registry.create((), SSEOutlet)
        self.assertIs(self.registry.find(anonymous.id, ((b"x-other", b"1"),)), anonymous)

    def test_digest(self) -> None:
        """The digest of an owner is keyed: it means nothing outside this proxy, and does not hold the secret."""
        here, there = self.world.create("secret"), SmallWorld().create("secret")
        self.assertNotEqual(here.owner, there.owner)
        self.assertEqual(here.owner, self.world.create("secret").owner)
        self.assertNotIn(b"secret", here.owner)


class Room(RegistryCase):
    def test_once(self) -> None:
        """Sessions of one request each have a bound of their own, are found by nobody, and leave when they are over."""
        passing = [self.registry.once(headers("ann"), SSEOutlet("")) for _ in range(3)]
        self.assertRaises(TooManySessions, self.registry.once, headers("ann"), SSEOutlet(""))
        self.assertEqual((len(self.registry), set(self.registry)), (0, set(passing)))
        self.assertRaises(UnknownSession, self.registry.find, passing[0].id, headers("ann"))
        self.registry.expire(self.world.clock.seconds() + 2 * TIMEOUT)
        self.assertEqual(passing[0].owner, self.world.create("ann").owner)
        passing[0].close()
        self.registry.once(headers("ann"), SSEOutlet(""))
        self.assertNotIn(passing[0], set(self.registry))
        self.assertIn(passing[1], set(self.registry), "idle as it is")

    def test_full(self) -> None:
        """Where every session has a client another is refused, and none of them suffers."""
        clients = [self.world.client(name) for name in "abc"]
        self.assertRaises(TooManySessions, self.world.create, "d")
        self.assertEqual((len(self.registry), self.registry.connected), (3, 3))
        self.assertFalse([client for client in clients if self.is_unknown(client.session)])

    def test_longest_idle(self) -> None:
        """The session that has been without a client for longest makes room, and that one alone."""
        clients = [self.world.client(name) for name in "abc"]
        for name in (1, 0):
            self.world.clock.advance(1)
            clients[name].detach()
        self.world.create("d")
        self.assertEqual([self.is_unknown(client.session) for client in clients], [False, True, False])
        self.assertEqual((len(self.registry), self.registry.connected), (3, 1))

    def test_expire(self) -> None:
        """A session is forgotten when its time without a client is up and not before; one with a client never."""
        self.world.client("a")
        idle = self.world.live("b")
        self.world.clock.advance(5 * TIMEOUT)
        idle.detach()
        since = self.world.clock.seconds()
        self.registry.expire(since + TIMEOUT - 0.1)
        self.assertEqual(len(self.registry), 2)
        self.registry.expire(since + TIMEOUT)
        self.assertEqual((len(self.registry), self.is_unknown(idle.session)), (1, True))

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from(("create", "create", "attach", "detach", "close", "expire")), st.integers(0, 9))
        )
    )
    def test_bound(self, moves: list[tuple[str, int]]) -> None:
        """However clients come and go there are never too many sessions, and each that is not over is found."""
        self.world = SmallWorld(max_sessions=3)
        self.registry = self.world.registry
        clients: list[Client] = []
        for move, number in moves:
            client = clients[number % len(clients)] if clients else None
            if move == "create":
                try:
                    clients.append(Client(self.world, f"c{number}"))
                except TooManySessions:
                    self.assertEqual(self.registry.connected, 3, "refused although there was room")
            elif move == "expire":
                self.world.clock.advance(number * 10)
                self.registry.expire(self.world.clock.seconds())
            elif client is not None and move == "close":
                client.session.close()
            elif client is not None and not self.is_unknown(client.session):
                getattr(client, move)()
            clients = [each for each in clients if not self.is_unknown(each.session)]
            self.assertLessEqual(len(self.registry), 3)
            self.assertEqual({each.session for each in clients}, set(self.registry))
            self.assertEqual(self.registry.connected, sum(each.stream is not None for each in clients))


class Remembering(RegistryCase):
    def recalled(self, name: str, agent: str = "") -> Any:
        """The revision of what a new session of this client recalls."""
        memory = self.registry.recall(self.world.create(name, agent))
        return memory and memory.version

    def test_kind_of_client(self) -> None:
        """A client recalls the last handshake of its own kind, else the last one under its credential, else none."""
        self.world.create("ann", "cursor", "1")
        self.world.create("ann", "claude", "2")
        self.assertEqual(self.recalled("ann", "cursor"), "1")
        self.assertEqual(self.recalled("ann", "claude"), "2")
        self.assertEqual(self.recalled("ann", "other"), "2")
        self.assertEqual(self.recalled("ann"), "2")
        self.assertIsNone(self.recalled("eve", "cursor"))
        self.world.create("ann", "cursor", "3")
        self.assertEqual((self.recalled("ann", "cursor"), self.recalled("ann")), ("3", "3"))

    def test_handshake_alone(self) -> None:
        """Recalled is the handshake and nothing else, a copy each time, also when the session is over."""
        session = self.world.create("ann", version="1")
        session.memory.version = "later"
        session.close()
        fresh = self.world.create("ann")
        memory = self.registry.recall(fresh)
        assert memory is not None
        self.assertEqual(memory, Memory(b"{}", "1", initialized=True))
        memory.subscriptions["x:y"] = True
        self.assertEqual(self.registry.recall(fresh), Memory(b"{}", "1", initialized=True))

    def test_bound(self) -> None:
        """Handshakes are remembered for so many clients; those who initialized last are."""
        self.patch(module, "MAX_REMEMBERED", 3)
        for name in "abcad":
            self.world.create(name, version=name)
        self.assertEqual([name for name in "abcd" if self.recalled(name)], ["a", "c", "d"])
