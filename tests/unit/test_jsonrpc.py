"""The envelope: what a message is and whom it concerns, without a change to a byte that is not ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.errors import BatchRefused, EmptyBody, NotJSON, NotJSONRPC
from mcp_proxy.wire.jsonrpc import Kind, canonical_id, parse
from tests.support.fuzz import examples

T = TypeVar("T")
MANY = examples(200)
SOME = examples(60)

#: JSON text as a peer may write it: nothing in it is a message, though some of it looks like one.
HOSTILE = (
    '"id":7,"result"',
    '{"jsonrpc":"2.0","id":7,"result":{}}',
    '{"result":{},"jsonrpc":"2.0","id":7}',
    '"jsonrpc":"2.0","id":7}',
    '"jsonrpc":"2.0","id":"7"}',
    '\\"jsonrpc":"2.0","id":7}',
    '"}',
    "\\",
    '"',
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(HOSTILE) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(("id", "jsonrpc", "result", "error", "a", *HOSTILE)), inner, max_size=4)
        | st.just({"jsonrpc": "2.0", "id": 7, "result": {}})
        | st.just({"result": {}, "jsonrpc": "2.0", "id": 7})
    ),
    max_leaves=8,
)
IDS = st.integers() | st.text(max_size=8) | st.sampled_from((*HOSTILE, "7", 7, 10**30))


def message(**members: Any) -> bytes:
    """JSON text of a message."""
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


def with_raw_id(text: bytes) -> bytes:
    """A request whose id is spelled like this."""
    return b'{"jsonrpc":"2.0","id":' + text + b',"method":"m"}'


def nested(depth: int) -> bytes:
    """A value nested so deeply."""
    return b'{"a":' * depth + b"1" + b"}" * depth


def deeper(frames: int, function: Callable[[], T]) -> T:
    """The function's value, computed that many calls further down."""
    return function() if not frames else deeper(frames - 1, function)


def shown(found: jsonrpc.Message) -> tuple[Any, ...]:
    """All that a message says."""
    return found.kind, found.raw, found.id, found.method, found.body, found.is_error


