"""One subscription over the lives of several backends."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.listening import Listening
from mcp_proxy.wire import jsonrpc
from tests.support import messages, modern
from tests.support.messages import Json, encoded

MANY = settings(max_examples=150, deadline=None)
LISTS = ("toolsListChanged", "promptsListChanged", "resourcesListChanged")
METHODS = {
    "toolsListChanged": "notifications/tools/list_changed",
    "promptsListChanged": "notifications/prompts/list_changed",
    "resourcesListChanged": "notifications/resources/list_changed",
}
FILTERS: Any = st.fixed_dictionaries(
    {},
    optional={
        **{name: st.booleans() for name in LISTS},
        "resourceSubscriptions": st.lists(st.sampled_from(("a:1", "b:2", "c:3")), unique=True),
        "taskIds": st.lists(st.sampled_from(("t1", "t2")), unique=True),
    },
)


def acknowledge(listening: Listening, identity: Any = 1, **filter_: Any) -> tuple[list[Json], Json | None]:
    """A backend acknowledges this filter: the messages for the client, and the end."""
    message = jsonrpc.parse(encoded(modern.acknowledged(identity, **filter_)))
    told, end = listening.acknowledged(message)
    return [json.loads(each) for each in told], None if end is None else json.loads(end)


def wishes(filter_: Json) -> set[str]:
    """What a filter asks for."""
    named = (*filter_.get("resourceSubscriptions", ()), *filter_.get("taskIds", ()))
    return {name for name in LISTS if filter_.get(name)} | set(named)


class First(SynchronousTestCase):
    def test_as_it_came(self) -> None:
        """The first acknowledgement reaches the client as the backend wrote it."""
        raw = b'{"params":{"notifications":{"toolsListChanged":true},"x": 1.50},"method":"%s","jsonrpc":"2.0"}'
        message = jsonrpc.parse(raw % modern.ACKNOWLEDGED.encode())
        listening = Listening(b"1")
        self.assertFalse(listening.is_acknowledged)
        self.assertEqual(listening.acknowledged(message), ([message.raw], None))
        self.assertTrue(listening.is_acknowledged)

    def test_odd(self) -> None:
        """One that honours nothing, or says it in an odd way, counts as well."""
        for params in ({}, {"notifications": None}, {"notifications": []}, {"notifications": {}}):
            message = jsonrpc.parse(encoded(messages.notification(modern.ACKNOWLEDGED, params)))
            listening = Listening(b'"x"')
            self.assertEqual(listening.acknowledged(message), ([message.raw], None))
            self.assertTrue(listening.is_acknowledged)
            self.assertEqual(acknowledge(listening, toolsListChanged=True), ([], None))


class Again(SynchronousTestCase):
    def test_changes(self) -> None:
        """The next backend's is not shown; instead all that was promised may have changed."""
        filter_ = {**dict.fromkeys(LISTS, True), "resourceSubscriptions": ["file:///a", "file:///b"]}
        listening = Listening(b"7")
        acknowledge(listening, 7, **filter_)
        for _ in range(3):
            told, end = acknowledge(listening, 7, **filter_)
            self.assertIsNone(end)
            updates = [modern.told("notifications/resources/updated", 7, uri=uri) for uri in ("file:///a", "file:///b")]
            self.assertEqual(told, [*(modern.told(METHODS[name], 7) for name in LISTS), *updates])

    def test_only_what_was_promised(self) -> None:
        """What the first backend did not honour is not told, though the next one would."""
        listening = Listening(b"1")
        acknowledge(listening, promptsListChanged=True, toolsListChanged=False)
        told, end = acknowledge(listening, **dict.fromkeys(LISTS, True), resourceSubscriptions=["a:1"])
        self.assertEqual((told, end), ([modern.told(METHODS["promptsListChanged"], 1)], None))

    def test_identity(self) -> None:
        """The subscription's id is the request's, in value and in type."""
        for identity in (1, "1", 0, -5, "", "größe", 2**53 - 1):
            listening = Listening(encoded(identity))
            acknowledge(listening, identity, toolsListChanged=True)
            told, _ = acknowledge(listening, "of another backend", toolsListChanged=True)
            subscription = told[0]["params"]["_meta"][modern.META_SUBSCRIPTION]
            self.assertEqual((subscription, type(subscription)), (identity, type(identity)))

    def test_less(self) -> None:
        """A backend that honours less ends it: with a complete result, and nothing before that."""
        full = {**dict.fromkeys(LISTS, True), "resourceSubscriptions": ["a:1", "b:2"], "taskIds": ["t1", "t2"]}
        for less in (
            *({name: value for name, value in full.items() if name != missing} for missing in full),
            {**full, "toolsListChanged": False},
            {**full, "resourceSubscriptions": ["a:1"]},
            {**full, "taskIds": ["t2"]},
            {**full, "resourceSubscriptions": "a:1 b:2"},
            {},
        ):
            for identity in (1, "1"):
                listening = Listening(encoded(identity))
                acknowledge(listening, identity, **full)
                told, end = acknowledge(listening, identity, **less)
                self.assertEqual(told, [], less)
                result = {"resultType": "complete", "_meta": {modern.META_SUBSCRIPTION: identity}}
                self.assertEqual(end, messages.result(identity, result), less)

    def test_promise_stays(self) -> None:
        """What counts is what the client was told at first, not what a backend in between would have honoured."""
        listening = Listening(b"1")
        acknowledge(listening, toolsListChanged=True)
        acknowledge(listening, toolsListChanged=True, promptsListChanged=True)
        told, end = acknowledge(listening, toolsListChanged=True)
        self.assertEqual((told, end), ([modern.told(METHODS["toolsListChanged"], 1)], None))

    def test_odd_uris(self) -> None:
        """What is no URI is no promise."""
        listening = Listening(b"1")
        acknowledge(listening, resourceSubscriptions=["a:1", 5, None, {}])
        told, end = acknowledge(listening, resourceSubscriptions=["a:1"])
        self.assertEqual((told, end), ([modern.told("notifications/resources/updated", 1, uri="a:1")], None))

    @MANY
    @given(FILTERS, FILTERS)
    def test_any(self, promised: Json, honoured: Json) -> None:
        """It goes on just where all that was promised is honoured, and then all of that is told once."""
        listening = Listening(b"1")
        acknowledge(listening, **promised)
        told, end = acknowledge(listening, **honoured)
        if wishes(promised) <= wishes(honoured):
            self.assertIsNone(end)
            self.assertEqual(len(told), len(wishes({**promised, "taskIds": []})), "of a task, only its server can tell")
        else:
            self.assertEqual(told, [])
            self.assertIsNotNone(end)


