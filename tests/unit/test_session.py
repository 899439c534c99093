"""The session: what a client sees while its backend comes and goes, one behaviour at a time."""

from __future__ import annotations

import json
from base64 import urlsafe_b64encode
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.interfaces import HTTPAnswer, Loss
from mcp_proxy.session.lifecycle import Phase
from mcp_proxy.session.outlet import SSEOutlet
from mcp_proxy.session.policy import Policy
from mcp_proxy.wire.errors import NotJSONRPC, UnknownSession
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.jsonrpc import parse
from mcp_proxy.wire.sse import Oversized
from tests.unit.session_world import Client, World, initialize_result

NOT_DELIVERED, UNKNOWN, NOT_RESTORABLE, OVERLOADED = -31001, -31002, -31003, -31004


class SessionCase(SynchronousTestCase):
    """A world, and what is asked of it again and again."""

    def setUp(self) -> None:
        self.world = World()

    def code(self, client: Client, identity: Any) -> int:
        """The code of the one error that answers a request."""
        (answer,) = client.answers(identity)
        return int(answer["error"]["code"])


class Restarts(SessionCase):
    def test_request_while_live(self) -> None:
        """A request goes out as it came and its answer comes back as it came."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t", "big": 12345678901234567890})
        self.assertEqual(client.link.take()["params"]["big"], 12345678901234567890)  # type: ignore[index]
        client.link.say(id=1, result={"ok": True})
        self.assertEqual(client.answers(1), [{"jsonrpc": "2.0", "id": 1, "result": {"ok": True}}])

    def test_handshake_is_replayed(self) -> None:
        """After a loss the new link sees initialize with the negotiated version, initialized, then held requests."""
        client = self.world.live()
        client.link.lose()
        client.send(id=1, method="tools/call", params={"name": "t"})
        link = self.world.connect(client)
        first = link.take()
        assert first is not None
        self.assertEqual((first["method"], first["params"]["protocolVersion"]), ("initialize", "2025-06-18"))
        self.assertEqual(link.queue, [])
        link.say(id=first["id"], result={"protocolVersion": "2025-06-18", "capabilities": {}})
        self.assertEqual([link.take()["method"] for _ in range(2)], ["notifications/initialized", "tools/call"])  # type: ignore[index]
        link.say(id=1, result={})
        self.assertEqual(len(client.answers(1)), 1)
        self.assertEqual(client.answers(first["id"]), [], "the proxy's own handshake is not the client's business")

    def test_mutation_in_flight(self) -> None:
        """A tools/call that the backend accepted is never sent again; the client learns that its fate is unknown."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take()
        client.link.lose()
        self.assertEqual(self.code(client, 1), UNKNOWN)
        data = client.answers(1)[0]["error"]["data"]
        self.assertEqual((data["delivered"], data["retrySafe"], data["source"]), ("yes", False, "proxy"))
        link = self.world.restore(client)
        self.assertEqual([m["method"] for m in link.taken], ["initialize", "notifications/initialized"])
        self.assertEqual(link.queue, [])

    def test_mutation_not_yet_sent(self) -> None:
        """A tools/call that was waiting in the link is sent on the next one."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.lose()
        self.assertEqual(client.answers(1), [])
        link = self.world.restore(client)
        self.assertEqual(link.take()["method"], "tools/call")  # type: ignore[index]

    def test_read_in_flight(self) -> None:
        """A safe request in flight is sent again and answered."""
        client = self.world.live()
        client.send(id=1, method="resources/read", params={"uri": "x:y"})
        client.link.take()
        client.link.lose()
        link = self.world.restore(client)
        self.assertEqual(link.take()["method"], "resources/read")  # type: ignore[index]
        link.say(id=1, result={"contents": []})
        self.assertEqual(len(client.answers(1)), 1)

    def test_request_that_kills(self) -> None:
        """A safe request is not sent for ever: what kills the backend each time is answered at last."""
        client = self.world.live()
        client.send(id=1, method="resources/read", params={"uri": "x:y"})
        for _ in range(4):
            client.link.take()
            client.link.lose()
            self.world.clock.advance(3)
            self.world.restore(client)
        self.assertEqual(self.code(client, 1), UNKNOWN)
        self.assertTrue(client.answers(1)[0]["error"]["data"]["retrySafe"])

    def test_first_initialize_lost(self) -> None:
        """An initialize that was in flight is sent again as the client's own."""
        client = self.world.client()
        link = self.world.connect(client)
        client.send(id=0, method="initialize", params={"protocolVersion": "2025-06-18", "capabilities": {}})
        link.take()
        link.lose()
        link = self.world.connect(client)
        self.assertEqual(link.take()["id"], 0)  # type: ignore[index]
        link.say(id=0, result={"protocolVersion": "2025-06-18", "capabilities": {}})
        self.assertEqual(len(client.answers(0)), 1)

    def test_initialized_late(self) -> None:
        """Where the client had not yet said initialized, the replay does not say it either, and it is said once."""
        client = self.world.client()
        link = self.world.connect(client)
        client.send(id=0, method="initialize", params={"protocolVersion": "2025-06-18", "capabilities": {}})
        link.take()
        link.say(id=0, result={"protocolVersion": "2025-06-18", "capabilities": {}})
        link.lose()
        link = self.world.connect(client)
        World.shake_hands(link)
        self.assertEqual([m["method"] for m in link.taken], ["initialize"])
        client.send(method="notifications/initialized")
        self.assertEqual(link.take()["method"], "notifications/initialized")  # type: ignore[index]
        self.assertEqual(link.queue, [])

    def test_one_handshake(self) -> None:
        """However many requests wait, a link sees one initialize."""
        client = self.world.live()
        client.link.lose()
        for number in range(1, 6):
            client.send(id=number, method="tools/call", params={"name": "t"})
        link = self.world.restore(client)
        while link.queue:
            link.take()
        methods = [m["method"] for m in link.taken]
        self.assertEqual(methods.count("initialize"), 1)
        self.assertEqual([m["id"] for m in link.taken if m["method"] == "tools/call"], [1, 2, 3, 4, 5])

    def test_old_link_is_deaf(self) -> None:
        """What an old link still says goes nowhere."""
        client = self.world.live()
        old = client.link
        old.lose()
        self.world.restore(client)
        old.is_closed = False
        old.say(method="notifications/message", params={"data": "ghost"})
        old.lose()
        self.assertEqual(client.told("notifications/message"), [])
        self.assertIs(client.session.phase, Phase.LIVE)


