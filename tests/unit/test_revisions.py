"""Which requests may be sent twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.wire import jsonrpc
from mcp_proxy.wire.revisions import LISTS, is_safe

SAFE = (
    "initialize",
    "ping",
    "tools/list",
    "prompts/list",
    "prompts/get",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "resources/subscribe",
    "resources/unsubscribe",
    "completion/complete",
    "logging/setLevel",
    "server/discover",
    "subscriptions/listen",
    "tasks/get",
    "tasks/list",
    "tasks/result",
)
UNSAFE = (
    *("tools/call", "tasks/cancel", "tasks/update", "sampling/createMessage", "elicitation/create", "Ping", "ping "),
    *("x/y", "tools/list/", "resources/subscribe2", "notifications/initialized"),
)


def request(method: str, params: bytes = b"{}") -> jsonrpc.Message:
    """A request as it comes."""
    return jsonrpc.parse(b'{"jsonrpc":"2.0","id":1,"method":"%b","params":%b}' % (method.encode(), params))


class Safe(SynchronousTestCase):
    def test_safe(self) -> None:
        """What reads, or sets what is set already, may be sent twice."""
        for method in SAFE:
            self.assertTrue(is_safe(request(method)), method)

    def test_unsafe(self) -> None:
        """A tool call and whatever nobody here knows may not."""
        for method in UNSAFE:
            self.assertFalse(is_safe(request(method)), method)

    @settings(max_examples=100, deadline=None)
    @given(st.text("abcdefghijklmnopqrstuvwxyz/_2", min_size=1))
    def test_unknown(self, method: str) -> None:
        """No method is safe but those of the list."""
        self.assertEqual(is_safe(request(method)), method in SAFE)

    def test_single_use(self) -> None:
        """A retry that carries the client's answers, or the state they belong to, is used up by its first delivery."""
        for method in (*SAFE, *UNSAFE):
            for member in (b"inputResponses", b"requestState"):
                for params in (b'{"%b":{}}', b'{"x":1,\n "%b" : "s"}', b'{"%b":null}'):
                    self.assertFalse(is_safe(request(method, params % member)), (method, params))

    def test_lists(self) -> None:
        """Each list names the member with its items, its capability, and what tells of a change."""
        self.assertEqual(
            LISTS,
            {
                "tools/list": ("tools", "tools", "notifications/tools/list_changed"),
                "prompts/list": ("prompts", "prompts", "notifications/prompts/list_changed"),
                "resources/list": ("resources", "resources", "notifications/resources/list_changed"),
                "resources/templates/list": (
                    "resourceTemplates",
                    "resources",
                    "notifications/resources/list_changed",
                ),
            },
        )