class Kinds(SynchronousTestCase):
    def test_request(self) -> None:
        """A message with a method and an id is a request; its text is kept as it came."""
        raw = b' {"id": 1, "method":"a/b" ,"params": {"x" : 1.0}, "jsonrpc":"2.0"}\n'
        self.assertEqual(parse(raw), jsonrpc.Message(Kind.REQUEST, raw, b"1", "a/b", b'{"x" : 1.0}'))

    def test_notification(self) -> None:
        """A message with a method and no id is a notification."""
        raw = message(method="n")
        self.assertEqual(parse(raw), jsonrpc.Message(Kind.NOTIFICATION, raw, None, "n", b""))

    def test_result(self) -> None:
        """A message with a result is the answer to the request with its id; the result may be anything."""
        for value in (b"{}", b"null", b"[1, 2]", b'"x"', b"false"):
            raw = b'{"jsonrpc":"2.0","id":"a","result":' + value + b"}"
            self.assertEqual(shown(parse(raw)), (Kind.RESPONSE, raw, b'"a"', "", value, False))

    def test_error(self) -> None:
        """A message with an error is an answer; it may be without an id or with null, when nobody knew it."""
        for identity, kept in ((b'"id":1,', b"1"), (b'"id":null,', None), (b"", None)):
            raw = b'{"jsonrpc":"2.0",' + identity + b'"error":{"code":1}}'
            self.assertEqual(shown(parse(raw)), (Kind.RESPONSE, raw, kept, "", b'{"code":1}', True))

    def test_neither(self) -> None:
        """A message with neither method, nor result, nor error is refused, and so is one with result and error."""
        for raw in (
            *(message(), message(id=1), message(id=1, params={}), message(id=1, result={}, error={})),
            *(message(result={}), message(id=None, result={}), message(id=1, method="")),
        ):
            with self.assertRaises(NotJSONRPC):
                parse(raw)

    def test_version(self) -> None:
        """A message says that it is JSON-RPC 2.0."""
        for version in ({}, {"jsonrpc": "1.0"}, {"jsonrpc": 2.0}, {"jsonrpc": None}):
            with self.assertRaises(NotJSONRPC):
                parse(json.dumps({**version, "id": 1, "method": "m"}).encode())

    def test_wrong_types(self) -> None:
        """A method is a string; params are structured."""
        for wrong in (1, None, {}, ["m"]):
            with self.assertRaises(NotJSONRPC):
                parse(message(id=1, method=wrong))
        for wrong in (1, None, "x", True):
            with self.assertRaises(NotJSONRPC):
                parse(message(id=1, method="m", params=wrong))

    def test_batch(self) -> None:
        """An array is refused as such; one that is not JSON is no array."""
        for raw in (b"[]", b' \n[{"jsonrpc":"2.0","id":1,"method":"m"}]'):
            with self.assertRaises(BatchRefused):
                parse(raw)
        with self.assertRaises(NotJSON):
            parse(b"[1,")

    def test_scalar(self) -> None:
        """A JSON value that is no object is no message."""
        for raw in (b"1", b'"x"', b"null", b"true"):
            with self.assertRaises(NotJSONRPC):
                parse(raw)

    def test_empty(self) -> None:
        """White space alone is an empty body."""
        for raw in (b"", b" ", b"\r\n\t "):
            with self.assertRaises(EmptyBody):
                parse(raw)

    def test_not_json(self) -> None:
        """What is not JSON is refused wherever it goes wrong, also in parts that nobody here reads."""
        whole = message(id=1, method="m", params={"a": [1, {"b": "c"}]})
        for raw in (
            *(b"x", b"{", b"{'a':1}", whole[:-1], whole + b"x", whole + whole, b"\xef\xbb\xbf" + whole, b"\0"),
            *(whole.replace(b"[1,", b"[01,"), whole.replace(b"[1,", b"[NaN,"), whole.replace(b'"c"', b'"\n"')),
            *(whole.replace(b"[1,", b"[,"), whole.replace(b'"c"', rb'"\x"')),
        ):
            with self.assertRaises(NotJSON):
                parse(raw)

    def test_half_characters(self) -> None:
        """What JavaScript makes of a text that is cut within an emoji is no text: it is mended, and nothing is lost."""
        whole = message(id=1, method="m", params={"a": "x", "b": "\\"})
        for half, mended in (
            (rb"\ud83d", rb"\ufffd"),
            (rb"\uDE00", rb"\ufffd"),
            (rb"cut \ud83d short", rb"cut \ufffd short"),
            (rb"\ud83d\ud83d\ude00\ude00", rb"\ufffd\ud83d\ude00\ufffd"),
            (rb"\\ud83d \ud83d", rb"\\ud83d \ufffd"),
            (rb"\\\ud83d\n", rb"\\\ufffd\n"),
        ):
            found, expected = whole.replace(b"x", half), whole.replace(b"x", mended)
            self.assertEqual(parse(found), parse(expected), half)
            self.assertEqual(jsonrpc.parse_all(b"[%b, %b]" % (found, whole)), ([parse(expected), parse(whole)], True))
        untouched = whole.replace(b"x", rb"\ud83d\ude00 \\ud83d")
        self.assertEqual(parse(untouched).raw, untouched)
        for raw in (
            rb'{"jsonrpc":"2.0","id":"\ud83d","method":"m"}',
            rb'[{"jsonrpc":"2.0","id":"\ud83d","method":"m"}]',
        ):
            with self.assertRaises(NotJSON):
                jsonrpc.parse_all(raw)
        with self.assertRaises(NotJSON):
            parse(whole.replace(b"x", rb"\ud83d\ud8"))

    def test_not_utf8(self) -> None:
        """Text that is not UTF-8 is refused wherever it is: in an id, a method, a member's name, or deep in params."""
        for raw in (
            b'{"jsonrpc":"2.0","id":"%b","method":"m"}',
            b'{"jsonrpc":"2.0","id":1,"method":"%b"}',
            b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"a":["%b"]}}',
            b'{"jsonrpc":"2.0","id":1,"method":"m","params":{"%b":1}}',
            b'{"jsonrpc":"2.0","id":1,"method":"m","%b":1}',
            b'{"jsonrpc":"2.0","id":1,"result":"%b"}',
        ):
            parse(raw % "é\U0001f600".encode())
            for wrong in (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xc0\xaf"):
                with self.assertRaises(NotJSON):
                    parse(raw % wrong)

    def test_bottomless(self) -> None:
        """A nest without end is not JSON to us, wherever it is, and no crash."""
        for raw in (
            b"[" * 200_000,
            b'{"a":' * 200_000,
            message(method="m")[:-1] + b',"params":' + nested(200_000) + b"}",
        ):
            with self.assertRaises(NotJSON):
                parse(raw)

    def test_deep(self) -> None:
        """What could just be read can be looked into further down in the program, or is taken for empty."""
        for depth in range(800, 1000, 10):
            raw = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":' + nested(depth) + b"}"
            try:
                read = parse(raw)
            except NotJSON:
                return
            deeper(100, read.params)
            self.assertIsNone(deeper(100, lambda read=read: jsonrpc.cancelled_id(read)))

    @SOME
    @given(st.binary(max_size=30) | st.text('{}[]":,012\\ujsonrpcid', max_size=30).map(str.encode))
    def test_garbage(self, raw: bytes) -> None:
        """Anything that is no message is refused with one of our errors."""
        try:
            parse(raw)
        except (NotJSON, NotJSONRPC):
            pass

    def test_value(self) -> None:
        """The value of a message is decoded; what is absent or not an object has no members."""
        self.assertEqual(parse(message(id=1, method="m", params={"a": 1})).params(), {"a": 1})
        self.assertEqual(parse(message(id=1, method="m")).value(), {})
        self.assertEqual(parse(message(id=1, method="m", params=[1])).params(), {})
        self.assertEqual(parse(message(id=1, result=[1])).value(), [1])

    def test_value_without_an_equal(self) -> None:
        """A number that Python cannot hold does not stop anybody from looking."""
        for number in (b"1e999", b"9" * 5000, b"-" + b"9" * 5000):
            self.assertIsInstance(
                parse(b'{"jsonrpc":"2.0","id":1,"result":{"a":%b}}' % number).params(), dict, number[:9]
            )