class Holding(SessionCase):
    def test_deadline(self) -> None:
        """A held request is answered when its time is up, with its own id, and is not sent later."""
        client = self.world.live()
        client.link.lose()
        client.send(id="1", method="tools/call", params={"name": "t"})
        self.world.clock.advance(44.9)
        self.assertEqual(client.answers("1"), [])
        self.world.clock.advance(0.2)
        self.assertEqual(self.code(client, "1"), NOT_DELIVERED)
        link = self.world.restore(client)
        self.assertEqual(link.queue, [])

    def test_bounds(self) -> None:
        """One request too many is refused at once, the others are kept."""
        self.world = World(Policy(max_held=2))
        client = self.world.live()
        client.link.lose()
        for number in (1, 2, 3):
            client.send(id=number, method="tools/call", params={"name": "t"})
        self.assertEqual(self.code(client, 3), OVERLOADED)
        self.assertEqual(client.answers(1), [])
        link = self.world.restore(client)
        self.assertEqual([link.take()["id"] for _ in range(2)], [1, 2])  # type: ignore[index]

    def test_cancelled_while_held(self) -> None:
        """A held request that the client cancels never reaches the backend and is not answered."""
        client = self.world.live()
        client.link.lose()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.send(method="notifications/cancelled", params={"requestId": 1})
        link = self.world.restore(client)
        self.assertEqual((link.queue, client.answers(1)), ([], []))

    def test_gave_up(self) -> None:
        """When the budget is spent whoever waits is answered, later requests at once, and recovery still comes."""
        client = self.world.live()
        client.link.lose()
        client.send(id=1, method="tools/call", params={"name": "t"})
        self.world.backend.spent = True
        client.session.uplink.backend_gave_up()
        client.send(id=2, method="tools/list")
        self.assertEqual((self.code(client, 1), self.code(client, 2)), (NOT_DELIVERED, NOT_DELIVERED))
        self.world.restore(client)
        client.send(id=3, method="tools/list")
        self.assertEqual(client.link.take()["id"], 3)  # type: ignore[index]

    def test_initialize_outlives_the_budget(self) -> None:
        """An initialize is held for its own time even when the budget is spent."""
        client = self.world.client()
        client.send(id=0, method="initialize", params={"protocolVersion": "2025-06-18", "capabilities": {}})
        self.world.backend.spent = True
        client.session.uplink.backend_gave_up()
        self.assertEqual(client.answers(0), [])
        link = self.world.connect(client)
        self.assertEqual(link.take()["method"], "initialize")  # type: ignore[index]

    def test_ping(self) -> None:
        """A ping is answered by the proxy while there is no link, and by the backend while there is."""
        client = self.world.live()
        client.send(id=1, method="ping")
        self.assertEqual(client.answers(1), [])
        client.link.take()
        client.link.lose()
        client.send(id=2, method="ping")
        self.assertEqual(client.answers(2), [{"jsonrpc": "2.0", "id": 2, "result": {}}])

    def test_progress_while_held(self) -> None:
        """A held request with a progress token hears of it, with ever growing progress."""
        client = self.world.live()
        client.link.lose()
        client.send(id=1, method="tools/call", params={"name": "t", "_meta": {"progressToken": "p"}})
        self.world.clock.pump([1.0] * 30)
        progress = [m["params"]["progress"] for m in client.told("notifications/progress")]
        self.assertEqual(len(progress), 3)
        self.assertEqual(progress, sorted(set(progress)))

    def test_duplicates(self) -> None:
        """The same POST again is the same request; another one under its id is refused and harms nothing."""
        client = self.world.live()
        for _ in range(2):
            client.send(id=1, method="tools/call", params={"name": "t"})
        self.assertEqual(len(client.link.queue), 1)
        self.assertRaises(NotJSONRPC, client.send, id=1, method="tools/list")
        client.link.take()
        client.link.say(id=1, result={})
        self.assertEqual(len(client.answers(1)), 1)

    def test_string_and_number(self) -> None:
        """The ids 1 and "1" are two requests."""
        client = self.world.live()
        client.send(id=1, method="tools/list")
        client.send(id="1", method="prompts/list")
        client.link.take(), client.link.take()
        client.link.say(id="1", result={"prompts": []})
        client.link.say(id=1, result={"tools": []})
        self.assertEqual(client.answers("1")[0]["result"], {"prompts": []})
        self.assertEqual(client.answers(1)[0]["result"], {"tools": []})

    def test_huge_id(self) -> None:
        """An id that a backend would round is replaced on the way there and restored on the way back."""
        client = self.world.live()
        huge = 2**63 + 1
        client.send(id=huge, method="tools/list")
        sent = client.link.take()
        assert sent is not None
        self.assertIsInstance(sent["id"], str)
        client.link.say(id=sent["id"], result={"tools": []})
        self.assertEqual(len(client.answers(huge)), 1)


