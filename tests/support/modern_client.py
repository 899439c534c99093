"""A client of revision 2026-07-28 on real sockets."""

from __future__ import annotations

from typing import Any

from tests.support import modern
from tests.support.http1 import HeaderList
from tests.support.messages import Json, encoded
from tests.support.streamable_client import Sent, StreamableClient
from tests.support.waiting import until


class ModernClient(StreamableClient):
    """An MCP client without a session: each message goes with the headers that belong to it.

    :param port: the proxy's.
    :param headers: sent with every request.
    """

    def __init__(self, reactor: Any, port: int, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(reactor, port, *headers, version=modern.VERSION)

    async def request(self, message: Any, *headers: tuple[bytes, bytes]) -> Sent:
        """Post a message and wait for nothing."""
        own: HeaderList = (*modern.headers_of(message), *headers)
        return await self.send("POST", encoded(message), own)

    async def call(self, **arguments: Any) -> Json:
        """Call the tool with a new id."""
        self._count += 1
        return await self.ask(modern.call(f"call-{self._count}", arguments))

    async def subscribe(self, identity: Any, **filter_: Any) -> Sent:
        """Listen, and wait for the acknowledgement."""
        sent = await self.request(modern.listen(identity, **filter_))
        await until(self._reactor, lambda: sent.messages, lambda: bytes(sent.wire.data))
        return sent
