"""What the messages of a client of revision 2026-07-28 are at a backend of an older one, and back."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.bridge import to_legacy
from mcp_proxy.session.bridge.calls import lowest
from mcp_proxy.session.bridge.to_legacy import Client, Unaskable
from mcp_proxy.wire import jsonrpc
from tests.support import messages, modern
from tests.support.messages import Json, encoded

MANY = settings(max_examples=100, deadline=None)
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


def client(**capabilities: Any) -> Client:
    """A client with these capabilities."""
    request = modern.request("tools/call", 1, {}, **{modern.META_CAPABILITIES: capabilities})
    return Client.of(jsonrpc.parse(encoded(request)))


class Requests(SynchronousTestCase):
    @MANY
    @given(VALUES, st.text(st.characters(exclude_categories=("Cs",))))
    def test_arguments(self, value: Any, name: str) -> None:
        """What a tool is called with crosses unchanged."""
        message = jsonrpc.parse(encoded(modern.request("tools/call", 1, {"name": name, "arguments": {"a": value}})))
        sent = json.loads(to_legacy.request(message, b'"c"'))
        self.assertEqual(sent, messages.request("tools/call", "c", {"name": name, "arguments": {"a": value}}))

    @MANY
    @given(VALUES, VALUES)
    def test_digest(self, one: Any, two: Any) -> None:
        """A retry asks the same, whatever answers it brings; another argument is another request."""

        def digest(arguments: Any, **more: Any) -> bytes:
            params = {"name": "t", "arguments": arguments, **more}
            return to_legacy.digest(jsonrpc.parse(encoded(modern.request("tools/call", 1, params))))

        self.assertEqual(digest(one), digest(one, inputResponses={"k": {}}, requestState="s"))
        self.assertEqual(digest(one) == digest(two), json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True))

    def test_client(self) -> None:
        """Clients are the same if they say the same; what older servers cannot use makes no difference."""
        self.assertEqual(client(sampling={}, roots={}), client(roots={}, sampling={}, extensions={"x": {}}, tasks={}))
        self.assertNotEqual(client(sampling={}), client(roots={}))

    def test_levels(self) -> None:
        """The lowest level counts."""
        self.assertEqual(lowest(["error", "", "debug", "alert"]), "debug")
        self.assertEqual(lowest(["", ""]), "")


class Answers(SynchronousTestCase):
    @MANY
    @given(st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), VALUES, max_size=4))
    def test_result(self, result: Json) -> None:
        """What a result has it keeps."""
        result.pop("_meta", None)
        shown = json.loads(to_legacy.answer("tools/call", encoded(result), {}))["result"]
        self.assertEqual(shown, {**result, "resultType": "complete"})

    def test_no_object(self) -> None:
        """A result that is no object is an error, not an exception."""
        for body in (b"[]", b"1", b"null", b'{"_meta": 5}'):
            self.assertEqual(json.loads(to_legacy.answer("tools/list", body, {}))["error"]["code"], -32603, body)

    def test_strange_tools(self) -> None:
        """Whatever a backend lists, nothing fails here."""
        for tools in (5, [5], [{"inputSchema": 5}], [{"inputSchema": {"properties": 5, "x-mcp-header": "a"}}]):
            body = encoded({"tools": tools, "k": "x-mcp-header"})
            shown = json.loads(to_legacy.answer("tools/list", body, {}))["result"]["tools"]
            self.assertNotIn("x-mcp-header", json.dumps(shown))


class Questions(SynchronousTestCase):
    def test_capabilities(self) -> None:
        """A client is asked what it has said that it answers."""
        for capabilities, method, mode, is_asked in (
            ({"elicitation": {}}, "elicitation/create", "form", True),
            ({"elicitation": {}}, "elicitation/create", "url", False),
            ({"elicitation": {"url": {}}}, "elicitation/create", "url", True),
            ({"elicitation": {"url": {}}}, "elicitation/create", "form", False),
            ({"elicitation": {"url": {}, "form": {}}}, "elicitation/create", "form", True),
            ({"sampling": {}}, "sampling/createMessage", "", True),
            ({"sampling": {}}, "roots/list", "", False),
            ({"roots": {"listChanged": True}}, "roots/list", "", True),
            ({}, "elicitation/create", "form", False),
        ):
            params = {"mode": mode} if mode else {}
            try:
                to_legacy.question(method, params, client(**capabilities))
                found = True
            except Unaskable:
                found = False
            self.assertEqual(found, is_asked, (capabilities, method, mode))
