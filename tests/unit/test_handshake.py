"""What is remembered of a session, and how a new link is taught: complete, in order, and always to an end."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.handshake import MAX_PAGES, MAX_SUBSCRIPTIONS, HandshakeFailed, Memory, Replay, Step
from mcp_proxy.wire.jsonrpc import parse
from mcp_proxy.wire.revisions import INITIALIZED, LISTS
from tests.support.messages import Json, encoded, error, request, result
from tests.unit.session_world import initialize_result

VERSION = "2025-06-18"
PARAMS: Json = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
MANY = settings(max_examples=200, deadline=None)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from(("2025-06-18", 1e300)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ("tools", "prompts", "name", "nextCursor", "annotations", "capabilities", "protocolVersion")
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def learn(memory: Memory, method: str, params: Json, answer: Any) -> bytes:
    """The client asks, the backend answers; returns what the client is shown."""
    return memory.answered(parse(encoded(request(method, 1, params))), parse(encoded(result(1, answer))))


def memory(*lists: str, initialized: bool = True) -> Memory:
    """A session whose client has initialized and read these lists, each with the item ``a``."""
    made = Memory()
    learn(made, "initialize", PARAMS, {**initialize_result(), "protocolVersion": VERSION})
    made.initialized = initialized
    for method in lists:
        learn(made, method, {}, {LISTS[method][0]: [{"name": "a"}]})
    return made


def pages(member: str, items: list[int], size: int, cursor: str | None) -> Json:
    """One page of a list of which a page holds so many items."""
    start = int(cursor or 0)
    more = {"nextCursor": str(start + size)} if start + size < len(items) else {}
    return {member: [{"name": item} for item in items[start : start + size]], **more}


def replay(known: Memory) -> Replay:
    """An attempt whose ids count from 1."""
    counter = count(1)
    return Replay(known, lambda: b"%d" % next(counter))


def run(attempt: Replay, backend: Callable[[str, Json], Any]) -> list[Json]:
    """Play it to its end; returns what was sent. A backend answers with a result, or an exception with an error."""
    sent: list[Json] = []
    steps = attempt.begin()
    while steps:
        step = steps.pop(0)
        message = json.loads(step.raw)
        sent.append(message)
        if "id" in message:
            answer = backend(message["method"], message.get("params", {}))
            identity = message["id"]
            reply = error(identity, -1) if isinstance(answer, Exception) else result(identity, answer)
            steps += attempt.answer(parse(encoded(reply)))
    return sent


def plain(method: str, params: Json) -> Json:
    """A backend whose lists consist of ``a``."""
    if method == "initialize":
        return initialize_result()
    return {LISTS[method][0]: [{"name": "a"}]} if method in LISTS else {}


class Remembering(SynchronousTestCase):
    def test_initialize(self) -> None:
        """The client's params are kept as they came, and what was negotiated; an answer that fits is untouched."""
        raw = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"big": 12345678901234567890123,  "x":1}}'
        answer = parse(
            encoded(result(1, {"protocolVersion": VERSION, "capabilities": {"tools": {"listChanged": True}}}))
        )
        known = Memory()
        self.assertIs(known.answered(parse(raw), answer), answer.raw)
        self.assertEqual(known.initialize, b'{"big": 12345678901234567890123,  "x":1}')
        self.assertEqual((known.version, known.capabilities, known.initialized), (VERSION, ("tools",), False))

    def test_promise(self) -> None:
        """listChanged is promised for each list that the backend has, for no other, and nothing else is altered."""
        has: Json = {"tools": {}, "prompts": {"listChanged": False}, "resources": {"subscribe": True}, "logging": {}}
        shown = json.loads(learn(Memory(), "initialize", {}, {"capabilities": has, "serverInfo": {"name": "b"}}))
        for name in ("tools", "prompts", "resources"):
            has[name]["listChanged"] = True
        self.assertEqual(shown, result(1, {"capabilities": has, "serverInfo": {"name": "b"}}))

    def test_errors(self) -> None:
        """What the backend has refused is not remembered, and its answer is passed on as it came."""
        for method in ("initialize", "tools/list", "logging/setLevel", "resources/subscribe"):
            known, answer = Memory(), parse(encoded(error(1, -32601)))
            self.assertIs(known.answered(parse(encoded(request(method, 1, {"uri": "a:b"}))), answer), answer.raw)
            self.assertEqual(known, Memory(), method)

    def test_lists(self) -> None:
        """Pages belong to one list until the first is read anew."""
        known = Memory()
        for start in (None, "2", "4"):
            learn(known, "tools/list", {"cursor": start} if start else {}, pages("tools", [1, 2, 3, 4, 5], 2, start))
        seen = known.lists["tools/list"]
        self.assertEqual((len(seen.items), seen.pages, seen.complete), (5, 3, True))
        learn(known, "tools/list", {}, pages("tools", [1, 2, 3, 4, 5], 2, None))
        seen = known.lists["tools/list"]
        self.assertEqual((len(seen.items), seen.pages, seen.complete), (2, 1, False))

    def test_tools(self) -> None:
        """A tool may be called again if it says read-only or idempotent, by a plain true; the newest word counts."""
        hints: list[Any] = [{"readOnlyHint": True}, {"idempotentHint": True}, {"readOnlyHint": 1}, {}, None, "x"]
        known = Memory()
        known.learn_tools({"tools": [{"name": str(n), "annotations": hint} for n, hint in enumerate(hints)]})
        self.assertEqual([name for name, may in known.tools.items() if may], ["0", "1"])
        known.learn_tools({"tools": [{"name": "0"}]})
        self.assertEqual([name for name, may in known.tools.items() if may], ["1"])

    def test_bounds(self) -> None:
        """Neither subscriptions nor the pages of a list grow past their bounds, whatever the client asks for."""
        known = memory()
        for number in range(MAX_SUBSCRIPTIONS + 10):
            learn(known, "resources/subscribe", {"uri": f"a:{number}"}, {})
        self.assertEqual(len(known.subscriptions), MAX_SUBSCRIPTIONS)
        items = list(range(MAX_PAGES + 10))
        for number in items:
            learn(known, "prompts/list", {"cursor": str(number)}, pages("prompts", items, 1, str(number)))
        seen = known.lists["prompts/list"]
        self.assertEqual((seen.pages, len(seen.items)), (MAX_PAGES, MAX_PAGES))
        sent = run(replay(known), lambda method, params: pages("prompts", items, 1, params.get("cursor")))
        self.assertEqual(sum(message["method"] == "prompts/list" for message in sent), MAX_PAGES)

    @MANY
    @given(st.sampled_from(("initialize", "tools/list", "resources/subscribe", "resources/unsubscribe")), JUNK, JUNK)
    def test_junk(self, method: str, params: Any, answer: Any) -> None:
        """Whatever is in a message, the client is shown an answer to it."""
        about = request(method, 1, {"uri": params, "cursor": params, "tools": params})
        shown = Memory().answered(parse(encoded(about)), parse(encoded(result(1, answer))))
        self.assertEqual(json.loads(shown)["id"], 1)


