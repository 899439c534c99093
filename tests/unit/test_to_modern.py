"""A legacy client's messages as a backend of revision 2026-07-28 takes them, and the way back."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.bridge import to_modern
from mcp_proxy.wire import jsonrpc, modern, parameters
from mcp_proxy.wire.headers import Headers
from mcp_proxy.wire.parameters import WronglyAnnotated
from tests.support import messages
from tests.support.messages import Json, encoded


def parsed(message: Json) -> jsonrpc.Message:
    """A message as it is read."""
    return jsonrpc.parse(encoded(message))


def client(**params: Any) -> to_modern.Client:
    """A client whose handshake says this."""
    return to_modern.Client.of(parsed(messages.request("initialize", 0, params)))


class Requests(SynchronousTestCase):
    def test_bytes(self) -> None:
        """Only what must be added is added; numbers, order and unknown members keep their bytes."""
        params = b'{"name":"t","arguments":{"n":1.00,"big":12345678901234567890123},"_meta":{"x":1e2}}'
        raw = client(clientInfo={"name": "c"}, capabilities={"roots": {}}).request(b"7", "tools/call", params)
        self.assertIn(b'"arguments":{"n":1.00,"big":12345678901234567890123}', raw)
        self.assertIn(b'"x":1e2', raw)
        self.assertTrue(raw.startswith(b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"t",'))
        meta = json.loads(raw)["params"]["_meta"]
        self.assertEqual(
            {name: value for name, value in meta.items() if name != "x"},
            {modern.VERSION: "2026-07-28", modern.CAPABILITIES: {"roots": {}}, modern.CLIENT_INFO: {"name": "c"}},
        )

    def test_declared(self) -> None:
        """What the client says of the envelope itself does not count; tasks mean something else here."""
        lies = {modern.VERSION: "1", modern.CAPABILITIES: {"x": 1}, modern.CLIENT_INFO: 1, modern.LOG_LEVEL: "debug"}
        raw = client(capabilities={"tasks": {}, "sampling": {}}).request(b"1", "tools/list", encoded({"_meta": lies}))
        self.assertEqual(
            json.loads(raw)["params"]["_meta"], {modern.VERSION: "2026-07-28", modern.CAPABILITIES: {"sampling": {}}}
        )

    def test_nonsense(self) -> None:
        """A handshake that says nothing, and params that are none, still make a request."""
        nobody = client(clientInfo=1, capabilities=[], protocolVersion=2)
        for params in (b"", b"null", b'{"_meta":7}'):
            meta = json.loads(nobody.request(b"1", "x/y", params))["params"]["_meta"]
            self.assertEqual(set(meta), {modern.VERSION, modern.CAPABILITIES})
        self.assertEqual(nobody.version, "2025-11-25")

    def test_accepted_elsewhere(self) -> None:
        """What is made here passes the checks that are made of such requests here."""
        names = st.text(max_size=20)

        @given(names, st.sampled_from(["tools/call", "prompts/get", "resources/read"]))
        @settings(max_examples=100, deadline=None)
        def check(name: str, method: str) -> None:
            params = encoded({"uri" if method == "resources/read" else "name": name})
            message = jsonrpc.parse(client().request(b"1", method, params))
            modern.check(message, to_modern.Tools().headers(method, params))

        check()


class Discovered(SynchronousTestCase):
    def test_version(self) -> None:
        """The client's own revision if it is a legacy one, else the newest of them."""
        for offered, shown in (("2024-11-05", "2024-11-05"), ("2026-07-28", "2025-11-25"), ("x", "2025-11-25")):
            found = to_modern.initialized(parsed(messages.result(1, {})), client(protocolVersion=offered))
            self.assertEqual(found["protocolVersion"], shown)
            self.assertEqual(set(found["serverInfo"]), {"name", "version"})

    def test_speaks(self) -> None:
        """Only an answer that names the revision is one of a backend that speaks it."""
        for answer, expected in (
            (messages.result(1, {"supportedVersions": ["2026-07-28"]}), True),
            (messages.result(1, {"supportedVersions": ["2027-01-01"]}), False),
            (messages.result(1, {}), False),
            (messages.error(1, -32601), False),
        ):
            self.assertIs(to_modern.speaks(parsed(answer)), expected)