class Refusals(SessionCase):
    def test_unknown_session(self) -> None:
        """A 404 to a message means that it was not looked at: after a new handshake it is sent once more."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take("404")
        link = self.world.restore(client)
        self.assertEqual(link.take("404")["id"], 1)  # type: ignore[index]
        self.assertEqual(self.code(client, 1), -32603)
        link = self.world.restore(client)
        self.assertEqual(link.queue, [])

    def test_genuine_400(self) -> None:
        """A 400 while the backend takes a ping was meant for the message: the client hears it, the session lives."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take("400")
        self.assertEqual(client.link.take()["method"], "ping")  # type: ignore[index]
        self.assertEqual(self.code(client, 1), -32603)
        self.assertIs(client.session.phase, Phase.LIVE)

    def test_stale_400(self) -> None:
        """A 400 to the ping as well means that the session is gone: handshake, and the message once more."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take("400")
        client.link.take("400")
        link = self.world.restore(client)
        self.assertEqual(link.take()["id"], 1)  # type: ignore[index]

    def test_not_delivered_on_live_link(self) -> None:
        """A refused connection for a message means that the backend is going: the message waits for the next link."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take("refused")
        self.assertIs(client.session.phase, Phase.DOWN)
        link = self.world.restore(client)
        self.assertEqual(link.take()["id"], 1)  # type: ignore[index]

    def test_reset_on_live_link(self) -> None:
        """A reset after the message was written leaves its fate unknown, unless it is safe to send again."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.send(id=2, method="tools/list")
        client.link.take("lost")
        client.link.take("lost")
        self.assertEqual(self.code(client, 1), UNKNOWN)
        self.world.clock.advance(1)
        self.assertEqual(client.link.take()["id"], 2)  # type: ignore[index]

    def test_reset_then_refused(self) -> None:
        """A safe request that was reset, and then finds nobody listening, waits for the next link like any other."""
        client = self.world.live()
        client.send(id=1, method="tools/list")
        client.link.take("lost")
        self.world.clock.advance(1)
        client.link.take("refused")
        self.assertEqual(client.answers(1), [])
        self.assertIs(client.session.phase, Phase.DOWN)
        self.assertEqual(self.world.restore(client).take()["id"], 1)  # type: ignore[index]

    def test_500(self) -> None:
        """A 500 is passed on as the end of that request, and nothing is sent again."""
        client = self.world.live()
        client.send(id=1, method="tools/list")
        client.link.take("500")
        self.assertEqual(self.code(client, 1), -32603)
        self.assertEqual(client.link.queue, [])

    def test_challenge_on_reconnect(self) -> None:
        """A 401 to a new link is kept for the client's next message, and is not retried by itself."""
        client = self.world.live()
        client.link.lose()
        self.world.backend.give_turn(client.session.uplink)
        challenge = HTTPAnswer(401, ((b"www-authenticate", b"Bearer"),), b"no")
        client.link.owner.link_lost(client.link, Loss("401", reachable=True, challenge=challenge))
        self.world.clock.advance(600)
        self.assertEqual(self.world.backend.waiting, {})
        self.assertEqual(client.session.credentials.take_challenge(), challenge)
        self.assertIsNone(client.session.credentials.take_challenge())
        client.send(id=1, method="tools/list")
        self.assertIn(client.session.uplink, self.world.backend.waiting)

    def test_refused_again_and_again(self) -> None:
        """A backend that answers but refuses the session is tried at a slowing pace, and whoever waits is answered."""
        self.world = World(Policy(max_attempts=3, reconnect_delay=1.0))
        client = self.world.live()
        client.link.lose()
        client.send(id=1, method="tools/list")
        tries = 0
        for _ in range(40):
            if client.session.uplink in self.world.backend.waiting:
                self.world.backend.give_turn(client.session.uplink)
                client.link.lose("the backend answered 404", reachable=True)
                tries += 1
            self.world.clock.advance(1)
        self.assertEqual(self.code(client, 1), NOT_DELIVERED)
        self.assertIn("404", client.answers(1)[0]["error"]["message"])
        self.assertTrue(4 <= tries <= 12, tries)

    def test_restarted_again_and_again(self) -> None:
        """A backend that dies soon after each start has refused nobody: what waits is held, and the pace stays."""
        for reachable in (False, True):  # whether the next one listens already when the loss is noticed
            self.world = World(Policy(max_attempts=3, reconnect_delay=1.0))
            client = self.world.live()
            for number in range(1, 10):
                client.send(id=number, method="tools/list")
                client.link.lose(reachable=reachable)
                self.assertEqual(client.answers(number), [])
                self.world.clock.advance(1.5)
                self.assertIn(client.session.uplink, self.world.backend.waiting)
                link = self.world.restore(client)
                link.say(id=link.take()["id"], result={"tools": []})  # type: ignore[index]
                self.assertEqual(client.answers(number)[0]["result"], {"tools": []})
                self.world.clock.advance(0.5)

    def test_refused_initialize(self) -> None:
        """A backend that refuses the replayed initialize is tried again later."""
        client = self.world.live()
        client.link.lose()
        link = self.world.connect(client)
        link.say(id=link.take()["id"], error={"code": -32603, "message": "not yet"})  # type: ignore[index]
        self.assertIs(client.session.phase, Phase.DOWN)
        self.world.clock.advance(3)
        self.world.restore(client)
        self.assertIs(client.session.phase, Phase.LIVE)

    def test_silent_handshake(self) -> None:
        """A backend that does not answer initialize is given up for another link."""
        client = self.world.live()
        client.link.lose()
        link = self.world.connect(client)
        link.take()
        self.world.clock.advance(11)
        self.assertTrue(link.is_closed)

    def test_oversized_answer(self) -> None:
        """An answer over the bound is told to whoever waits for it, and the link lives on."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take()
        event = Oversized(b'{"jsonrpc":"2.0","id":1,"result":{', b"", 99_000_000)
        client.link.owner.link_oversized(client.link, event)
        self.assertEqual(self.code(client, 1), UNKNOWN)
        self.assertIs(client.session.phase, Phase.LIVE)


class Silent(SessionCase):
    """A backend that takes connections and messages, and says nothing: stopped, or stuck."""

    def hello(self) -> Client:
        """A client that has asked to initialize."""
        client = self.world.client()
        self.world.connect(client)
        params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
        client.send(id=0, method="initialize", params=params)
        client.link.take()
        return client

    def test_another_try(self) -> None:
        """A client that gives up on an error waits, and its handshake is tried on another link."""
        client = self.hello()
        self.world.clock.advance(self.world.policy.hold_timeout - 0.1)
        self.assertFalse(client.link.is_closed)
        self.world.clock.advance(0.2)
        self.assertTrue(client.link.is_closed)
        link = self.world.connect(client)
        self.assertEqual(link.take()["method"], "initialize")  # type: ignore[index]
        link.say(id=0, result=initialize_result())
        self.assertEqual(len(client.answers(0)), 1)
        self.world.clock.advance(100)
        self.assertFalse(link.is_closed)

    def test_refused(self) -> None:
        """An error is an answer as well."""
        client = self.hello()
        client.link.say(id=0, error={"code": -32602, "message": "no"})
        self.world.clock.advance(100)
        self.assertFalse(client.link.is_closed)
        self.assertEqual(self.code(client, 0), -32602)

    def test_not_for_ever(self) -> None:
        """A client that would wait for ever is told, when its request would have been held for long enough."""
        self.patch(SSEOutlet, "patient", False)
        client = self.hello()
        self.world.clock.advance(self.world.policy.hold_timeout + 0.1)
        self.assertEqual(self.code(client, 0), NOT_DELIVERED)
        self.assertTrue(client.link.is_closed)


class BackendRequests(SessionCase):
    def test_answer_goes_back(self) -> None:
        """A backend's request is shown under an id of ours; the answer reaches the backend under its own."""
        client = self.world.live()
        client.link.say(id=0, method="sampling/createMessage", params={})
        (request,) = client.told("sampling/createMessage")
        client.send(id=request["id"], result={"role": "assistant"})
        self.assertEqual(client.link.take()["id"], 0)  # type: ignore[index]

    def test_pending_at_the_crash(self) -> None:
        """A pending backend request is cancelled when its backend dies; a late answer goes nowhere."""
        client = self.world.live()
        client.link.say(id=0, method="elicitation/create", params={})
        (request,) = client.told("elicitation/create")
        client.link.lose()
        (cancelled,) = client.told("notifications/cancelled")
        self.assertEqual(cancelled["params"]["requestId"], request["id"])
        link = self.world.restore(client)
        link.say(id=0, method="elicitation/create", params={})
        client.send(id=request["id"], result={"action": "accept"})
        self.assertEqual(link.queue, [])
        second = client.told("elicitation/create")[1]
        self.assertNotEqual(second["id"], request["id"])
        client.send(id=second["id"], result={"action": "accept"})
        self.assertEqual(link.take()["id"], 0)  # type: ignore[index]

    def test_backend_cancels(self) -> None:
        """A backend's cancellation of its own request names the id that the client knows."""
        client = self.world.live()
        client.link.say(id=7, method="roots/list")
        client.link.say(method="notifications/cancelled", params={"requestId": 7})
        self.assertEqual(
            client.told("notifications/cancelled")[0]["params"]["requestId"], client.told("roots/list")[0]["id"]
        )

    def test_ping_without_client(self) -> None:
        """A backend's ping is answered also while the client is away."""
        client = self.world.live()
        client.detach()
        client.link.say(id=3, method="ping")
        self.assertEqual(client.link.take(), {"jsonrpc": "2.0", "id": 3, "result": {}})

    def asked(self) -> tuple[Client, Any]:
        """A client whose call has the backend ask it something; and the question."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take()
        client.link.say(id=0, method="elicitation/create", params={})
        return client, client.told("elicitation/create")[0]["id"]

    def test_answer_not_taken(self) -> None:
        """An answer that does not reach the backend is sent again, as long as its link lives; it can come twice."""
        for outcome in ("refused", "lost", "503"):
            client, question = self.asked()
            client.send(id=question, result={"action": "accept"})
            for _ in range(3):
                client.link.take(outcome)
                self.assertEqual(client.link.queue, [])
                self.world.clock.advance(self.world.policy.reconnect_delay)
            self.assertEqual(client.link.take(), {"jsonrpc": "2.0", "id": 0, "result": {"action": "accept"}})
            self.world.clock.advance(60)
            self.assertEqual(client.link.queue, [])
            client.link.say(id=1, result={})
            self.assertEqual(client.answers(1)[0]["result"], {})

    def test_answer_never_taken(self) -> None:
        """In vain for too long: whoever waits for what depends on it is told, and the link is given up."""
        client, question = self.asked()
        link = client.link
        client.send(id=question, result={"action": "accept"})
        while not link.is_closed and self.world.clock.seconds() < 1000:
            link.take("refused")
            self.world.clock.advance(self.world.policy.reconnect_delay)
        self.assertLess(self.world.clock.seconds(), self.world.policy.hold_timeout + 10)
        self.assertEqual(self.code(client, 1), UNKNOWN)
        self.assertEqual(self.world.restore(client).queue, [])

    def test_answer_while_it_stops(self) -> None:
        """A backend that has stopped listening and waits for its calls is not kept by one that waits for an answer."""
        client, question = self.asked()
        client.session.uplink.backend_doubted()
        client.session.uplink.backend_ending()
        self.assertFalse(client.link.is_closed)
        client.send(id=question, result={"action": "accept"})
        client.link.take("refused")
        self.assertTrue(client.link.is_closed)
        self.assertEqual(self.code(client, 1), UNKNOWN)

    def test_answers_one_by_one(self) -> None:
        """What was not refused is not sent again with what was."""
        client, question = self.asked()
        client.link.say(id=5, method="elicitation/create", params={})
        second = client.told("elicitation/create")[1]["id"]
        for each in (question, second):
            client.send(id=each, result={"action": "accept"})
        client.link.take("503")
        self.world.clock.advance(self.world.policy.reconnect_delay)
        self.assertEqual([json.loads(each.raw)["id"] for each in client.link.queue], [5, 0])

    def test_answer_beside_others(self) -> None:
        """Calls that wait for no answer get the time to end, while it stops."""
        client, question = self.asked()
        client.send(id=2, method="tools/call", params={"name": "slow"})
        client.link.take()
        client.session.uplink.backend_doubted()
        client.session.uplink.backend_ending()
        client.send(id=question, result={"action": "accept"})
        client.link.take("refused")
        self.assertFalse(client.link.is_closed)
        client.link.say(id=2, result={})
        self.world.clock.advance(self.world.policy.reconnect_delay)
        client.link.take("refused")
        self.assertEqual((self.code(client, 1), len(client.answers(2))), (UNKNOWN, 1))

    def test_answer_to_ping(self) -> None:
        """Nothing depends on the answer to a ping: it is not repeated, and ends no link of a backend that stops."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take()
        client.session.uplink.backend_doubted()
        client.session.uplink.backend_ending()
        client.link.say(id=0, method="ping")
        client.send(id=client.told("ping")[0]["id"], result={})
        client.link.take("refused")
        client.detach()
        client.link.say(id=1000, method="ping")
        client.link.take("refused")
        self.world.clock.advance(3)
        self.assertEqual((client.link.is_closed, client.link.queue), (False, []))

    def test_answer_meant_for_another(self) -> None:
        """An answer that is to be sent again is not for the next backend."""
        client, question = self.asked()
        client.send(id=question, result={"action": "accept"})
        client.link.take("refused")
        client.link.lose()
        link = self.world.restore(client)
        self.world.clock.advance(60)
        self.assertEqual(link.queue, [])

    def test_notification_not_taken(self) -> None:
        """A notification that was not handed to anybody is for the next backend; progress is not."""
        client = self.world.live()
        client.send(method="notifications/progress", params={"progressToken": 1, "progress": 1})
        client.link.take("refused")
        self.assertFalse(client.link.is_closed)
        client.send(method="notifications/roots/list_changed")
        client.link.take("refused")
        self.assertTrue(client.link.is_closed)
        link = self.world.restore(client)
        self.assertEqual([json.loads(each.raw)["method"] for each in link.queue], ["notifications/roots/list_changed"])

    def test_cancelled_keeps_no_backend(self) -> None:
        """Nobody waits for a call that was cancelled, so it does not keep a backend that wants to stop."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take()
        client.session.uplink.backend_doubted()
        client.session.uplink.backend_ending()
        client.send(method="notifications/cancelled", params={"requestId": 1})
        self.assertFalse(client.link.is_closed)
        self.assertEqual(client.session.in_flight, 0)
        client.session.uplink.backend_ending()
        self.assertTrue(client.link.is_closed)

    def test_progress_grows(self) -> None:
        """When a read is repeated its progress begins anew; the client sees it from where it was."""
        client = self.world.live()
        client.send(id=1, method="resources/read", params={"uri": "x:y", "_meta": {"progressToken": "p"}})
        client.link.take()
        for link in (client.link, None):
            if link is None:
                link = self.world.restore(client)
                link.take()
            for number in range(1, 4 + 2 * len(self.world.backend.links)):
                link.say(method="notifications/progress", params={"progressToken": "p", "progress": number})
            link.lose()
        seen = [each["params"]["progress"] for each in client.told("notifications/progress")]
        self.assertEqual(seen, list(range(1, 8)))


class AfterRestart(SessionCase):
    def listed(self, *tools: str) -> Client:
        """A client that has read the list of tools."""
        client = self.world.live(tools={}, resources={"subscribe": True}, logging={})
        client.send(id=1, method="tools/list")
        client.link.take()
        client.link.say(id=1, result={"tools": [{"name": name} for name in tools]})
        return client

    def test_list_changed_is_promised(self) -> None:
        """The client is shown listChanged, since the proxy can keep that promise."""
        client = self.world.live(tools={"listChanged": False}, prompts={})
        shown = client.answers(0)[0]["result"]["capabilities"]
        self.assertEqual(shown, {"tools": {"listChanged": True}, "prompts": {"listChanged": True}})

    def test_changed(self) -> None:
        """A restart with other tools is announced, once."""
        client = self.listed("a")
        client.link.lose()
        World.shake_hands(self.world.connect(client), {"tools/list": [{"name": "b"}]})
        self.assertEqual(len(client.told("notifications/tools/list_changed")), 1)

    def test_unchanged(self) -> None:
        """A restart with the same tools in another order is not announced."""
        client = self.listed("a", "b")
        client.link.lose()
        World.shake_hands(self.world.connect(client), {"tools/list": [{"name": "b"}, {"name": "a"}]})
        self.assertEqual(client.told("notifications/tools/list_changed"), [])

    def test_subscriptions_and_level(self) -> None:
        """Subscriptions and the log level are replayed, and each subscribed resource is said to be updated."""
        client = self.listed()
        for number, (method, params) in enumerate(
            (
                ("logging/setLevel", {"level": "error"}),
                ("resources/subscribe", {"uri": "a:1"}),
                ("resources/subscribe", {"uri": "a:2"}),
                ("resources/subscribe", {"uri": "a:3"}),
                ("resources/unsubscribe", {"uri": "a:3"}),
            ),
            start=10,
        ):
            client.send(id=number, method=method, params=params)
            client.link.take()
            client.link.say(id=number, result={})
        client.link.lose()
        link = self.world.restore(client)
        replayed = [(m["method"], m.get("params")) for m in link.taken[2:]]
        self.assertEqual(
            replayed[:3],
            [
                ("logging/setLevel", {"level": "error"}),
                ("resources/subscribe", {"uri": "a:1"}),
                ("resources/subscribe", {"uri": "a:2"}),
            ],
        )
        updated = [m["params"]["uri"] for m in client.told("notifications/resources/updated")]
        self.assertEqual(updated, ["a:1", "a:2"])

    def test_annotated_tools(self) -> None:
        """With the operator's leave a tool that says it is read-only is called again, and no other."""
        self.world = World(Policy(retry_annotated_tools=True))
        client = self.world.live()
        tools = [{"name": "r", "annotations": {"readOnlyHint": True}}, {"name": "w"}]
        client.send(id=1, method="tools/list")
        client.link.take()
        client.link.say(id=1, result={"tools": tools})
        client.send(id=2, method="tools/call", params={"name": "r"})
        client.send(id=3, method="tools/call", params={"name": "w"})
        client.link.take(), client.link.take()
        client.link.lose()
        self.assertEqual(self.code(client, 3), UNKNOWN)
        link = self.world.connect(client)
        World.shake_hands(link, {"tools/list": tools})
        self.assertEqual(link.take()["id"], 2)  # type: ignore[index]

    def test_annotations_off(self) -> None:
        """Without it no tool is called again, whatever it says."""
        client = self.world.live()
        client.send(id=1, method="tools/list")
        client.link.take()
        client.link.say(id=1, result={"tools": [{"name": "r", "annotations": {"readOnlyHint": True}}]})
        client.send(id=2, method="tools/call", params={"name": "r"})
        client.link.take()
        client.link.lose()
        self.assertEqual(self.code(client, 2), UNKNOWN)


