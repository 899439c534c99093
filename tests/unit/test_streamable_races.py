"""Sessions of Streamable HTTP clients under random interleavings, and what must hold whatever happens.

Two clients with credentials of their own, one of revision 2025-11-25 and one of 2025-03-26, which sends arrays; their
connections break with and without the proxy noticing; a backend whose every move is drawn. The invariants are the
promise: every request gets exactly one answer, on its own reply or on its resumption, what is not safe is not executed
twice, nothing exceeds its bound, nothing reaches another client, and no reply stays open when nothing is outstanding.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.frontend.limits import Streams
from mcp_proxy.frontend.modern import ModernFront
from mcp_proxy.frontend.streamable import StreamableFront
from mcp_proxy.session.era import Era
from mcp_proxy.session.lifecycle import Phase
from mcp_proxy.session.policy import Policy
from mcp_proxy.session.pool import Pool
from mcp_proxy.session.replies import MAX_BYTES, MAX_FINISHED
from tests.unit.session_world import SIGNS, World, initialize_result, signal
from tests.unit.streamable_world import Backend, Client

POLICY = Policy(max_held=4, max_held_bytes=2000, max_attempts=3, reconnect_delay=1.0)
METHODS = ("tools/call", "tools/call", "tools/list", "resources/read", "x/unknown", "ping")
UNSAFE = ("tools/call", "x/unknown")
VERSIONS = {"alice": "2025-11-25", "bob": "2025-03-26"}
WHO = st.sampled_from(tuple(VERSIONS))
#: So that no finished reply has to make room for another.
MAX_ASKED = MAX_FINISHED - 4


class Races(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(POLICY)
        self.world.backend = Backend()
        clock, registry = self.world.clock, self.world.registry
        make_pool = partial(Pool, registry.once, clock, POLICY, max_sessions=10, idle_timeout=1800.0)
        self.front = StreamableFront(
            registry, ModernFront(registry, lambda: False, Era(), Streams(), make_pool), Streams()
        )
        self.clients: dict[str, Client] = {}
        self.asked: dict[str, list[str]] = {"alice": [], "bob": []}
        self.cancelled: set[str] = set()
        self.executions: dict[str, int] = {}
        self.count = 0

    @initialize()
    def connect_both(self) -> None:
        """Both clients initialize."""
        for name, version in VERSIONS.items():
            client = self.clients[name] = Client(self.front, name)
            params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": name, "version": "1"}}
            stream = client.send(self._request("hello", "initialize", params), ["hello"])
            (client.session,) = (each for each in self.world.registry if each.owner not in self._owners(name))
            link = self.world.connect(client)  # type: ignore[arg-type]
            link.take()
            link.say(id="hello", result={**initialize_result(tools={}), "protocolVersion": version})
            assert stream.status == 200
            client.headers = (*client.headers, *(h for h in stream.headers if h[0] == b"mcp-session-id"))
            client.send({"jsonrpc": "2.0", "method": "notifications/initialized"}, [])
            link.take()

    def _owners(self, name: str) -> list[bytes]:
        return [other.session.owner for own, other in self.clients.items() if own != name]

    @staticmethod
    def _request(identity: str, method: str, params: Any) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": identity, "method": method, "params": params}

    # -- clients -----------------------------------------------------------------------------------------------

    @rule(who=WHO, method=st.sampled_from(METHODS))
    def ask(self, who: str, method: str) -> None:
        """A client sends a request that carries its name."""
        self._ask(who, [method])

    @rule(methods=st.lists(st.sampled_from(METHODS), min_size=1, max_size=3))
    def ask_in_array(self, methods: list[str]) -> None:
        """The older client sends several in an array."""
        self._ask("bob", methods, is_batch=True)
        for _ in self.clients["bob"].link.queue[:]:
            self.take("bob", "accepted")

    @rule(who=WHO, is_batch=st.booleans(), data=st.data())
    def ask_for_a_stream(self, who: str, is_batch: bool, data: st.DataObject) -> None:
        """A client sends a call, which is answered with a stream if it is delivered."""
        if is_batch and who == "bob":
            self.ask_in_array(["tools/call", "tools/list"])
        else:
            self.ask_and_post(who, "tools/call")
        for _ in range(2):
            self.speak_about(who, data, "notifications/message")

    def _ask(self, who: str, methods: list[str], *, is_batch: bool = False) -> None:
        if len(self.asked[who]) + len(methods) > MAX_ASKED:
            return
        messages = []
        for method in methods:
            self.count += 1
            identity = f"{who}-{self.count}"
            self.asked[who].append(identity)
            messages.append(self._request(identity, method, {"name": identity, "_meta": {"progressToken": identity}}))
        self.clients[who].send(messages if is_batch else messages[0], [each["id"] for each in messages])

    @rule(who=WHO)
    def notify(self, who: str) -> None:
        """A client sends a notification."""
        self.clients[who].send({"jsonrpc": "2.0", "method": "notifications/x", "params": {"of": who}}, [])

    @rule(who=WHO, data=st.data())
    def cancel(self, who: str, data: st.DataObject) -> None:
        """A client cancels one of its newest requests, perhaps again."""
        newest = self.asked[who][-4:]
        if newest:
            identity = data.draw(st.sampled_from(newest))
            params = {"requestId": identity}
            message = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
            if self.clients[who].send(message, []).status == 202:
                self.cancelled.add(identity)

    @rule(who=WHO)
    def answer_backend(self, who: str) -> None:
        """A client answers all that it was ever asked, also what is stale."""
        client = self.clients[who]
        for request in [each for each in client.seen if "method" in each and "id" in each]:
            client.send({"jsonrpc": "2.0", "id": request["id"], "result": {"of": who}}, [])

    @rule(who=WHO, data=st.data(), is_noticed=st.booleans())
    def cut(self, who: str, data: st.DataObject, is_noticed: bool) -> None:
        """One of a client's connections breaks; the proxy may not notice for long."""
        client = self.clients[who]
        streams = [stream for stream in client.streams if not (stream.closed or stream.is_cut)]
        streams = [stream for stream in streams if stream.started and stream is not client.general] or streams
        if streams:
            stream = data.draw(st.sampled_from(streams))
            # a client that has heard nothing on its stream cannot say what it has missed
            stream.is_cut = is_noticed or stream is not client.general or client.last_event != ""
            if is_noticed:
                stream.go()

    @rule(who=WHO)
    def notice(self, who: str) -> None:
        """The proxy notices."""
        for stream in self.clients[who].streams:
            if stream.is_cut:
                stream.go()

    @rule(who=WHO)
    def listen(self, who: str) -> None:
        """A client opens its stream, whether or not the old one is known to be gone."""
        self.clients[who].listen()

    @rule(who=WHO, data=st.data(), is_noticed=st.booleans())
    def cut_and_resume(self, who: str, data: st.DataObject, is_noticed: bool) -> None:
        """A connection breaks; the client is back after the backend's next answer."""
        self.cut(who, data, is_noticed)
        self.reply(who, data)
        self.resume(who)

    @rule(who=WHO)
    def resume(self, who: str) -> None:
        """A client asks for the rest of what broke."""
        client = self.clients[who]
        for post in client.lost():
            if post.last_event:
                client.resume(post)
                left = set(client.missing(post)) - self.cancelled
                assert post.stream.status == 200 or not left, "the rest of a reply is gone"

    @rule(who=WHO, data=st.data(), is_slow=st.booleans())
    def read_slowly(self, who: str, data: st.DataObject, is_slow: bool) -> None:
        """A client stops reading one of its streams, or reads it again."""
        streams = [each for each in self.clients[who].streams if each.started and not each.closed]
        if streams:
            stream = data.draw(st.sampled_from(streams))
            if stream.paused is not is_slow:
                stream.paused = is_slow
                (stream.watcher.paused if is_slow else stream.watcher.resumed)()

    @rule()
    def keep_alive(self) -> None:
        """Idle streams get a comment."""
        self.front.keep_alive()

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

    @rule(who=WHO, outcome=st.sampled_from(("accepted",) * 4 + ("refused", "lost", "404", "400", "401", "500", "503")))
    def take(self, who: str, outcome: str) -> None:
        """The oldest message of a link is posted, and this comes of it."""
        link = self.clients[who].link
        if not link.queue or link.is_closed:
            return
        message = json.loads(link.queue[0].raw)
        assert ("bob" if who == "alice" else "alice") not in json.dumps(message), "a link carries another's message"
        # what is refused before dispatch was not executed; a gateway's 503 and a reset leave it open
        if outcome in ("accepted", "lost", "500", "503") and message.get("method") in UNSAFE:
            self.executions[message["id"]] = self.executions.get(message["id"], 0) + 1
        link.take(outcome)

    @rule(who=WHO, data=st.data())
    def reply(self, who: str, data: st.DataObject) -> None:
        """The backend answers something that it has accepted, perhaps again if nothing else is left."""
        link = self.clients[who].link
        requests = [m for m in link.taken if "id" in m and "method" in m]
        requests = [m for m in requests if m["id"] not in self.clients[who].answers] or requests
        if requests and not link.is_closed:
            self._reply(who, data.draw(st.sampled_from(requests)))

    def _reply(self, who: str, request: dict[str, Any]) -> None:
        result: dict[str, Any] = {"of": who}
        if request["method"] == "initialize":
            result = initialize_result(tools={})
        elif request["method"] == "tools/list":
            result = {"tools": [{"name": who}]}
        self.clients[who].link.say(id=request["id"], result=result)

    @rule(who=WHO, data=st.data(), what=st.sampled_from(("stream", "notifications/message", "sampling/createMessage")))
    def speak_about(self, who: str, data: st.DataObject, what: str) -> None:
        """The backend says something on the stream of a request that it has not answered."""
        link = self.clients[who].link
        in_flight = self.clients[who].session._courier._exchanges.in_flight.values()
        open_ = [each.exchange for each in link.posted if each.exchange is not None and each.exchange in in_flight]
        if not open_ or link.is_closed:
            return
        about = data.draw(st.sampled_from(open_))
        params = {"of": who, "about": json.loads(about.message.id or b"")}
        if what == "stream":
            link.owner.link_streaming(link, about)
        elif what.startswith("notifications"):
            link.say_about(about, method=what, params=params)
        else:
            link.say_about(about, id=0, method=what, params=params)

    @rule(who=WHO, is_question=st.booleans())
    def speak(self, who: str, is_question: bool) -> None:
        """The backend says something that belongs to no request; the ids of its own repeat."""
        link = self.clients[who].link
        if link.is_open and not link.is_closed:
            if is_question:
                link.say(id=0, method="roots/list", params={"of": who})
            else:
                link.say(method="notifications/message", params={"of": who})

    @rule(who=WHO, sign=st.sampled_from(("lost", "lost", "gave_up", *SIGNS)))
    def trouble(self, who: str, sign: str) -> None:
        """A link breaks, or the backend seems to want to stop, does, or does not; or all give up on it."""
        if sign == "lost":
            self.clients[who].link.lose()
        elif sign != "gave_up":
            signal(self.clients[who].session, sign)
        else:
            self.world.backend.spent = True
            for seeker in list(self.world.backend.waiting):
                seeker.backend_gave_up()

    @rule(who=WHO)
    def restart(self, who: str) -> None:
        """A link breaks, and the backend is there again."""
        self.clients[who].link.lose()
        self.restart_well(who)

    @rule(seconds=st.sampled_from((0.1, 6.0, 50.0)))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.world.clock.advance(seconds)

    # -- the promise -------------------------------------------------------------------------------------------

    @invariant()
    def one_answer_at_most(self) -> None:
        """No request is answered twice."""
        for client in self.clients.values():
            twice = [identity for identity, times in client.answers.items() if times > 1]
            assert not twice, f"answered twice: {twice}"

    @invariant()
    def none_ends_in_silence(self) -> None:
        """No reply ends without an answer to each of its requests but those that were cancelled."""
        for client in self.clients.values():
            for post in client.posts:
                if post.stream.closed and not post.stream.is_cut:
                    left = set(client.missing(post)) - self.cancelled
                    assert not left, f"never answered: {left}"

    @invariant()
    def nothing_crosses(self) -> None:
        """What a client sees names itself alone."""
        for who, client in self.clients.items():
            other = "bob" if who == "alice" else "alice"
            assert other not in json.dumps(client.seen)

    @invariant()
    def nothing_runs_twice(self) -> None:
        """What is not safe to repeat reaches a backend that may execute it at most once."""
        for identity, times in self.executions.items():
            assert times <= 1, f"{identity} was executed {times} times"

    @invariant()
    def bounds_hold(self) -> None:
        """No buffer exceeds its bound, and no more replies are open than requests."""
        for client in self.clients.values():
            courier = client.session._courier
            assert courier.held <= POLICY.max_held
            assert courier._exchanges.held_bytes <= POLICY.max_held_bytes
            assert len(client.outlet._finished) <= MAX_FINISHED
            assert sum(reply.size for reply in client.outlet._finished.values()) <= MAX_BYTES
            awaited = [each.reply for each in courier._exchanges if not each.cancelled]
            assert all(reply in awaited for reply in client.outlet._open.values()), (
                "a reply is open that nothing will come of"
            )

    @invariant()
    def slow_ones_pause_their_own(self) -> None:
        """An open link is paused for what its client does not read, and for nothing else."""
        for client in self.clients.values():
            link = client.link
            if link.is_open and not link.is_closed and client.session.link is link:
                assert link.pausers == set(client.outlet.paused)

    @rule()
    def everything_heals(self) -> None:
        """Once all stays up, what can be answered is: on its own reply, or on its resumption."""
        for who, client in self.clients.items():
            self.notice(who)
            client.session.credentials.take_challenge()
            client.listen()
            self.resume(who)
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
        for client in self.clients.values():
            assert client.session.phase is Phase.LIVE, client.session.phase
            assert client.told == list(range(1, client.outlet.last_event + 1)), "told more or less than once"
            for post in client.posts:
                assert post.stream.closed, f"the reply to {post.identities} stays open"
                left = set(client.missing(post)) - self.cancelled
                assert not left or not post.last_event, f"never answered: {left}"

    def teardown(self) -> None:
        """At the end all is well, and nothing is left behind."""
        if self.clients:
            self.everything_heals()
            self.one_answer_at_most()
            self.nothing_runs_twice()
            for client in self.clients.values():
                client.session.close()
                assert all(stream.closed for stream in client.streams), "a stream outlives its session"
            assert self.front._streams == {}
            assert self.world.clock.getDelayedCalls() == [], "a timer outlives its session"


class StreamableRacesTest(SynchronousTestCase):
    """Trial does not run hypothesis' own test case."""

    def test_races(self) -> None:
        """Whatever the order of events, the promise is kept."""
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            Races,
            settings=settings(
                max_examples=120, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
