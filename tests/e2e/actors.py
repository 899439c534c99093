"""Those who act in a scenario: the backend, the proxy, a relay that can cut the line, and the clients."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import frozen
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.interfaces import IListeningPort, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.protocols.portforward import ProxyFactory, ProxyServer
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, ResponseNeverReceived
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

from mcp_proxy.config import VARIABLES
from tests.e2e.kinds import BackendKind, ClientKind
from tests.e2e.processes import PATIENCE, Child, Program, free_port, until

ROOT = Path(__file__).parents[2]


def environment(**settings: str) -> dict[str, str]:
    """Return our environment with these settings of a proxy and no others, fit to run the package."""
    names = {variable.name for variable in VARIABLES}
    kept = {name: value for name, value in os.environ.items() if name not in names}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **settings}


@implementer(IAgentEndpointFactory)
class Loopback:
    """Connects to this machine; a host's name would cost 0.3 seconds whenever nobody listens."""

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:
        """See `IAgentEndpointFactory`."""
        return TCP4ClientEndpoint(reactor, "127.0.0.1", uri.port)


async def get_json(method: str, url: str) -> Any:
    """Return the JSON of an answer of 200, or None if there is no server."""
    client = HTTPClient(Agent.usingEndpointFactory(reactor, Loopback()))
    try:
        response = await client.request(method, url, timeout=PATIENCE)
        content = await response.content()
    except (ConnectError, ConnectionClosed, ResponseNeverReceived):
        return None
    assert response.code == 200, (url, response.code, content)
    return json.loads(content)


async def listens(port: int) -> bool:
    """Whether there is a server."""
    try:
        connection = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Protocol())
    except ConnectError:
        return False
    connection.transport.abortConnection()
    return True


class Backend:
    """The server behind the proxy, as its processes come and go on one port."""

    def __init__(self, kind: BackendKind, folder: Path) -> None:
        self.kind = kind
        self.port = free_port()
        self.processes: list[Child] = []
        self._folder = folder
        (folder / "gates").mkdir(parents=True)

    @property
    def pid(self) -> int:
        """The process that was started last."""
        return self.processes[-1].pid

    async def start(self) -> None:
        """Start a process and wait until it serves."""
        name = f"backend {len(self.processes) + 1}"
        arguments = [*self.kind.arguments, str(self.port), str(self._folder)]
        process = Child(name, self.kind.program(), arguments, environment(PORT=str(self.port)), self._folder)
        self.processes.append(process)

        async def serves() -> bool:
            assert not process.ended, f"{name} has ended:\n{process.output}"
            if not self.kind.is_ours:
                return await listens(self.port)
            health = await get_json("GET", f"http://127.0.0.1:{self.port}/health")
            return health is not None and health["pid"] == process.pid

        await until(serves, f"{name} serves")

    async def stop(self, signal: str) -> None:
        """End the process by this signal."""
        await self.processes[-1].stop(signal)

    async def end(self) -> None:
        """End whatever still runs."""
        for process in self.processes:
            await process.stop("KILL")

    async def restart(self, signal: str = "KILL") -> None:
        """End the process by this signal, and start the next one on the same port."""
        await self.stop(signal)
        await self.start()

    def shut_gate(self, name: str) -> None:
        """Let whatever waits for this gate wait."""
        (self._folder / "gates" / name).touch()

    def open_gate(self, name: str) -> None:
        """Let whatever waits for this gate go on."""
        (self._folder / "gates" / name).unlink()

    def offer(self, *tools: str) -> None:
        """Offer these tools besides the fixed ones; only a process that starts later must show them."""
        (self._folder / "tools.json").write_text(json.dumps(tools), encoding="utf-8")

    async def touch(self, uri: str) -> int:
        """Tell all subscribers that this resource has changed; return how many there are."""
        return (await get_json("POST", f"http://127.0.0.1:{self.port}/touch?uri={uri}"))["told"]

    def ledger(self) -> list[str]:
        """Return the lines that were appended, by whichever process."""
        return self._lines("ledger.txt")

    def received(self, method: str = "", pid: int | None = None) -> list[dict[str, Any]]:
        """Return the messages that were received, the oldest first.

        :param method: only those of this method.
        :param pid: only those that this process received.
        """
        entries = [json.loads(line) for line in self._lines("journal.jsonl")]
        return [
            entry["message"]
            for entry in entries
            if pid in (None, entry["pid"]) and method in ("", entry["message"].get("method"))
        ]

    def _lines(self, name: str) -> list[str]:
        file = self._folder / name
        # What is not ended by a newline is still being written.
        return file.read_text(encoding="utf-8").split("\n")[:-1] if file.exists() else []


class Proxy(Child):
    """The proxy; it finds out by itself what the backend speaks."""

    def __init__(self, program: Program, backend: Backend, folder: Path, settings: Mapping[str, str]) -> None:
        self.port = free_port()
        path = {"sse": "BACKEND_SSE_PATH", "streamable": "BACKEND_MCP_PATH"}[backend.kind.transport]
        effective = environment(
            **{path: backend.kind.path},
            BACKEND_URL=f"http://127.0.0.1:{backend.port}",
            PROXY_PORT=str(self.port),
            REACTOR=os.environ.get("REACTOR") or "twisted",
            **settings,
        )
        # The folder has no .env file.
        super().__init__("proxy", program, [], effective, folder)

    async def health(self) -> Any:
        """Return what the proxy says of itself, None if it is not up."""
        assert not self.ended, f"the proxy has ended:\n{self.output}"
        return await get_json("GET", f"http://127.0.0.1:{self.port}/health")