class Ids(SynchronousTestCase):
    def identity(self, text: bytes) -> bytes | None:
        """How an id is held that is spelled like this."""
        return parse(with_raw_id(text)).id

    def test_spellings(self) -> None:
        """An id has one spelling, whatever the client's; a number and a string are never the same."""
        for text, kept in {
            b"1": b"1",
            b"0": b"0",
            b"-0": b"0",
            b"-5": b"-5",
            b"1.0": b"1",
            b"1e2": b"100",
            b'"1"': b'"1"',
            rb'"\u0031"': b'"1"',
            rb'"\u00e9\/"': '"é/"'.encode(),
            '"é"'.encode(): '"é"'.encode(),
            b'""': b'""',
            rb'"\"\\"': rb'"\"\\"',
        }.items():
            self.assertEqual(self.identity(text), kept, text)

    def test_huge_integers(self) -> None:
        """An integer of any size keeps every digit."""
        for text in (b"9007199254740993", b"18446744073709551616", b"1" * 300):
            self.assertEqual(self.identity(text), text)
            self.assertEqual(self.identity(b"-" + text), b"-" + text)

    def test_fragile(self) -> None:
        """An id is fragile if JavaScript would round it."""
        for text in (b"0", b"-1", b"9007199254740991", b"-9007199254740991", b'"9007199254740993"', b'""'):
            self.assertFalse(jsonrpc.is_fragile(text), text)
        for text in (b"9007199254740992", b"-9007199254740992", b"1" * 300):
            self.assertTrue(jsonrpc.is_fragile(text), text)

    def test_refused(self) -> None:
        """An id is nothing but a string or an integer, and of reasonable length."""
        for text in (
            *(b"null", b"1.5", b"true", b"false", b"{}", b"[]", b'{"id":1}', b"1e999", b"-1e999"),
            *(b"9" * 2000, b"-" + b"9" * 2000, b'"' + b"x" * 2000 + b'"'),
        ):
            with self.assertRaises(NotJSONRPC):
                self.identity(text)

    @MANY
    @given(IDS, IDS)
    def test_equal(self, one: int | str, other: int | str) -> None:
        """Two ids are held alike if and only if they are the same."""
        kept = [self.identity(json.dumps(identity).encode()) for identity in (one, other)]
        self.assertEqual(kept[0] == kept[1], type(one) is type(other) and one == other)
        self.assertEqual(json.loads(kept[0] or b""), one)
        self.assertEqual(canonical_id(kept[0] or b""), kept[0])