class Lasting(SynchronousTestCase):
    def told(self, listening: Listening, task: Any, status: Any, method: str = "notifications/tasks") -> bool:
        """The client is told this of a task: whether the listen is to last."""
        listening.told(jsonrpc.parse(encoded(modern.told(method, 1, taskId=task, status=status))))
        return listening.is_to_last

    def test_tasks(self) -> None:
        """One for tasks only lasts until the last of them is over, and then stays so."""
        listening = Listening(b"1")
        self.assertTrue(listening.is_to_last)
        acknowledge(listening, taskIds=["t1", "t2"])
        self.assertTrue(self.told(listening, "t1", "completed"))
        self.assertTrue(self.told(listening, "t1", "failed"))
        self.assertTrue(self.told(listening, "t2", "working"))
        self.assertFalse(self.told(listening, "t2", "cancelled"))
        self.assertFalse(self.told(listening, "t2", "working"))

    def test_more(self) -> None:
        """One for anything else lasts, whatever becomes of tasks; so does one for nothing."""
        for more in ({"toolsListChanged": True}, {"resourceSubscriptions": ["a:1"]}):
            listening = Listening(b"1")
            acknowledge(listening, taskIds=["t1"], **more)
            self.assertTrue(self.told(listening, "t1", "completed"))
        listening = Listening(b"1")
        acknowledge(listening)
        self.assertTrue(self.told(listening, "t1", "completed"))

    def test_odd(self) -> None:
        """What is no end of a task that was asked for counts for nothing, and is not kept."""
        listening = Listening(b"1")
        acknowledge(listening, taskIds=["t1"])
        odd: Any = (("t2", "completed"), ({}, "completed"), (["t1"], "failed"), (None, "failed"), (1, "failed"))
        for task, status in (*odd, ("t1", {}), ("t1", "done"), ("t1", None)):
            self.assertTrue(self.told(listening, task, status), (task, status))
        self.assertTrue(self.told(listening, "t1", "completed", "notifications/tasks/status"))
        self.assertEqual(listening._finished, set())
