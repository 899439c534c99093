"""The session under random interleavings of everything that can happen, and what must hold whatever happens.

Two clients with credentials of their own; a backend whose every move is drawn. The invariants are the promise:
every request gets exactly one answer, what is not safe is not executed twice, nothing exceeds its bound, and
nothing reaches another client.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.lifecycle import Phase
from mcp_proxy.session.outlet import MAX_EVENTS
from mcp_proxy.session.policy import Policy
from tests.unit.session_world import SIGNS, Client, World, initialize_result, signal

POLICY = Policy(max_held=4, max_held_bytes=2000, max_attempts=3, reconnect_delay=1.0)
METHODS = ("tools/call", "tools/call", "tools/list", "resources/read", "x/unknown", "ping")
WHO = st.sampled_from(("alice", "bob"))


class Races(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(POLICY)
        self.clients: dict[str, Client] = {}
        self.asked: dict[str, list[str]] = {"alice": [], "bob": []}
        self.cancelled: set[str] = set()
        self.executions: dict[str, int] = {}
        self.count = 0

    @initialize()
    def connect_both(self) -> None:
        """Both clients initialize."""
        self.clients = {name: self.world.live(name, tools={}) for name in ("alice", "bob")}

    # -- clients -----------------------------------------------------------------------------------------------

    @rule(who=WHO, method=st.sampled_from(METHODS))
    def ask(self, who: str, method: str) -> None:
        """A client sends a request that carries its name."""
        self.count += 1
        identity = f"{who}-{self.count}"
        self.asked[who].append(identity)
        self.clients[who].send(id=identity, method=method, params={"name": identity})

    @rule(who=WHO)
    def notify(self, who: str) -> None:
        """A client sends a notification."""
        self.clients[who].send(method="notifications/x", params={"of": who})

    @rule(who=WHO, data=st.data())
    def cancel(self, who: str, data: st.DataObject) -> None:
        """A client cancels one of its requests."""
        if self.asked[who]:
            identity = data.draw(st.sampled_from(self.asked[who]))
            self.cancelled.add(identity)
            self.clients[who].send(method="notifications/cancelled", params={"requestId": identity})

    @rule(who=WHO)
    def answer_backend(self, who: str) -> None:
        """A client answers all that it was ever asked, also what is stale."""
        for request in self.clients[who].told("sampling/createMessage"):
            self.clients[who].send(id=request["id"], result={"of": who})

    @rule(who=WHO)
    def leave(self, who: str) -> None:
        """A client's connection breaks."""
        self.clients[who].detach()

    @rule(who=WHO)
    def come_back(self, who: str) -> None:
        """A client connects again, whether or not the old connection is known to be gone."""
        self.clients[who].attach()

    # -- the backend -------------------------------------------------------------------------------------------

    @rule(who=WHO, outcome=st.sampled_from(("open", "open", "open", "refused", "rejected", "hangs")))
    def try_to_connect(self, who: str, outcome: str) -> None:
        """A session gets its turn, and this comes of it."""
        client = self.clients[who]
        if client.session.uplink not in self.world.backend.waiting:
            return
        self.world.backend.give_turn(client.session.uplink)
        if client.session.phase is not Phase.CONNECTING:
            return
        if outcome == "open":
            client.link.accept()
        elif outcome != "hangs":
            client.link.lose("connection refused", reachable=outcome == "rejected")

    @rule(who=WHO)
    def restart_well(self, who: str) -> None:
        """The backend is there again, if it was not, and the handshake goes through."""
        self.try_to_connect(who, "open")
        link = self.clients[who].link
        if link.is_open and not link.is_closed:
            World.shake_hands(link, {"tools/list": [{"name": who}]})

    @rule(who=WHO, method=st.sampled_from(METHODS))
    def ask_and_post(self, who: str, method: str) -> None:
        """A client sends a request, and it is accepted unless it is held."""
        self.ask(who, method)
        for _ in self.clients[who].link.queue[:]:
            self.take(who, "accepted")

    @rule(who=WHO)
    def open_at_last(self, who: str) -> None:
        """A connection that hung is accepted."""
        client = self.clients[who]
        if client.session.phase is Phase.CONNECTING and not client.link.is_closed:
            client.link.accept()

    @rule(who=WHO, outcome=st.sampled_from(("accepted",) * 3 + ("refused", "lost", "404", "400", "503")))
    def take(self, who: str, outcome: str) -> None:
        """The oldest message of a link is posted, and this comes of it."""
        link = self.clients[who].link
        if not link.queue or link.is_closed:
            return
        message = json.loads(link.queue[0].raw)
        # what is refused before dispatch was not executed; a gateway's 503 and a reset leave it open
        if outcome in ("accepted", "lost", "503") and message.get("method") in ("tools/call", "x/unknown"):
            identity = message["id"]
            self.executions[identity] = self.executions.get(identity, 0) + 1
        self._check_owner(who, message)
        link.take(outcome)

    def _check_owner(self, who: str, message: dict[str, Any]) -> None:
        other = "bob" if who == "alice" else "alice"
        assert other not in json.dumps(message), f"{who}'s link carries {other}'s message"

    @rule(who=WHO, data=st.data())
    def reply(self, who: str, data: st.DataObject) -> None:
        """The backend answers something that it has accepted, perhaps again."""
        link = self.clients[who].link
        requests = [m for m in link.taken if "id" in m and "method" in m]
        if requests and not link.is_closed:
            self._reply(who, data.draw(st.sampled_from(requests)))

    @rule(who=WHO)
    def reply_early(self, who: str) -> None:
        """The backend has carried out a message, and answers it before its POST."""
        link = self.clients[who].link
        if link.queue and not link.is_closed:
            outgoing, message = link.queue[0], json.loads(link.queue[0].raw)
            if "id" in message and "method" in message and message["id"] not in self.executions:
                link.owner.link_sent(link, outgoing)
                self.executions[message["id"]] = 0  # counted when its POST is
                self._reply(who, message)

    def _reply(self, who: str, request: dict[str, Any]) -> None:
        result: dict[str, Any] = {"of": who}
        if request["method"] == "initialize":
            result = initialize_result(tools={})
        elif request["method"] == "tools/list":
            result = {"tools": [{"name": who}]}
        self.clients[who].link.say(id=request["id"], result=result)

    @rule(who=WHO)
    def backend_asks(self, who: str) -> None:
        """The backend sends a request of its own; its ids repeat."""
        link = self.clients[who].link
        if link.is_open and not link.is_closed:
            link.say(id=0, method="sampling/createMessage", params={"of": who})

    @rule(who=WHO)
    def lose(self, who: str) -> None:
        """A link breaks."""
        self.clients[who].link.lose()

    @rule(who=WHO, sign=st.sampled_from(SIGNS))
    def ending(self, who: str, sign: str) -> None:
        """The backend seems to want to stop, does, or does not."""
        signal(self.clients[who].session, sign)

    @rule()
    def give_up(self) -> None:
        """The budget of an outage is spent."""
        self.world.backend.spent = True
        for seeker in list(self.world.backend.waiting):
            seeker.backend_gave_up()

    @rule(seconds=st.sampled_from((0.1, 1.0, 6.0, 30.0, 50.0)))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.world.clock.advance(seconds)

    # -- the promise -------------------------------------------------------------------------------------------

    @invariant()
    def one_answer_at_most(self) -> None:
        """No request is answered twice, and nobody sees an answer to a request that it did not send."""
        for who, client in self.clients.items():
            answers = [m["id"] for m in client.seen if "method" not in m and m["id"] != 0]
            assert len(answers) == len(set(answers)), "a request was answered twice"
            assert set(answers) <= set(self.asked[who]), "an answer to nobody's request"

    @invariant()
    def nothing_crosses(self) -> None:
        """What a client sees names itself alone."""
        for who, client in self.clients.items():
            other = "bob" if who == "alice" else "alice"
            assert other not in json.dumps([m for m in client.seen if m.get("id") != 0])

    @invariant()
    def nothing_runs_twice(self) -> None:
        """What is not safe to repeat reaches a backend that may execute it at most once."""
        for identity, times in self.executions.items():
            assert times <= 1, f"{identity} was executed {times} times"

    @invariant()
    def bounds_hold(self) -> None:
        """No buffer exceeds its bound."""
        for client in self.clients.values():
            courier = client.session._courier
            assert courier.held <= POLICY.max_held
            assert courier._exchanges.held_bytes <= POLICY.max_held_bytes
            assert len(client.session.outlet._channel._log) <= MAX_EVENTS

    @precondition(lambda self: bool(self.clients))
    @rule()
    def everything_heals(self) -> None:
        """Once the backend stays up and the clients come back, every request that was not cancelled is answered."""
        for client in self.clients.values():
            client.attach()
        for _ in range(60):
            self.world.clock.advance(1.0)
            for who, client in self.clients.items():
                if client.session.uplink in self.world.backend.waiting:
                    self.world.backend.give_turn(client.session.uplink)
                if client.session.phase is Phase.CONNECTING and not client.link.is_closed:
                    client.link.accept()
                client.session.uplink.backend_not_ending(was_gone=False)
                while client.link.queue and not client.link.is_closed:
                    self.take(who, "accepted")
                for request in [m for m in client.link.taken if "id" in m and "method" in m]:
                    self._reply(who, request)
        for who, client in self.clients.items():
            assert client.session.phase is Phase.LIVE, client.session.phase
            answered = {m["id"] for m in client.seen if "method" not in m}
            missing = set(self.asked[who]) - answered - self.cancelled
            assert not missing, f"never answered: {missing}"

    def teardown(self) -> None:
        """At the end all is well, and nothing is left behind."""
        if self.clients:
            self.everything_heals()
            self.one_answer_at_most()
            self.nothing_runs_twice()
            for client in self.clients.values():
                client.session.close()
            assert self.world.clock.getDelayedCalls() == [], "a timer outlives its session"


class RacesTest(SynchronousTestCase):
    """Trial does not run hypothesis' own test case."""

    def test_races(self) -> None:
        """Whatever the order of events, the promise is kept."""
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            Races,
            settings=settings(
                max_examples=250, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