class Teaching(SynchronousTestCase):
    def test_order(self) -> None:
        """initialize first and alone, then initialized as a barrier, then level, subscriptions and lists."""
        known = memory("tools/list")
        learn(known, "resources/subscribe", {"uri": "a:b"}, {})
        learn(known, "logging/setLevel", {"level": "error"}, {})
        attempt = replay(known)
        (first,) = attempt.begin()
        self.assertEqual((first.method, first.barrier, attempt.done), ("initialize", False, False))
        steps = attempt.answer(parse(encoded(result(1, initialize_result()))))
        self.assertEqual(steps[0], Step(b'{"jsonrpc":"2.0","method":"notifications/initialized"}', INITIALIZED, True))
        self.assertEqual(
            [(step.method, json.loads(step.raw).get("params"), step.barrier) for step in steps[1:]],
            [
                ("logging/setLevel", {"level": "error"}, True),
                ("resources/subscribe", {"uri": "a:b"}, False),
                ("tools/list", None, False),
            ],
        )

    def test_offer(self) -> None:
        """Offered is what was negotiated; the rest of the client's params goes byte for byte as it came."""
        (step,) = replay(Memory(b'{"protocolVersion":"1","big": 123456789012345678901,"x":[1, 2]}', VERSION)).begin()
        self.assertIn(b'"params":{"protocolVersion":"2025-06-18","big":123456789012345678901,"x":[1, 2]}', step.raw)

    def test_own_answers(self) -> None:
        """It is over when all of its requests are answered, in any order; others' answers are not its business."""
        attempt = replay(memory("tools/list", "prompts/list"))
        attempt.begin()
        self.assertEqual(
            [attempt.is_own(identity) for identity in (b"1", b'"1"', b"2", None)], [True, False, False, False]
        )
        attempt.answer(parse(encoded(result(1, initialize_result()))))
        for identity, is_done in ((9, False), (3, False), (3, False), (2, True)):
            attempt.answer(parse(encoded(result(identity, {}))))
            self.assertIs(attempt.done, is_done, identity)

    def test_refused(self) -> None:
        """A backend that refuses may take the session later; one that speaks another revision never will."""
        for answer, is_final in ((error(1, -1, "busy"), False), (result(1, {"protocolVersion": "2099"}), True)):
            attempt = replay(memory())
            attempt.begin()
            failure = self.assertRaises(HandshakeFailed, attempt.answer, parse(encoded(answer)))
            self.assertIs(failure.final, is_final)
            self.assertIn("2099" if is_final else "busy", str(failure))

    def test_refused_subscription(self) -> None:
        """A subscription that the backend refuses is named, and the next one is asked again."""
        known = memory()
        for uri in ("a:1", "a:2"):
            learn(known, "resources/subscribe", {"uri": uri}, {})
        attempt = replay(known)
        run(attempt, lambda method, params: KeyError() if params.get("uri") == "a:1" else plain(method, params))
        self.assertEqual(
            (attempt.refused, known.subscriptions), (["resources/subscribe a:1"], {"a:1": False, "a:2": True})
        )
        self.assertTrue(attempt.done)
        attempt = replay(known)
        run(attempt, plain)
        self.assertEqual((attempt.refused, known.subscriptions), ([], {"a:1": True, "a:2": True}))

    def test_unsubscribed(self) -> None:
        """What the client no longer wants is not asked for, even if the backend knows of no subscription to end."""
        known = memory()
        for uri in ("a:1", "a:2"):
            learn(known, "resources/subscribe", {"uri": uri}, {})
        run(replay(known), lambda method, params: KeyError() if params.get("uri") == "a:1" else plain(method, params))
        for uri in ("a:1", "a:2"):
            asked = parse(encoded(request("resources/unsubscribe", 7, {"uri": uri})))
            known.answered(asked, parse(encoded(error(7, -32602, "no such subscription"))))
        self.assertEqual(known.subscriptions, {"a:2": True})

    def test_refused_list(self) -> None:
        """A list that the new backend refuses has changed; two lists under one name are announced once."""
        attempt = replay(memory("resources/list", "resources/templates/list", "prompts/list"))
        run(attempt, lambda method, params: KeyError() if "resources" in method else plain(method, params))
        self.assertEqual((attempt.changed, attempt.done), (["notifications/resources/list_changed"], True))

    def test_old_hints(self) -> None:
        """What the old backend said of its tools does not outlive it."""
        known = memory("tools/list")
        known.tools = {"a": True, "gone": True}
        run(replay(known), plain)
        self.assertEqual(known.tools, {"a": False})

    @MANY
    @given(
        st.sets(st.integers(0, 5)), st.permutations(range(6)), st.integers(1, 7), st.integers(1, 7), st.integers(1, 7)
    )
    def test_changes(self, old: set[int], order: list[int], size: int, other_size: int, reads: int) -> None:
        """A change of what the client has read is announced; what it has not read, or another order, is not."""
        known, items = memory(), sorted(old)
        ask: Json = {}
        for _ in range(reads):
            page = pages("prompts", items, size, ask.get("cursor"))
            learn(known, "prompts/list", ask, page)
            ask = {"cursor": page["nextCursor"]} if "nextCursor" in page else {}
            if not ask:
                break

        def is_announced(now: list[int], by: int) -> bool:
            attempt = replay(known)
            run(attempt, lambda _, params: pages("prompts", now, by, params.get("cursor")) | initialize_result())
            self.assertTrue(attempt.done)
            return bool(attempt.changed)

        self.assertFalse(is_announced(items, size), "nothing has changed")
        self.assertTrue(is_announced([99, *items], size), "a new item at the start")
        if not ask:  # it has read all
            self.assertFalse(is_announced([item for item in order if item in old], size), "another order")
            self.assertTrue(is_announced([*items, 99], size), "a new item at the end")
            self.assertTrue(is_announced(order[: len(old)], other_size) or set(order[: len(old)]) == old, "other items")
        else:
            self.assertFalse(is_announced([*items, 99], size), "a new item where it has not been")

    @MANY
    @given(st.lists(JUNK, max_size=8), JUNK)
    def test_junk(self, answers: list[Any], last: Any) -> None:
        """Whatever the backend answers, a replay ends, and asks for no more pages than the client has read."""
        known = memory(*LISTS)
        replies = iter(answers)
        attempt = replay(known)
        sent: list[Json] = []
        try:
            sent = run(attempt, lambda method, _: next(replies, last))
        except HandshakeFailed:
            return
        self.assertTrue(attempt.done)
        self.assertEqual(sorted(m["method"] for m in sent if m["method"] in LISTS), sorted(LISTS))
        self.assertEqual(len(attempt.changed), len(set(attempt.changed)))
