"""Two clients with different credentials who know each other's ids: nothing crosses."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.support import messages
from tests.support.memory import JSON_HEAD, Connection, House, encoded

NAMES = ("ann", "bob")
SETTINGS = settings(max_examples=60, deadline=None)
ATTACKS = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from(("POST /mcp", "GET /mcp", "DELETE /mcp", "resume", "POST /messages", "adopt", "GET /mcp/sse")),
        st.sampled_from(("other", "none")),
    ),
    min_size=1,
    max_size=25,
)


class Person:
    """One client: a Streamable HTTP session with a GET stream, and an HTTP+SSE session. Its secret is its name."""

    def __init__(self, house: House, name: str) -> None:
        self.name = name
        self.secret = f"secret-of-{name}"
        self.key = (b"authorization", b"Bearer " + name.encode())
        self._house = house
        hello = encoded(messages.initialize("hello"))
        began = house.ask("POST", "/mcp", (*JSON_HEAD, self.key), hello)
        self.session = (b"mcp-session-id", began.answer.header(b"mcp-session-id"))
        self.listening = house.ask("GET", "/mcp", ((b"accept", b"text/event-stream"), self.key, self.session))
        self.stream = house.initialized(self.key)
        self.calls = 0

    def work(self) -> None:
        """Call a tool in both sessions; the answers, and what is logged for a resume, hold the secret."""
        self.calls += 1
        call = messages.request("tools/call", f"{self.name}-{self.calls}", {"name": "t", "secret": self.secret})
        answer = self._house.post("/mcp", call, self.key, self.session)
        assert self.secret.encode() in answer.body
        self._house.post(self.stream.path, call, self.key)
        for link in self._house.backend.made:
            if link.sent and self.secret in repr(link.sent):
                link.tell(messages.notification("notifications/message", {"data": self.secret}))

    @property
    def event_ids(self) -> list[str]:
        """The ids of all events that it has got."""
        return [event.id for event in (*self.listening.events, *self.stream.events) if event.id]


def attack(house: House, thief: Person, victim: Person, way: str, credential: str) -> Connection:
    """Ask for what is the victim's, with the thief's credential or with none."""
    own = (thief.key,) if credential == "other" else ()
    stream = ((b"accept", b"text/event-stream"), *own)
    call = encoded(messages.request("tools/call", "theft", {"name": "t"}))
    last = victim.event_ids[-1].encode()
    if way == "POST /mcp":
        return house.ask("POST", "/mcp", (*JSON_HEAD, *own, victim.session), call)
    if way == "GET /mcp":
        return house.ask("GET", "/mcp", (*stream, victim.session))
    if way == "GET /mcp/sse":
        return house.ask("GET", "/mcp/sse", (*stream, victim.session))
    if way == "DELETE /mcp":
        return house.ask("DELETE", "/mcp", (*own, victim.session))
    if way == "POST /messages":
        return house.ask("POST", victim.stream.path, (*JSON_HEAD, *own), call)
    if way == "resume":
        return house.ask("GET", "/mcp", (*stream, thief.session, (b"last-event-id", victim.event_ids[0].encode())))
    return house.ask("GET", "/mcp/sse", (*stream, (b"last-event-id", last)))


class Isolation(SynchronousTestCase):
    @SETTINGS
    @given(ATTACKS)
    def test_hammer(self, attacks: list[tuple[str, str, str]]) -> None:
        """Whatever the one asks for with the ids of the other, it is as if they did not exist, and harms nobody."""
        house = House()
        people = {name: Person(house, name) for name in NAMES}
        stolen: list[tuple[Any, Connection, Person]] = []
        for name, way, credential in attacks:
            thief = people[name]
            victim = people[NAMES[1 - NAMES.index(name)]]
            thief.work()
            victim.work()
            connection = attack(house, thief, victim, way, credential)
            stolen.append(((way, credential), connection, victim))
            if way not in ("resume", "adopt"):  # those are given a stream, but an empty one of their own
                self.assertEqual(connection.answer.status, 404, (way, credential))
            thief.work()
            victim.work()
        for what, connection, victim in stolen:
            self.assertNotIn(victim.secret.encode(), connection.raw, what)
            self.assertNotIn(victim.session[1], connection.raw, what)
        for name, person in people.items():
            other = people[NAMES[1 - NAMES.index(name)]]
            for connection in (person.listening, person.stream):
                self.assertFalse(connection.closed)
                self.assertNotIn(other.secret.encode(), connection.raw)
            asked = [each["id"] for link in house.backend.made for each in link.sent if each["method"] == "tools/call"]
            self.assertNotIn("theft", asked)
            self.assertEqual(asked.count(f"{name}-1"), 2)
        house.close()
