"""Spans of OpenTelemetry: one for each request of a client's, from its arrival to its end.

Needs the extra ``otel``; which spans go where is configured as for any program (``opentelemetry-instrument``). The
trace goes on in the headers; what a client has put into ``params._meta`` passes untouched, as the protocol wants it.
"""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import ProxyTracerProvider, SpanKind, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mcp_proxy import __version__
from mcp_proxy.metrics import Tally
from mcp_proxy.session.exchanges import Exchange
from mcp_proxy.wire import revisions

_W3C = TraceContextTextMapPropagator()
#: The fields of a trace's context.
_FIELDS = ("traceparent", "tracestate")
#: What becomes of a request without being an error.
_FINE = frozenset(("result", "own", "cancelled"))
#: Which attribute has the name of what is asked for, and what belongs to it, by method.
_TARGETS: dict[str, tuple[str, dict[str, str]]] = {
    revisions.CALL_TOOL: ("gen_ai.tool.name", {"gen_ai.operation.name": "execute_tool"}),
    "prompts/get": ("gen_ai.prompt.name", {}),
}
#: The longest name that is told; tools have shorter ones.
MAX_TARGET = 128


def tally() -> Tally:
    """What counts; it makes spans as well if somebody has said where they go."""
    provider = trace.get_tracer_provider()
    return Tally() if isinstance(provider, ProxyTracerProvider) else Spans(provider)


class Spans(Tally):
    """Counts, and makes spans.

    :param provider: of OpenTelemetry.
    """

    def __init__(self, provider: TracerProvider) -> None:
        super().__init__()
        self._tracer = provider.get_tracer("mcp_proxy", __version__)

    def began(self, exchange: Exchange, session: str) -> None:
        """A request has arrived: its span begins, and the backend is told of it."""
        method = self.method_of(exchange)
        about = {"mcp.method.name": method, "mcp_proxy.session": session}
        span = self._tracer.start_span(method, _context(exchange), SpanKind.SERVER, about)
        if span.is_recording() and method in _TARGETS:
            _name(span, exchange, method)
        exchange.span = span
        carrier: dict[str, str] = {}
        _W3C.inject(carrier, trace.set_span_in_context(span))
        kept = tuple(header for header in exchange.headers if header[0].lower().decode("latin-1") not in _FIELDS)
        exchange.headers = kept + tuple((name.encode(), value.encode()) for name, value in carrier.items())

    def ended(self, exchange: Exchange, outcome: str, delivery: str) -> None:
        """A request is over, and so is its span."""
        super().ended(exchange, outcome, delivery)
        span = exchange.span
        if not isinstance(span, trace.Span):
            return
        exchange.span = None
        span.set_attribute("mcp_proxy.outcome", outcome)
        span.set_attribute("mcp_proxy.delivery", delivery)
        span.set_attribute("mcp_proxy.was_held", exchange.held_since is not None)
        span.set_attribute("mcp_proxy.resends", exchange.resends)
        if outcome not in _FINE:
            span.set_attribute("error.type", outcome)
            span.set_status(StatusCode.ERROR)
        span.end()


def _name(span: trace.Span, exchange: Exchange, method: str) -> None:
    """Say which tool or prompt is asked for, as the conventions for MCP want it."""
    target = exchange.message.params().get("name")
    if isinstance(target, str) and 0 < len(target) <= MAX_TARGET and target.isprintable():
        span.update_name(f"{method} {target}")
        span.set_attributes({**_TARGETS[method][1], _TARGETS[method][0]: target})


def _context(exchange: Exchange) -> Context:
    """Where a request comes from: what its ``params._meta`` says, or else its headers."""
    if b'"traceparent"' in exchange.message.body:
        meta = exchange.message.params().get("_meta")
        if isinstance(meta, dict):
            named = {field: meta[field] for field in _FIELDS if isinstance(meta.get(field), str)}
            context = _W3C.extract(named, Context())
            if trace.get_current_span(context).get_span_context().is_valid:
                return context
    headers = {name.lower().decode("latin-1"): value.decode("latin-1") for name, value in exchange.headers}
    return _W3C.extract({field: headers[field] for field in _FIELDS if field in headers}, Context())
