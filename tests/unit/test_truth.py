"""What a client is told about a request without an answer: never more, and never less, than is known."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session import truth
from mcp_proxy.session.exchanges import Delivery, Exchange
from mcp_proxy.session.interfaces import Refusal
from mcp_proxy.session.policy import Policy
from mcp_proxy.wire.errors import BackendRefused, NotDelivered, OutcomeUnknown
from mcp_proxy.wire.jsonrpc import parse
from tests.support.messages import encoded, request
from tests.unit.session_world import World

CALL, READ = "tools/call", "resources/read"


def exchange(method: str = CALL, delivery: Delivery = Delivery.NOT_SENT, **params: Any) -> Exchange:
    """A request that got this far."""
    made = Exchange(parse(encoded(request(method, "mine", params))), (), arrived=0.0, backend_id=b'"theirs"')
    made.delivery = delivery
    return made


def told(about: Exchange, outage: float = 3.5) -> dict[str, Any]:
    """The answer to a request that waits no longer."""
    error = truth.given_up(about, outage, "connection refused")
    answer: dict[str, Any] = json.loads(truth.error_answer(about, error, outage, 2.0))
    return answer


class GivenUp(SynchronousTestCase):
    def test_every_fate(self) -> None:
        """Code, delivery and advice agree, for safe and other requests, however far they got."""
        for method, delivery, code, retry_safe in (
            (CALL, Delivery.NOT_SENT, -31001, True),
            (READ, Delivery.NOT_SENT, -31001, True),
            (CALL, Delivery.SENT, -31002, False),
            (READ, Delivery.SENT, -31002, True),
            (CALL, Delivery.ACCEPTED, -31002, False),
            (READ, Delivery.ACCEPTED, -31002, True),
        ):
            error = told(exchange(method, delivery))["error"]
            self.assertEqual((error["code"], error["data"]["delivered"]), (code, delivery.value), (method, delivery))
            self.assertIs(error["data"]["retrySafe"], retry_safe, (method, delivery))
            self.assertEqual("was not delivered" in error["message"], delivery is Delivery.NOT_SENT)
            self.assertEqual("is unknown" in error["message"], delivery is not Delivery.NOT_SENT)
            self.assertEqual("safe to" in error["message"], retry_safe, error["message"])
            self.assertIn("connection refused", error["message"])

    def test_data(self) -> None:
        """A program learns who speaks, about which method, for how long the backend is away, and when to try again."""
        answer = told(exchange())
        self.assertEqual(answer["id"], "mine", "the client's own id, not the one towards the backend")
        self.assertEqual(
            answer["error"]["data"],
            {
                "source": "proxy",
                "delivered": "no",
                "retrySafe": True,
                "retryAfterMs": 2000,
                "method": CALL,
                "outageMs": 3500,
            },
        )

    def test_accepted_is_said(self) -> None:
        """Whether the backend had accepted the request, or only may have received it, is told apart."""
        self.assertIn("had accepted", told(exchange(CALL, Delivery.ACCEPTED))["error"]["message"])
        self.assertIn("may have received", told(exchange(CALL, Delivery.SENT))["error"]["message"])

    def test_duration(self) -> None:
        """How long the backend has been away is told in seconds, but not where that says nothing."""
        self.assertIn(" for 12 s ", truth.not_delivered(12.3, "why").message)
        for outage in (0.0, 0.9):
            self.assertTrue(truth.not_delivered(outage, "why").message.startswith("Backend unavailable (why)."))

    def test_no_room_after_loss(self) -> None:
        """A request that was never sent and cannot be held is told as not delivered, and not as perhaps received."""
        world = World(Policy(max_held=1))
        client = world.live()
        for identity in (1, 2):
            client.send(id=identity, method=CALL, params={"name": "t"})
        client.link.lose()
        (answer,) = client.answers(2)
        self.assertEqual(answer["error"]["data"]["delivered"], "no")
        self.assertNotIn("may have received", answer["error"]["message"])


class OtherEnds(SynchronousTestCase):
    def test_answer_too_large(self) -> None:
        """An answer that was dropped means that the request was carried out; its size and the limit are named."""
        error = truth.answer_too_large(123456)
        self.assertIsInstance(error, OutcomeUnknown)
        for text in ("carried out", "123456", "MAX_EVENT_BYTES"):
            self.assertIn(text, error.message)

    def test_refused(self) -> None:
        """The status with which the backend refused is in the sentence and in the data."""
        about, error = exchange(delivery=Delivery.NOT_SENT), truth.refused(Refusal(413, "too large"))
        self.assertIsInstance(error, BackendRefused)
        answer = json.loads(truth.error_answer(about, error, 0.0, 2.0))["error"]
        self.assertEqual((answer["data"]["status"], answer["data"]["outageMs"]), (413, 0))
        self.assertIn("413", answer["message"])

    def test_not_restorable(self) -> None:
        """Where the session is of no use the client learns why, that nothing was delivered, and what to do."""
        for error, why in ((truth.never_initialized(), "not been initialized"), (truth.not_restorable("x"), "over: x")):
            self.assertEqual(error.answer.code, -31003)
            for text in (why, "was not delivered", "end initialize"):
                self.assertIn(text, error.message)

    def test_class_says_the_same(self) -> None:
        """The class of the error says what the delivery says."""
        self.assertIsInstance(truth.given_up(exchange(), 0.0, ""), NotDelivered)
        for delivery in (Delivery.SENT, Delivery.ACCEPTED):
            self.assertIsInstance(truth.given_up(exchange(READ, delivery), 0.0, ""), OutcomeUnknown)


class SignsOfLife(SynchronousTestCase):
    def test_no_token(self) -> None:
        """Who gave no token hears nothing, and a notification has none."""
        self.assertIsNone(truth.still_held(exchange()))
        about = Exchange(parse(b'{"jsonrpc":"2.0","method":"n","params":{"_meta":{"progressToken":1}}}'), (), 0.0)
        self.assertIsNone(truth.still_held(about))

    def test_token(self) -> None:
        """The token comes back as it was given, a number as a number and a text as a text, also 0 and the empty one."""
        for token in (7, "7", 0, ""):
            message = json.loads(truth.still_held(exchange(_meta={"progressToken": token})) or b"")
            self.assertEqual((message["method"], "id" in message), ("notifications/progress", False))
            self.assertEqual(repr(message["params"]["progressToken"]), repr(token))

    def test_grows(self) -> None:
        """Progress grows with each sign, and stays below what a backend's first step would be."""
        about = exchange(_meta={"progressToken": 1})
        steps = [json.loads(truth.still_held(about) or b"")["params"]["progress"] for _ in range(1000)]
        self.assertEqual(steps, sorted(set(steps)))
        self.assertTrue(0 < steps[0] and steps[-1] < 0.01, steps[-1])

    def test_grows_after_the_backends(self) -> None:
        """Progress that the backend has told is not taken back by a sign of life of ours."""
        world = World()
        client = world.live()
        client.send(id=1, method=READ, params={"uri": "x:y", "_meta": {"progressToken": "p"}})
        client.link.take()
        client.link.say(method="notifications/progress", params={"progressToken": "p", "progress": 5})
        client.link.lose()
        world.clock.advance(30)
        steps = [message["params"]["progress"] for message in client.told("notifications/progress")]
        self.assertEqual(steps, sorted(set(steps)))