class Rewriting(SynchronousTestCase):
    def test_with_id(self) -> None:
        """Under another id every other value keeps its bytes, order and spelling, also those that nobody here knows."""
        values = rb'"method":"m","params":{"b" : 1.10,"a":12345678901234567890123,"s":"\u00e9\/","f":1e999},"x":-0.0'
        raw = rb'{"jsonrpc":"2.0","id":"old",' + values + b"}"
        self.assertEqual(jsonrpc.with_id(raw, b'"new"'), rb'{"jsonrpc":"2.0","id":"new",' + values + b"}")
        self.assertEqual(jsonrpc.with_id(raw, b"7"), rb'{"jsonrpc":"2.0","id":7,' + values + b"}")

    def test_place(self) -> None:
        """The id stays where it was."""
        self.assertEqual(
            jsonrpc.with_id(b'{"result" : {"id": 1}, "jsonrpc": "2.0", "id": 1}', b"22"),
            b'{"result":{"id": 1},"jsonrpc":"2.0","id":22}',
        )

    @SOME
    @given(VALUES, IDS, IDS)
    def test_only_the_id(self, value: Any, old: int | str, new: int | str) -> None:
        """A message under another id is the same message otherwise."""
        raw = message(id=old, result=value)
        changed = jsonrpc.with_id(raw, json.dumps(new).encode())
        self.assertEqual(json.loads(changed), {"jsonrpc": "2.0", "id": new, "result": value})
        self.assertEqual(parse(changed).body, parse(raw).body)
        self.assertEqual(json.loads(jsonrpc.with_id(changed, json.dumps(old).encode())), json.loads(raw))

    def test_cancelled_id(self) -> None:
        """A cancellation names the request in any spelling; one that does not, or wrongly, names none."""
        for params, wanted in {
            b'{"requestId":1}': b"1",
            b'{"requestId":1.0}': b"1",
            b'{"requestId":"1"}': b'"1"',
            rb'{"reason":"r","requestId":"\u0031"}': b'"1"',
            b'{"requestId":123456789012345678901234567890}': b"123456789012345678901234567890",
            b'{"requestId":null}': None,
            b'{"requestId":1.5}': None,
            b'{"requestId":true}': None,
            b'{"requestId":1e999}': None,
            b'{"requestId":[1]}': None,
            b'{"x":1e999,"requestId":1}': b"1",
            b"{}": None,
            b"[1]": None,
        }.items():
            raw = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":' + params + b"}"
            self.assertEqual(jsonrpc.cancelled_id(parse(raw)), wanted, params)
        self.assertIsNone(jsonrpc.cancelled_id(parse(message(method="notifications/cancelled"))))

    def test_with_cancelled_id(self) -> None:
        """A cancellation can be made to be about another request; its reason and all else stay."""
        raw = b'{"jsonrpc":"2.0","method":"c","params":{"reason":"r","requestId":1,"n":1.10},"x":[ ]}'
        self.assertEqual(jsonrpc.with_cancelled_id(raw, b'"g.1"'), raw.replace(b'"requestId":1', b'"requestId":"g.1"'))