class OtherRevision(SessionCase):
    """The backend that came back negotiates another revision."""

    def come_back(self, version: str) -> None:
        """Lose the backend with a request held; the next one answers initialize with this revision."""
        self.client = self.world.live()
        self.client.link.lose()
        self.client.send(id="held", method="tools/call", params={"name": "t"})
        link = self.world.connect(self.client)
        message = link.take()
        assert message is not None
        link.say(id=message["id"], result={**initialize_result(), "protocolVersion": version})

    def test_spoken(self) -> None:
        """One that the proxy knows changes nothing for the client."""
        self.come_back("2025-03-26")
        self.world.shake_hands(self.client.link)
        self.assertEqual([message.method for message in self.client.link.queue], ["tools/call"])
        self.assertEqual(self.client.session.memory.version, initialize_result()["protocolVersion"])

    def test_not_spoken(self) -> None:
        """One that it does not know ends the session: what was held is answered, and the id is unknown from then on."""
        self.come_back("2099-01-01")
        (answer,) = self.client.answers("held")
        self.assertEqual((answer["error"]["code"], answer["error"]["data"]["delivered"]), (-31003, "no"))
        self.assertTrue(self.client.link.is_closed)
        self.assertRaises(UnknownSession, self.world.registry.find, self.client.session.id, self.client.headers)