class Relay(ProxyFactory):
    """A wire to a port of this machine, that can be watched and cut."""

    def __init__(self, port: int) -> None:
        super().__init__("127.0.0.1", port)
        self.noisy = False
        self.sent = b""
        self.connections: list[RelayedConnection] = []
        self.is_cut = False
        self._listening: IListeningPort = reactor.listenTCP(0, self, interface="127.0.0.1")
        self.entrance: int = self._listening.getHost().port

    def buildProtocol(self, addr: Any) -> RelayedConnection:
        connection = RelayedConnection()
        connection.factory = self
        self.connections.append(connection)
        return connection

    def cut(self) -> None:
        """Break all connections, and each new one too until `mend`."""
        self.is_cut = True
        for connection in self.connections:
            connection.transport.abortConnection()

    def mend(self) -> None:
        """Let new connections through."""
        self.is_cut = False

    async def close(self) -> None:
        """End everything."""
        self.cut()
        await self._listening.stopListening()
        await until(lambda: not any(each.is_open for each in self.connections), "the relay is idle")


class RelayedConnection(ProxyServer):
    """One connection through a relay."""

    factory: Relay
    is_open = True

    def connectionMade(self) -> None:
        if self.factory.is_cut:
            self.transport.abortConnection()
        else:
            super().connectionMade()

    def dataReceived(self, data: bytes) -> None:
        self.factory.sent += data
        super().dataReceived(data)

    def connectionLost(self, reason: Failure) -> None:
        super().connectionLost(reason)
        self.is_open = False


class ClientError(Exception):
    """A client got an error; `code` is None if neither the server nor the proxy has sent it."""

    def __init__(self, code: int | None, message: str, data: Any) -> None:
        super().__init__(f"{code}: {message} {data}")
        self.code = code
        self.message = message
        self.data = data


@frozen
class Reply:
    """What a client said to a command."""

    value: Any = None
    error: ClientError | None = None

    def get(self) -> Any:
        """Return the value.

        :raises ClientError: there is none.
        """
        if self.error is not None:
            raise self.error
        return self.value


class ClientProcess(Child):
    """A process with clients of one SDK in it; see ``python_client.py`` for the commands."""

    def __init__(self, program: Program, folder: Path) -> None:
        self._buffer = b""
        self._replies: dict[int, tuple[str, Deferred[Reply]]] = {}
        self._next_id = 0
        super().__init__("clients", program, [], environment(), folder)

    @property
    def unanswered(self) -> list[str]:
        """The commands that have no reply yet."""
        return [line for line, _ in self._replies.values()]

    def command(self, client: str, do: str, arguments: Mapping[str, Any]) -> Deferred[Reply]:
        """Send a command; the reply comes when it comes."""
        assert not self.ended, f"the clients have ended:\n{self.output}"
        self._next_id += 1
        line = json.dumps({"id": self._next_id, "client": client, "do": do, **arguments})
        self.write(line.encode() + b"\n")
        reply: Deferred[Reply] = Deferred()
        self._replies[self._next_id] = line, reply
        return reply

    def said(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            error = ClientError(**answer["error"]) if "error" in answer else None
            _, reply = self._replies.pop(answer["id"])
            reply.callback(Reply(answer.get("value"), error))

    def has_ended(self, status: int | None, how: str) -> None:
        super().has_ended(status, how)
        replies, self._replies = self._replies, {}
        for _, reply in replies.values():
            reply.callback(Reply(error=ClientError(None, "the clients have ended", None)))


class Client:
    """One client: the commands, with names and types."""

    def __init__(self, kind: ClientKind, process: ClientProcess, name: str) -> None:
        self._kind = kind
        self._process = process
        self.name = name

    def start(self, do: str, **arguments: Any) -> Deferred[Reply]:
        """Begin something whose reply is for later."""
        return self._process.command(self.name, do, arguments)

    def start_call(self, tool: str, **arguments: Any) -> Deferred[Reply]:
        """Begin a tool call whose reply is for later."""
        return self.start("call", tool=tool, arguments=arguments)

    async def do(self, do: str, **arguments: Any) -> Any:
        """Do something; return its value.

        :raises ClientError: the client got an error instead.
        """
        return (await self.start(do, **arguments)).get()

    def start_connect(self, port: int, path: str = "", **options: Any) -> Deferred[Reply]:
        """Begin to connect and to initialize; the reply has the server's capabilities.

        :param path: where to connect to, if that is not a proxy.
        """
        url = f"http://127.0.0.1:{port}{path or self._kind.path}"
        return self.start("connect", url=url, transport=self._kind.transport, **options)

    async def call(self, tool: str, **arguments: Any) -> str:
        """Call a tool; return its text."""
        return (await self.do("call", tool=tool, arguments=arguments))["text"]

    async def seen(self, method: str) -> list[dict[str, Any]]:
        """Return the requests or notifications of this method that have come from the server."""
        return [message for message in await self.do("seen") if message["method"] == method]

    async def wait_for(self, method: str) -> dict[str, Any]:
        """Wait for the first request or notification of this method."""
        return (await until(lambda: self.seen(method), f"the client has got {method}"))[0]