class Edges(SynchronousTestCase):
    """Answers of which only the first and the last bytes are known."""

    def told(self, raw: bytes, edge: int = 100) -> bytes | None:
        """Whom the edges of an answer say that it is for."""
        return jsonrpc.answered_id(raw[:edge], raw[-edge:])

    def test_id_first(self) -> None:
        """The id is known where it comes before the result, as Python's SDK writes it."""
        for identity in (b"1", b"-1", b'"a"', b'"a b"', b"123456789012345678901234567890"):
            for end in (b'"result":{"x":"' + b"x" * 500 + b'"}}', b'"error":{"x":"' + b"x" * 500 + b'"}}'):
                self.assertEqual(self.told(b'{"jsonrpc":"2.0","id":' + identity + b"," + end), identity)
                self.assertEqual(self.told(b'{"id":' + identity + b',"jsonrpc":"2.0",' + end), identity)
                self.assertEqual(self.told(b' {\n "jsonrpc" : "2.0", "id" : ' + identity + b" , " + end), identity)

    def test_id_last(self) -> None:
        """The id is known where it comes last, as TypeScript's SDK writes it."""
        for identity in (b"1", b"-1", b'"a"', b'"a b"'):
            for start in (b'{"result":{"x":"' + b"x" * 500 + b'"},', b'{"error":{"x":"' + b"x" * 500 + b'"},'):
                self.assertEqual(self.told(start + b'"jsonrpc":"2.0","id":' + identity + b"}"), identity)
                self.assertEqual(self.told(start + b' "jsonrpc": "2.0",\n"id": ' + identity + b" }\n"), identity)

    def test_spelling(self) -> None:
        """The id is held in its one spelling."""
        self.assertEqual(self.told(rb'{"jsonrpc":"2.0","id":"\u0031","result":{}}'), b'"1"')

    def test_unknown(self) -> None:
        """Where the edges do not say it for sure, nobody is guessed."""
        filler = b'"' + b"x" * 500 + b'"'
        for raw in (
            b'{"result":{"id":7,"x":' + filler + b'},"id":1,"jsonrpc":"2.0"}',
            b'{"x":{"jsonrpc":"2.0","id":7,"result":{}},"result":' + filler + b',"id":1,"jsonrpc":"2.0"}',
            b'{"jsonrpc":"2.0","id":{"id":7},"result":' + filler + b"}",
            b'{"jsonrpc":"2.0","id":1.5,"result":' + filler + b"}",
            b'{"jsonrpc":"2.0","id":null,"error":' + filler + b"}",
            b'{"jsonrpc":"2.0","result":{"x":' + filler + b',"jsonrpc":"2.0","id":7}}',
            b'{"jsonrpc":"2.0","result":[' + filler + b',{"jsonrpc":"2.0","id":7}]}',
        ):
            self.assertIsNone(self.told(raw), raw)

    def test_requests(self) -> None:
        """A request or a notification of the backend's is no answer, whatever its id, in either SDK's key order."""
        params = b'{"x":"' + b"x" * 500 + b'"}'
        for raw in (
            b'{"jsonrpc":"2.0","id":7,"method":"sampling/createMessage","params":' + params + b"}",
            b'{"method":"sampling/createMessage","params":' + params + b',"jsonrpc":"2.0","id":7}',
            b'{"params":' + params + b',"method":"m","jsonrpc":"2.0","id":7}',
            b'{"method":"notifications/message","params":' + params + b',"jsonrpc":"2.0"}',
        ):
            self.assertIsNone(self.told(raw), raw)

    def test_odd_ids(self) -> None:
        """An id that is no id, or longer than any of ours, is nobody's."""
        for identity in (b'"' + b"x" * 2000 + b'"', b"9" * 2000, rb'"\ud800"', rb'"\q"', b'"\n"', b'"\xff"'):
            head = b'{"jsonrpc":"2.0","id":' + identity + b',"result":{"x":'
            self.assertIsNone(jsonrpc.answered_id(head, b"}}"), identity[:9])

    @MANY
    @given(VALUES, IDS, st.permutations(("jsonrpc", "id", "result", "extra")), st.integers(1, 150), st.booleans())
    def test_never_wrong(self, value: Any, identity: int | str, order: list[str], edge: int, compact: bool) -> None:
        """Whatever a result contains and however little is known of it, it is not taken for another's answer."""
        members = {"jsonrpc": "2.0", "id": identity, "result": value, "extra": value}
        kept = {name: members[name] for name in order if name != "extra" or compact}
        raw = json.dumps(kept, separators=(",", ":") if compact else None, ensure_ascii=compact).encode()
        self.assertIn(self.told(raw, edge), (None, parse(raw).id))

    @MANY
    @given(VALUES, IDS, st.booleans(), st.booleans())
    def test_always_known(self, value: Any, identity: int | str, is_first: bool, is_error: bool) -> None:
        """In the key orders of the SDKs the id is told whatever the result contains."""
        name = "error" if is_error else "result"
        answer = {"jsonrpc": "2.0", "id": identity, name: value}
        if not is_first:
            answer = {name: value, "jsonrpc": "2.0", "id": identity}
        raw = json.dumps(answer, separators=(",", ":")).encode()
        self.assertEqual(self.told(raw, 300), parse(raw).id)

    @SOME
    @given(VALUES, IDS, st.permutations(("jsonrpc", "id", "method", "params")), st.integers(1, 150))
    def test_never_an_answer(self, value: Any, identity: int | str, order: list[str], edge: int) -> None:
        """No request is taken for an answer, whatever its params contain."""
        members = {"jsonrpc": "2.0", "id": identity, "method": "m", "params": {"x": value}}
        raw = json.dumps({name: members[name] for name in order}, separators=(",", ":")).encode()
        self.assertIsNone(self.told(raw, edge))