class ComingAndGoing(SessionCase):
    def test_missed_events(self) -> None:
        """A client that comes back gets what it missed, once and in order, on its old session."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take()
        client.detach()
        client.link.say(method="notifications/message", params={"data": "m"})
        client.link.say(id=1, result={})
        client.attach()
        self.assertEqual(len(client.answers(1)), 1)
        self.assertEqual(len(client.told("notifications/message")), 1)

    def test_link_is_closed_after_a_while(self) -> None:
        """When the client stays away the link is closed, and the session comes back with the client."""
        client = self.world.live()
        client.detach()
        self.world.clock.advance(5.1)
        self.assertTrue(client.link.is_closed)
        self.assertIs(client.session.phase, Phase.DORMANT)
        client.attach()
        self.world.restore(client)
        self.assertIs(client.session.phase, Phase.LIVE)

    def test_link_waits_for_answers(self) -> None:
        """While the client is away its call goes on; leaving is not cancelling."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take()
        client.detach()
        self.world.clock.advance(20)
        self.assertFalse(client.link.is_closed)
        client.link.say(id=1, result={})
        self.world.clock.advance(10)
        self.assertTrue(client.link.is_closed)
        client.attach()
        self.assertEqual(len(client.answers(1)), 1)

    def test_idle_session_is_forgotten(self) -> None:
        """After the idle timeout the session is gone, and its id is unknown."""
        client = self.world.live()
        client.detach()
        self.world.clock.advance(1801)
        self.world.registry.expire(self.world.clock.seconds())
        self.assertEqual(len(self.world.registry), 0)
        self.assertRaises(UnknownSession, client.send, id=1, method="tools/list")
        self.assertEqual(self.world.clock.getDelayedCalls(), [])

    def test_never_initialized_dies_fast(self) -> None:
        """A session that never initialized is not worth keeping."""
        client = self.world.client()
        client.detach()
        self.world.clock.advance(5.1)
        self.assertEqual(len(self.world.registry), 0)

    def test_borrowed_handshake(self) -> None:
        """A new stream whose client does not initialize is served with its last handshake."""
        self.world.live("alice").detach()
        again = self.world.client("alice")
        again.send(id=5, method="tools/list")
        link = self.world.restore(again)
        self.assertEqual([m["method"] for m in link.taken], ["initialize", "notifications/initialized"])
        self.assertEqual(link.take()["id"], 5)  # type: ignore[index]

    def test_borrowed_on_live_link(self) -> None:
        """The same where the link is already open."""
        self.world.live("alice").detach()
        again = self.world.client("alice")
        link = self.world.connect(again)
        again.send(id=5, method="tools/list")
        World.shake_hands(link)
        self.assertEqual(link.take()["id"], 5)  # type: ignore[index]

    def test_nothing_to_borrow(self) -> None:
        """Under another credential nothing is borrowed; the client is told what to do."""
        self.world.live("alice")
        bob = self.world.client("bob")
        self.world.connect(bob)
        bob.send(id=5, method="tools/list")
        self.assertEqual(self.code(bob, 5), NOT_RESTORABLE)
        self.assertIn("initialize", bob.answers(5)[0]["error"]["message"])

    def test_pressure(self) -> None:
        """A slow client pauses its own link, and its absence or recovery resumes it."""
        client, other = self.world.live("alice"), self.world.live("bob")
        client.session.stream_paused()
        self.assertEqual((client.link.is_paused, other.link.is_paused), (True, False))
        client.session.stream_resumed()
        self.assertFalse(client.link.is_paused)

    def test_backend_wants_to_stop(self) -> None:
        """A backend that stopped listening gets its stream ended once nothing is awaited on it; new requests wait."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take()
        client.session.uplink.backend_doubted()
        client.session.uplink.backend_ending()
        client.send(id=2, method="tools/call", params={"name": "t"})
        link = client.link
        self.assertEqual((link.queue, link.is_closed), ([], False))
        link.say(id=1, result={})
        self.assertTrue(link.is_closed)
        self.assertEqual(self.world.restore(client).take()["id"], 2)  # type: ignore[index]

    def test_backend_owes_nothing(self) -> None:
        """A link that awaits nothing of a backend which stops does not wait for the client's answers either."""
        for is_owed_first in (True, False):
            client = self.world.live()
            client.send(id=1, method="tools/call", params={"name": "t"})
            client.link.take()
            link = client.link
            link.is_owed = is_owed_first
            client.session.uplink.backend_doubted()
            client.session.uplink.backend_ending()
            if is_owed_first:
                self.assertFalse(link.is_closed)
                link.is_owed = False
                link.say(id="q", method="elicitation/create", params={})
                self.assertEqual(len(client.told("elicitation/create")), 1)
                self.assertEqual(len(client.told("notifications/cancelled")), 1)
            self.assertTrue(link.is_closed)
            self.assertEqual(self.code(client, 1), UNKNOWN)

    def test_opened_in_doubt(self) -> None:
        """A link that opens while the backend is in doubt is as good as the others: what is held waits on."""
        client = self.world.live()
        client.link.lose()
        client.send(id=1, method="tools/call", params={"name": "t"})
        doubting = self.patch(self.world.backend, "succeeded", lambda seeker: seeker.backend_doubted())
        self.world.backend.is_doubted = True
        link = self.world.restore(client)
        self.assertEqual((client.session.phase, link.queue), (Phase.DOUBTED, []))
        doubting.restore()
        self.world.backend.is_doubted = False
        client.session.uplink.backend_not_ending(was_gone=False)
        self.assertEqual(link.take()["id"], 1)  # type: ignore[index]

    def test_backend_stays_after_all(self) -> None:
        """Should it listen again, what was held goes on the old link."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take()
        client.session.uplink.backend_doubted()
        client.send(id=2, method="tools/call", params={"name": "t"})
        self.assertEqual(client.link.queue, [])
        client.session.uplink.backend_not_ending(was_gone=False)
        self.assertEqual(client.link.take()["id"], 2)  # type: ignore[index]

    def test_backend_was_gone(self) -> None:
        """A link that would not notice another backend is made anew if there may be one; what was held goes there."""
        for is_blind in (True, False):
            for is_doubted in (True, False):
                client = self.world.live()
                link = client.link
                link.is_blind = is_blind
                if is_doubted:
                    client.session.uplink.backend_doubted()
                    client.send(id=1, method="tools/call", params={"name": "t"})
                client.session.uplink.backend_not_ending(was_gone=True)
                self.assertEqual((link.is_closed, client.session.phase is Phase.LIVE), (is_blind, not is_blind))
                if is_blind:
                    link = self.world.restore(client)
                self.assertEqual([json.loads(each.raw)["id"] for each in link.queue], [1] if is_doubted else [])

    def test_close(self) -> None:
        """When the session ends whoever waits is answered first, and no timer is left."""
        client = self.world.live()
        client.send(id=1, method="tools/call", params={"name": "t"})
        client.link.take()
        client.send(id=2, method="tools/list")
        client.session.close()
        self.assertEqual(self.code(client, 1), UNKNOWN)
        self.assertEqual(self.code(client, 2), NOT_DELIVERED)
        self.assertEqual(self.world.clock.getDelayedCalls(), [])


def token(subject: str, serial: int) -> Headers:
    """A bearer token that claims a subject; nobody has signed it."""
    claims = urlsafe_b64encode(json.dumps({"iss": "i", "sub": subject, "n": serial}).encode()).rstrip(b"=")
    return ((b"authorization", b"Bearer h." + claims + b".s"),)


class Tokens(SessionCase):
    def setUp(self) -> None:
        """A client with a token, live."""
        super().setUp()
        self.client = self.world.live("Bearer opaque-1")

    def post(self, headers: Headers, **message: Any) -> None:
        """A message under these headers, as the front would take it."""
        session = self.world.registry.find_for_message(self.client.session.id, headers)
        self.assertIs(session, self.client.session)
        session.receive(parse(json.dumps({"jsonrpc": "2.0", **message}).encode()), headers)

    def test_other_token(self) -> None:
        """Another token that nobody asked for is another client's."""
        other = ((b"authorization", b"Bearer opaque-2"),)
        self.assertRaises(UnknownSession, self.post, other, id=1, method="tools/list")

    def test_after_a_challenge(self) -> None:
        """After a 401 the client's new token is tried, and owns the session once the backend has accepted it."""
        session, new = self.client.session, ((b"authorization", b"Bearer opaque-2"),)
        session.credentials.challenged(HTTPAnswer(401, (), b""))
        self.assertIsNotNone(session.credentials.take_challenge())
        self.post(new, id=1, method="tools/list")
        self.assertRaises(UnknownSession, self.world.registry.find, session.id, new)
        self.client.link.take()
        self.assertIs(self.world.registry.find(session.id, new), session)
        self.assertRaises(UnknownSession, self.world.registry.find, session.id, self.client.headers)
        self.client.link.lose()
        self.assertEqual(self.world.connect(self.client).headers, new)

    def test_challenged_link(self) -> None:
        """A 401 to a new link is overcome with the client's new token."""
        session, new = self.client.session, ((b"authorization", b"Bearer opaque-2"),)
        self.client.link.lose()
        self.world.backend.give_turn(session.uplink)
        self.client.link.owner.link_lost(self.client.link, Loss("401", True, HTTPAnswer(401, (), b"")))
        session.credentials.take_challenge()
        self.post(new, id=1, method="tools/list")
        link = self.world.restore(self.client)
        self.assertEqual(link.headers, new)
        self.assertEqual(link.take()["id"], 1)  # type: ignore[index]

    def test_refused_renewal(self) -> None:
        """A new token that the backend refuses changes nothing for the owner."""
        session, new = self.client.session, ((b"authorization", b"Bearer opaque-2"),)
        session.credentials.challenged(HTTPAnswer(401, (), b""))
        session.credentials.take_challenge()
        self.post(new, id=1, method="tools/list")
        self.client.link.take("500")
        self.assertIs(self.world.registry.find(session.id, self.client.headers), session)
        self.assertRaises(UnknownSession, self.world.registry.find, session.id, new)

    def test_same_subject(self) -> None:
        """A token for the same subject is tried without being asked for; one for another subject is not."""
        self.world = World()
        self.client = self.world.client()
        session = self.world.registry.create(token("ann", 1), SSEOutlet)
        self.client.session, self.client.headers = session, token("ann", 1)
        self.post(token("ann", 2), id=0, method="initialize", params={"protocolVersion": "1"})
        self.assertRaises(UnknownSession, self.post, token("eve", 1), id=1, method="tools/list")
        self.assertRaises(UnknownSession, self.world.registry.find, session.id, token("ann", 2))
        self.world.connect(self.client).take()
        self.assertIs(self.world.registry.find(session.id, token("ann", 2)), session)
