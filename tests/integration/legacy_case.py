"""What the tests of legacy clients on a backend of revision 2026-07-28 only have in common."""

from __future__ import annotations

from typing import Any

from tests.integration.service_case import ALICE, reactor
from tests.integration.streamable_case import StreamableCase, result_of, silent
from tests.support import messages
from tests.support.messages import Json
from tests.support.scripted import How
from tests.support.scripted_modern import ModernOnlyBackend
from tests.support.scripted_streamable import Reply
from tests.support.streamable_client import StreamableClient
from tests.support.wire import Client

META = "io.modelcontextprotocol/"
ELICIT, SAMPLE, ROOTS = "elicitation/create", "sampling/createMessage", "roots/list"
TOOLS_CHANGED = "notifications/tools/list_changed"
UPDATED = "notifications/resources/updated"


class LegacyCase(StreamableCase):
    """A test with the whole program, a backend that knows no handshake, and clients that begin with one."""

    transport = "auto"
    backend: ModernOnlyBackend
    capabilities: Json = {"elicitation": {}, "sampling": {}, "roots": {"listChanged": True}}

    def setUp(self) -> None:
        """A backend that listens; the program is started by the test."""
        super().setUp()
        self.backend.die("fin")
        self.backend = ModernOnlyBackend(reactor)
        self.backend.start()

    async def legacy(self, *headers: tuple[bytes, bytes]) -> Client:
        """A client of this case's kind that has been through its handshake and hears everything."""
        if self.kind == "streamable":
            client: Client = self.speaker(*(headers or (ALICE,)))
        else:
            client = self.client(*(headers or (ALICE,)))
            await client.open()
        before = len(self.backend.filters())
        asked = messages.initialize("hello", self.capabilities)
        if isinstance(client, StreamableClient):
            asked["params"]["protocolVersion"] = client.version
            sent = await client.request(asked)
            answer = await client.complete(sent)
            client.session = answer.header(b"mcp-session-id")
        else:
            await client.begin(asked)
        self.shown = result_of(await client.answer_to("hello"))
        await client.begin(messages.notification("notifications/initialized"))
        if isinstance(client, StreamableClient):
            await client.listen()
        await self.until(lambda: len(self.backend.filters()) > before, self.backend.methods)
        return client

    async def restart(self, how: How = "rst") -> None:
        """The backend dies, every session notices, and it comes back and is listened to again."""
        before = len(self.backend.filters())
        await self.dead(how)
        await self.backend.revive()
        await self.until(lambda: len(self.backend.filters()) > before, self.backend.methods)

    async def pending(self, client: Client, message: Json | None = None) -> Reply:
        """A call that the backend has got and not answered."""
        before = len(self.backend.deliveries("tools/call"))
        self.backend.answers["tools/call"] = silent
        await client.begin(message or messages.call("slow"))
        await self.until(lambda: len(self.backend.deliveries("tools/call")) > before, self.backend.methods)
        return self.backend.reply_to("tools/call")

    async def question(self, client: Client, method: str, count: int = 1) -> Json:
        """The newest question of this method that the client has got."""
        await self.until(lambda: len(client.asked(method)) >= count, lambda: client.messages)
        return client.asked(method)[-1]

    async def gone(self, reply: Reply) -> None:
        """Wait until the connection of this reply is closed."""
        await self.until(lambda: reply.connection.closed, "the backend's stream is closed")

    def calls(self) -> list[Json]:
        """The params of every call that the backend has got."""
        return [each.message["params"] for each in self.backend.deliveries("tools/call")]


def meta(message: Json, name: str) -> Any:
    """What a request of this revision tells under this name."""
    return message["params"]["_meta"].get(META + name)


def progress(token: Any, number: int) -> Json:
    """Some progress."""
    return messages.notification("notifications/progress", {"progressToken": token, "progress": number})


def form(text: str = "Name?") -> Json:
    """A question with a form."""
    schema = {"type": "object", "properties": {"name": {"type": "string"}}}
    return {"method": ELICIT, "params": {"mode": "form", "message": text, "requestedSchema": schema}}