class Builders(SynchronousTestCase):
    def test_request(self) -> None:
        """A request of our own is one that we would take."""
        built = parse(jsonrpc.request(b'"mcp-proxy/1"', "m", b'{"big":12345678901234567890123}'))
        self.assertEqual((built.kind, built.id, built.method), (Kind.REQUEST, b'"mcp-proxy/1"', "m"))
        self.assertEqual(built.body, b'{"big":12345678901234567890123}')
        self.assertNotIn(b"params", jsonrpc.request(b"1", "m"))

    def test_notification(self) -> None:
        """A notification of our own is one, with params only where there are some."""
        built = parse(jsonrpc.notification("n", {"a": "é"}))
        self.assertEqual((built.kind, built.id, built.params()), (Kind.NOTIFICATION, None, {"a": "é"}))
        self.assertNotIn(b"params", jsonrpc.notification("n"))
        self.assertEqual(parse(jsonrpc.notification("n", {})).body, b"{}")

    def test_result(self) -> None:
        """A result of our own is one, of plain values or of text."""
        for value in ({"a": [1]}, msgspec.Raw(b'{"a":[1]}')):
            built = parse(jsonrpc.result(b"1", value))
            self.assertEqual(
                (built.kind, built.id, built.value(), built.is_error), (Kind.RESPONSE, b"1", {"a": [1]}, False)
            )

    def test_error(self) -> None:
        """An error of our own is one; without an id its id is null, without data it has none."""
        built = parse(jsonrpc.error(b'"x"', -31001, "no", {"a": 1}))
        self.assertEqual((built.kind, built.id, built.is_error), (Kind.RESPONSE, b'"x"', True))
        self.assertEqual(built.value(), {"code": -31001, "message": "no", "data": {"a": 1}})
        anonymous = jsonrpc.error(None, 1, "no")
        self.assertEqual(json.loads(anonymous), {"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": "no"}})
        self.assertIsNone(parse(anonymous).id)

    @SOME
    @given(IDS, VALUES)
    def test_any(self, identity: int | str, value: Any) -> None:
        """Whatever is put into a message of our own comes out of it."""
        canonical = canonical_id(json.dumps(identity).encode()) or b""
        for raw in (jsonrpc.result(canonical, value), jsonrpc.error(canonical, 1, "m", {"v": value})):
            built = parse(raw)
            self.assertEqual(built.id, canonical)
            self.assertEqual(built.params()["data"]["v"] if built.is_error else built.value(), value)
