"""Spans, and the trace that goes on to the backend."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, format_span_id, format_trace_id

from mcp_proxy.metrics import Tally
from mcp_proxy.session.policy import Policy
from mcp_proxy.tracing import Spans, tally
from tests.memory.house_case import HouseCase
from tests.support import messages

TRACE, PARENT, OTHER_PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"


def context(parent: str) -> str:
    """A W3C trace context."""
    return f"00-{TRACE}-{parent}-01"


class Open(SpanProcessor):
    """Knows the spans that have not ended."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """One has begun."""
        self.spans.append(span.context.span_id)

    def on_end(self, span: ReadableSpan) -> None:
        """One has ended."""
        assert span.context is not None
        self.spans.remove(span.context.span_id)


class Traced(HouseCase):
    def setUp(self) -> None:
        super().setUp()
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.open = Open()
        self.provider.add_span_processor(self.open)
        self.rebuild(tally=Spans(self.provider), policy=Policy(max_held=1, hold_timeout=10.0))
        self.path = self.house.initialized().path
        self.exporter.clear()

    def tearDown(self) -> None:
        """Every span that began has ended."""
        super().tearDown()
        self.assertEqual(self.open.spans, [])

    def call(self, *headers: tuple[bytes, bytes], identity: Any = 1, method: str = "tools/call", **meta: Any) -> None:
        params = {"name": "add", "arguments": {}, **({"_meta": meta} if meta else {})}
        self.house.post(self.path, messages.request(method, identity, params), *headers)

    def span(self) -> ReadableSpan:
        """The only span that has ended."""
        (span,) = self.exporter.get_finished_spans()
        return span

    def sent(self) -> dict[bytes, bytes]:
        """The headers of the newest message to the backend."""
        headers = self.house.backend.link.outgoing[-1].headers
        self.assertEqual(len({name for name, _ in headers}), len(headers))
        return dict(headers)

    def test_header(self) -> None:
        """A trace that comes in the headers has one span more when it reaches the backend."""
        self.call((b"traceparent", context(PARENT).encode()), (b"tracestate", b"a=b"), (b"x-own", b"1"))
        span = self.span()
        assert span.context is not None and span.parent is not None and span.attributes is not None
        self.assertEqual((span.name, span.kind), ("tools/call add", SpanKind.SERVER))
        self.assertEqual((format_trace_id(span.context.trace_id), format_span_id(span.parent.span_id)), (TRACE, PARENT))
        sent = self.sent()
        self.assertEqual(sent[b"traceparent"].decode(), context(format_span_id(span.context.span_id)))
        self.assertEqual((sent[b"tracestate"], sent[b"x-own"]), (b"a=b", b"1"))
        expected = {"mcp.method.name": "tools/call", "mcp_proxy.outcome": "result", "mcp_proxy.delivery": "yes"}
        self.assertEqual(expected.items() - span.attributes.items(), set())
        self.assertTrue(span.status.is_unset)

    def test_meta(self) -> None:
        """What a message says of its trace wins over its headers, and reaches the backend as it is."""
        self.call((b"traceparent", context(OTHER_PARENT).encode()), traceparent=context(PARENT))
        span = self.span()
        assert span.parent is not None
        self.assertEqual(format_span_id(span.parent.span_id), PARENT)
        self.assertEqual(self.house.backend.link.sent[-1]["params"]["_meta"], {"traceparent": context(PARENT)})

    def test_bad_meta(self) -> None:
        """What is no trace context is none."""
        for number, wrong in enumerate(("", "00-0-0-00", 7, None, ["x"], "x" * 1000)):
            self.exporter.clear()
            self.call((b"traceparent", context(PARENT).encode()), identity=number, traceparent=wrong)
            span = self.span()
            assert span.parent is not None
            self.assertEqual(format_span_id(span.parent.span_id), PARENT)

    def test_begins_here(self) -> None:
        """Without a trace one begins here, whatever the header was."""
        self.call()
        self.assertIsNone(self.span().parent)
        self.exporter.clear()
        self.call((b"traceparent", b"\xff"), (b"tracestate", b"a=b"), identity=2)
        self.assertIsNone(self.span().parent)
        self.assertNotIn(b"tracestate", self.sent())

    def test_errors(self) -> None:
        """A request that did not end well says how, whoever ended it."""
        self.house.backend.go_down()
        self.call()
        self.call(identity=2)
        self.house.clock.advance(10)
        ends = []
        for span in self.exporter.get_finished_spans():
            assert span.attributes is not None
            ends.append((span.attributes["error.type"], span.attributes["mcp_proxy.was_held"], span.status.is_ok))
        self.assertEqual(ends, [("overloaded", False, False), ("not_delivered", True, False)])

    def test_all_ends(self) -> None:
        """Refused, cancelled, lost, unknown and answered by the proxy: each span ends once."""
        silent: Any = lambda asked: None  # noqa: E731
        self.house.backend.answers["tools/call"] = silent
        self.call(identity=1)
        self.house.post(self.path, messages.notification("notifications/cancelled", {"requestId": 1}))
        self.call(identity=2)
        self.house.backend.go_down()
        self.call(identity=3, method="ping")
        self.call(identity=4, method="x/y")
        self.house.backend.come_back()
        spans = self.exporter.get_finished_spans()
        names = [(span.name.partition(" ")[0], (span.attributes or {})["mcp_proxy.outcome"]) for span in spans]
        expected = [("tools/call", "cancelled"), ("tools/call", "unknown"), ("ping", "own"), ("other", "error")]
        self.assertEqual(names, expected)

    def test_name(self) -> None:
        """A tool and a prompt are named, if that is a name; nothing else is."""
        cases: list[tuple[str, Any, str]] = [
            ("tools/call", "add", "tools/call add"),
            ("prompts/get", "größe", "prompts/get größe"),
            ("resources/read", "add", "resources/read"),
            *(("tools/call", wrong, "tools/call") for wrong in (7, None, "", "x" * 129, "a\nb", {"a": 1})),
        ]
        for number, (method, target, expected) in enumerate(cases):
            self.exporter.clear()
            self.house.post(self.path, messages.request(method, number, {"name": target}))
            span = self.span()
            attributes = dict(span.attributes or {})
            named = attributes.get("gen_ai.tool.name"), attributes.get("gen_ai.prompt.name")
            is_named = " " in expected
            self.assertEqual(span.name, expected)
            self.assertEqual(is_named, target in named and target is not None)
            self.assertEqual(attributes.get("gen_ai.operation.name"), "execute_tool" if named[0] else None)

    def test_session(self) -> None:
        """Spans of one session have its short name in common, which is that in the logs."""
        self.call()
        (session,) = self.house.registry
        self.assertEqual((self.span().attributes or {})["mcp_proxy.session"], session.label)

    def test_nothing_of_the_request(self) -> None:
        """No argument and no header is in a span."""
        headers = ((b"x-api-key", b"s3cret"),)
        self.path = self.house.initialized(*headers).path
        self.exporter.clear()
        self.call(*headers, secret="s3cret", traceparent=context(PARENT))
        self.assertNotIn("s3cret", self.span().to_json())


class NotTraced(HouseCase):
    def test_passed_on(self) -> None:
        """Without spans a trace passes as it came."""
        headers = ((b"traceparent", context(PARENT).encode()), (b"tracestate", b"a=b"), (b"baggage", b"c=d"))
        path = self.house.initialized().path
        self.house.post(path, messages.call(1), *headers)
        self.assertEqual(set(headers) - set(self.house.backend.link.outgoing[-1].headers), set())

    def test_off(self) -> None:
        """Nobody has said where spans go, so there are none."""
        self.assertIs(type(tally()), Tally)