class Results(SynchronousTestCase):
    def test_plain(self) -> None:
        """Members of the newer revision go, the others keep their bytes."""
        result = b'{"resultType":"complete","n":1.00,"ttlMs":1,"cacheScope":"public"}'
        self.assertEqual(to_modern.plain(result, b"1"), b'{"jsonrpc":"2.0","id":1,"result":{"n":1.00}}')
        self.assertEqual(to_modern.plain(b'{ "n": 1 }', b"1"), b'{"jsonrpc":"2.0","id":1,"result":{ "n": 1 }}')

    def test_kinds(self) -> None:
        """A result without a type is complete, as those of older servers are."""
        for result, kind in ((b"{}", "complete"), (b'{"resultType":"task"}', "task"), (b'{"resultType":1}', "1")):
            self.assertEqual(to_modern.kind_of(result), kind)

    def test_untagged(self) -> None:
        """A notification loses the subscription's id, and nothing else."""
        for params, expected in (
            ({"_meta": {modern.SUBSCRIPTION: 1}}, None),
            ({"uri": "a", "_meta": {modern.SUBSCRIPTION: "1", "x": 1}}, {"uri": "a", "_meta": {"x": 1}}),
            ({"uri": "a"}, {"uri": "a"}),
        ):
            told = to_modern.untagged(parsed(messages.notification("n/x", params)))
            self.assertEqual(json.loads(told.raw).get("params"), expected)


def schema(**properties: Any) -> Json:
    """The schema of a tool's arguments."""
    return {"type": "object", "properties": properties}


MARKED: Json = {"type": "string", "x-mcp-header": "X"}


class Parameters(SynchronousTestCase):
    def headers(self, shape: Json, arguments: Any) -> Headers:
        """The headers for a call of a tool of this shape."""
        return parameters.headers_for(parameters.repeated(shape), arguments)

    def test_values(self) -> None:
        """Each kind of value as the specification writes it; what is not given has no header."""
        for kind, value, text in (
            ("string", "a b", b"a b"),
            ("string", " a", b"=?base64?IGE=?="),
            ("string", "=?base64?YQ==?=", b"=?base64?PT9iYXNlNjQ/WVE9PT89?="),
            ("string", "a\r\nB: c", b"=?base64?YQ0KQjogYw==?="),
            ("boolean", True, b"true"),
            ("integer", -3, b"-3"),
            ("integer", 42.0, b"42"),
            ("string", "", b""),
            ("string", None, None),
            ("string", {"x": 1}, None),
        ):
            found = self.headers(schema(a={"type": kind, "x-mcp-header": "X"}), {"a": value})
            self.assertEqual(found, () if text is None else ((b"Mcp-Param-X", text),), value)
        self.assertEqual(self.headers(schema(a=schema(b=MARKED)), {"a": {"b": "v"}}), ((b"Mcp-Param-X", b"v"),))
        for arguments in ({}, {"a": 1}, None, []):
            self.assertEqual(self.headers(schema(a=schema(b=MARKED)), arguments), ())

    def test_wrong(self) -> None:
        """A tool that marks what cannot be repeated is to be hidden."""
        for wrong in (
            {"x-mcp-header": "X"},
            schema(a={**MARKED, "type": "number"}),
            schema(a={**MARKED, "type": ["string", "null"]}),
            schema(a={**MARKED, "x-mcp-header": "X Y"}),
            schema(a={**MARKED, "x-mcp-header": ""}),
            schema(a={**MARKED, "x-mcp-header": 1}),
            schema(a=MARKED, b={**MARKED, "x-mcp-header": "x"}),
            schema(a={"type": "array", "items": MARKED}),
            schema(a={"anyOf": [MARKED]}),
            {"$defs": {"a": MARKED}},
            {"oneOf": [schema(a=MARKED)]},
        ):
            self.assertRaises(WronglyAnnotated, parameters.repeated, wrong)
        for fine in (
            None,
            True,
            schema(a={"default": MARKED}),
            schema(a={"enum": [MARKED]}),
            schema(properties=MARKED),
        ):
            parameters.repeated(fine)

    def test_forgotten(self) -> None:
        """What a tool wants is what its newest description says."""
        tools = to_modern.Tools()
        call = encoded({"name": "t", "arguments": {"a": "v"}})
        for shape, count in ((schema(a=MARKED), 3), (schema(a={"type": "string"}), 2), (schema(a=MARKED), 3)):
            tools.learn(encoded({"tools": [{"name": "t", "inputSchema": shape}]}))
            self.assertEqual(len(tools.headers("tools/call", call)) - 1, count)
        for odd in (b"[]", b'{"tools":1}', b'{"tools":[1,{}]}'):
            self.assertEqual(tools.learn(odd), odd)

    def test_not_doubled(self) -> None:
        """What a client sends under such names does not reach the backend."""
        own = ((b"Authorization", b"x"), (b"MCP-Name", b"y"), (b"mcp-param-z", b"1"), (b"Mcp-Protocol-Version", b"2"))
        self.assertEqual(to_modern.standing(own), own[:1])
