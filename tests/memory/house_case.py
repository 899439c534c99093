"""What the tests of this folder have in common."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.support.http1 import Answer
from tests.support.memory import House

ALICE = (b"x-api-key", b"alice-secret")
BOB = (b"x-api-key", b"bob-secret")


class HouseCase(SynchronousTestCase):
    """A test with a house that must be quiet at the end."""

    def setUp(self) -> None:
        """A house as it is by default."""
        self.house = House()

    def rebuild(self, **options: Any) -> House:
        """A house with these options."""
        self.house = House(**options)
        return self.house

    def tearDown(self) -> None:
        """When everybody has gone, no session, no stream and no timer is left."""
        self.house.close()
        self.assertEqual(len(self.house.registry), 0)
        self.assertEqual(self.house.policy.room.used, 0)
        self.assertEqual([str(call) for call in self.house.clock.getDelayedCalls()], [])

    def assert_json_error(self, answer: Answer, status: int, code: int) -> dict[str, Any]:
        """The answer is complete and a JSON-RPC error, never HTML or a traceback; return the error."""
        self.assertTrue(answer.complete)
        self.assertEqual(answer.status, status, answer.body)
        self.assertEqual(answer.header(b"content-type"), b"application/json")
        self.assertNotIn(b"<html", answer.body.lower())
        self.assertNotIn(b"Traceback", answer.body)
        value = answer.json()
        self.assertEqual((value["jsonrpc"], value["id"]), ("2.0", None))
        error: dict[str, Any] = value["error"]
        self.assertEqual((error["code"], error["data"]["source"]), (code, "proxy"))
        self.assertTrue(error["message"])
        return error
