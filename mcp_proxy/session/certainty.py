"""Whether it is certain which of several calls a message of the backend's is about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from mcp_proxy.session.bridge import to_legacy
from mcp_proxy.session.interfaces import ILink
from mcp_proxy.wire import revisions
from mcp_proxy.wire.jsonrpc import Kind, Message

T = TypeVar("T")


class Certainty:
    """What is known of a session's newest link.

    :ivar has_left: a call was left on it, which may have questions yet.
    """

    __slots__ = ("_is_vague", "_link", "has_left")

    def __init__(self) -> None:
        self._link: ILink | None = None
        self._is_vague = self.has_left = False

    def look(self, link: ILink | None) -> None:
        """There may be another link; one that has found out which transport the backend speaks is another one, too."""
        if link is not None and link is not self._link:
            self._link, self._is_vague, self.has_left = link, False, False

    @property
    def correlates(self) -> bool:
        """Whether the backend says what its messages are about, as far as that is known."""
        return self._link is None or (self._link.correlates and not self._is_vague)

    def meant(self, message: Message, calls: Mapping[bytes, T], is_lease: bool) -> T | None:
        """Which call a message is about that does not say so: the one with its token, or the only one.

        Not the only one that is left of several clients': it may be about one that was left.

        :param calls: those in flight, by their ids.
        :param is_lease: they are one client's.
        """
        if message.method == revisions.PROGRESS:
            token = message.params().get("progressToken")
            return calls.get(msgspec.json.encode(token)) if isinstance(token, str) else None
        is_question = message.kind is Kind.REQUEST
        self._is_vague = self._is_vague or is_question or message.method == to_legacy.LOG
        may_be = list(calls.values()) if is_lease or (is_question and not self.has_left) else []
        return may_be[0] if len(may_be) == 1 else None
