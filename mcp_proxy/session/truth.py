"""What a client is told about a request that the backend has not answered: how far it got, and what to do.

The texts are for a language model or a person; ``data`` says the same to a program.
"""

from __future__ import annotations

from typing import Any

from mcp_proxy.session.exchanges import Delivery, Exchange
from mcp_proxy.session.interfaces import Refusal
from mcp_proxy.wire import jsonrpc, revisions
from mcp_proxy.wire.errors import (
    BackendRefused,
    EventTooLarge,
    NotDelivered,
    NotRestorable,
    OutcomeUnknown,
    ProxyError,
)

#: Why a session is over, if it is not the backend's fault.
STOPPED = "The proxy was told to stop"
ENDED = "The session was ended"


def not_delivered(outage: float, why: str) -> NotDelivered:
    """The request never left us.

    :param outage: for how many seconds the backend has been away.
    """
    since = f" for {outage:.0f} s" if outage >= 1 else ""
    return NotDelivered(
        f"Backend unavailable{since} ({why}). The request was not delivered, so it is safe to send it again when "
        "the backend is back; the proxy reconnects by itself."
    )


def stopping() -> NotDelivered:
    """The proxy takes nothing new."""
    return NotDelivered(
        "The proxy is about to stop. The request was not delivered, so it is safe to send it again when the proxy is "
        "back."
    )


def cut_short(exchange: Exchange, why: str) -> ProxyError:
    """The session is over before the request has been answered, and not for the backend's sake.

    :param why: what has happened, as the beginning of a sentence.
    """
    if exchange.delivery is Delivery.NOT_SENT:
        return NotDelivered(f"{why}. The request was not delivered, so it is safe to send it again.")
    took = "had accepted" if exchange.delivery is Delivery.ACCEPTED else "may have received"
    return OutcomeUnknown(
        f"{why} before the answer came; the backend {took} the request. Whether it was carried out is unknown. "
        f"{_advice(exchange)}"
    )


def outcome_unknown(exchange: Exchange, why: str) -> OutcomeUnknown:
    """The request was sent, and the link was lost before its answer."""
    took = "had accepted" if exchange.delivery is Delivery.ACCEPTED else "may have received"
    return OutcomeUnknown(
        f"The backend {took} the request and was lost before it answered ({why}). Whether it was carried out is "
        f"unknown. {_advice(exchange)}"
    )


def _advice(exchange: Exchange) -> str:
    return "It is safe to repeat." if exchange.is_safe else "Check whether it took effect before you repeat it."


def given_up(exchange: Exchange, outage: float, why: str) -> ProxyError:
    """The request waits no longer."""
    if exchange.delivery is Delivery.NOT_SENT:
        return not_delivered(outage, why)
    return outcome_unknown(exchange, why)


def answer_too_large(size: int) -> EventTooLarge:
    """The backend answered more than we take."""
    return EventTooLarge(
        f"The backend carried out the request, but its answer of {size} bytes is over the proxy's limit "
        "(MAX_EVENT_BYTES) and was dropped. Do not repeat it if it changes anything."
    )


def refused(refusal: Refusal) -> BackendRefused:
    """The backend would not take the message."""
    return BackendRefused(f"The backend refused the message with HTTP status {refusal.status}.", status=refusal.status)


def never_initialized() -> NotRestorable:
    """A client that came without initialize, and of which nothing is known."""
    return NotRestorable(
        "This stream has not been initialized, and nothing is known of an earlier one with the same credential. "
        "The request was not delivered. Send initialize first, or reconnect the server in your client (toggle it "
        "off and on)."
    )


def not_restorable(why: str) -> NotRestorable:
    """The backend that came back is not one for this session."""
    return NotRestorable(
        f"The session is over: {why}. The request was not delivered. Connect again and send initialize, so that the "
        "two can agree on a revision."
    )


def error_answer(exchange: Exchange, error: ProxyError, outage: float, retry_after: float) -> bytes:
    """The JSON-RPC error for a request.

    :param retry_after: after how many seconds another try makes sense.
    """
    data: dict[str, Any] = {
        "source": "proxy",
        "delivered": exchange.delivery.value,
        "retrySafe": exchange.delivery is Delivery.NOT_SENT or exchange.is_safe,
        "retryAfterMs": int(retry_after * 1000),
        "method": exchange.message.method,
        "outageMs": int(outage * 1000),
        **error.data,
    }
    return jsonrpc.error(exchange.message.id, error.answer.code, error.message, data)


def still_held(exchange: Exchange) -> bytes | None:
    """A sign of life for a held request that gave a progress token; None where it gave none."""
    if exchange.token is None or exchange.progress is not None:
        return None  # ours must stay below what the backend says, or be none
    exchange.beats += 1
    progress = {
        "progressToken": exchange.token,
        "progress": exchange.beats / 1_000_000,  # far below what the backend will say: it must only ever grow
        "message": "the backend is away; the request is held until it is back",
    }
    return jsonrpc.notification(revisions.PROGRESS, progress)
