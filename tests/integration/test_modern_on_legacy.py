"""Clients of revision 2026-07-28 over real sockets, with a Streamable HTTP backend that knows only older ones."""

from __future__ import annotations

from typing import Any

from mcp_proxy.service import ProxyService
from tests.integration.service_case import ALICE, BOB, reactor
from tests.integration.streamable_case import StreamableCase, silent
from tests.integration.test_modern import TOOLS_CHANGED
from tests.support import messages, modern
from tests.support.messages import Json
from tests.support.modern_client import ModernClient
from tests.support.scripted_modern import ModernBackend
from tests.support.scripted_streamable import StreamableBackend
from tests.support.streamable_client import Sent

ABLE = {modern.META_CAPABILITIES: {"elicitation": {}}}


class ModernOnLegacyCase(StreamableCase):
    """A test with the whole program, which is to find out what its backend speaks."""

    transport = "auto"

    def visitor(self, *headers: tuple[bytes, bytes]) -> ModernClient:
        """A client of the revision."""
        client = ModernClient(reactor, self.port, *(headers or (ALICE,)))
        self.clients.append(client)
        return client

    def sessions(self) -> int:
        """How many sessions the proxy has made."""
        service: ProxyService = self.internals()
        return len(service._pool)


class ModernOnLegacy(ModernOnLegacyCase):
    async def test_restart(self) -> None:
        """The first request is refused unseen and asked again in a session, which survives a restart."""
        self.start()
        client = self.visitor()
        self.assertEqual((await client.call(n=1))["result"]["resultType"], "complete")
        self.assertEqual(self.backend.methods().count("tools/call"), 1)
        await self.settled()
        await self.restart()
        self.assertEqual((await client.call(n=2))["result"]["resultType"], "complete")
        self.assertEqual(self.backend.methods().count("initialize"), 2)
        self.assertEqual(self.backend.methods().count("tools/call"), 2)
        self.assertEqual((len(self.internals()._registry), self.sessions()), (0, 1))

    async def test_end(self) -> None:
        """A session that nobody needs is ended at the backend."""
        self.start()
        await self.visitor().call()
        await self.settled()
        self.internals()._pool.expire(reactor.seconds() + 3600)  # type: ignore[attr-defined]
        await self.until(lambda: not self.backend.sessions, lambda: self.backend.sessions)
        self.assertEqual(self.sessions(), 0)

    async def test_question(self) -> None:
        """A question becomes an answer, and its answer another request."""
        self.start()
        client = self.visitor()
        asked: list[Any] = []

        def ask(stream: Any) -> None:
            asked.append(stream)
            stream.begin()
            stream.send(messages.request("elicitation/create", 5, {"message": "?", "requestedSchema": {}}))

        self.act("tools/call", ask)
        call = modern.call("c", **ABLE)
        result = (await client.ask(call))["result"]
        self.assertEqual(result["resultType"], "input_required")
        (name,) = result["inputRequests"]
        answers = {"inputResponses": {name: {"action": "decline"}}, "requestState": result["requestState"]}
        again = await client.request({**call, "id": "d", "params": {**call["params"], **answers}})
        await self.until(lambda: any(got.message.get("id") == 5 for got in self.backend.got), "the answer has come")
        asked[0].answer(messages.result(asked[0].message["id"], {"content": []}))
        await client.complete(again)
        self.assertEqual(answer_of(again)["id"], "d")

    async def test_leaving(self) -> None:
        """A client that leaves cancels its call."""
        self.start()
        client = self.visitor()
        self.backend.answers["tools/call"] = silent
        sent = await client.request(modern.call("c"))
        await self.until(lambda: "tools/call" in self.backend.methods(), self.backend.methods)
        sent.wire.abort()
        await self.until(lambda: "notifications/cancelled" in self.backend.methods(), self.backend.methods)

    async def test_principals(self) -> None:
        """Two principals that call all the time, over restarts, never meet in one session of the backend's."""
        self.start()
        clients = {key: self.visitor(key) for key in (ALICE, BOB)}
        for turn in range(3):
            calls = [
                (key, await client.request(modern.call(f"{key[1].decode()}-{turn}-{number}", {"who": key[1].decode()})))
                for number in range(5)
                for key, client in clients.items()
            ]
            for key, sent in calls:
                await clients[key].complete(sent)
                self.assertIn("result", answer_of(sent), sent.answer.body)
            await self.settled()
            await self.restart()
        owners: dict[str, set[str]] = {}
        for got in self.backend.got:
            if got.message.get("method") == "tools/call":
                self.assertEqual(got.message["params"]["arguments"]["who"], got.headers["x-api-key"])
                owners.setdefault(got.headers["mcp-session-id"], set()).add(got.headers["x-api-key"])
        self.assertEqual(len(owners), 6)
        self.assertEqual([len(each) for each in owners.values()], [1] * len(owners))
        self.assertEqual(self.sessions(), 2)


class ChangesEra(ModernOnLegacyCase):
    async def test_there_and_back(self) -> None:
        """A backend that comes back in the other era, and then in the first again: calls and listens go on."""
        self.start()
        client = self.visitor()
        sent = await client.subscribe("L", toolsListChanged=True)
        self.assertIn("result", await client.call())
        await self.settled()
        newer = ModernBackend(reactor)
        await self.become(newer)
        self.assertIn("result", await client.call())
        await self.until(lambda: "tools/call" in newer.methods(), newer.methods)
        older = StreamableBackend(reactor)
        older.answers["tools/list"] = lambda stream, asked: stream.answer(messages.result(asked["id"], {"tools": []}))
        await self.become(older)
        self.assertIn("result", await client.call())
        await self.until(lambda: _told(sent.messages), lambda: sent.messages)
        self.assertEqual([each["method"] for each in sent.messages].count(modern.ACKNOWLEDGED), 1)


def answer_of(sent: Sent) -> Json:
    """The answer, which may have become a stream."""
    answer: Json = sent.messages[-1] if sent.is_stream else sent.answer.json()
    return answer


def _told(found: list[Json]) -> bool:
    return any(each.get("method") == TOOLS_CHANGED for each in found)
