"""Clients of three kinds that call, drop their connections, come back, and tell a `Judge` of all that they get."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

import attrs

from .judge import Call, Json, Judge, Order
from .wire import Closed, Event, Http, encoded, status

META = "io.modelcontextprotocol/"
MODERN = "2026-07-28"
LEGACY = ("2025-03-26", "2025-06-18", "2025-11-25")
KINDS = "accept: application/json, text/event-stream\r\n"
SSE = "text/event-stream"

names = count(1)


@attrs.define
class World:
    """What all clients share.

    :param patience: seconds within which every call has to be answered, HOLD_TIMEOUT and a margin.
    :param pause: seconds between two calls of a client, on the average.
    :param answered: is told of each result.
    :param is_strict: no backend speaks HTTP+SSE; see `Order`.
    """

    port: int
    judge: Judge
    chance: random.Random
    patience: float
    pause: float
    answered: Callable[[Call], None]
    is_strict: bool = True
    enough: asyncio.Event = attrs.Factory(asyncio.Event)
    drops: int = 0
    sessions: int = 0

    def odds(self, share: float) -> bool:
        """Decide something that happens so often."""
        return self.chance.random() < share

    async def rest(self) -> None:
        """Let some time pass between two calls."""
        await asyncio.sleep(self.chance.expovariate(1 / self.pause))

    async def be_away(self) -> None:
        """A client has dropped a connection: most come back at once, a few take longer than links are kept."""
        self.drops += 1
        await asyncio.sleep(self.chance.uniform(5.5, 7.5) if self.odds(0.03) else self.chance.uniform(0.0, 0.8))


class Client:
    """One session, or what is one to its client: it makes some calls, and then it is over."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.judge = world.judge
        self.name = f"{type(self).__name__.lower()}-{next(names)}"
        self.order = Order(self.judge, self.name, is_strict=world.is_strict)
        self.calls: dict[str, Call] = {}
        self._numbers = count(1)
        self._idle: list[Http] = []
        self._uris: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    # -- what is called ---------------------------------------------------------------------------------------

    def make(self) -> tuple[Call, Json]:
        """Return a call and its message, of some kind."""
        chance = self.world.chance
        work = chance.choices(["write", "read", "list"], [6, 3, 1])[0]
        id = f"{self.name}.{next(self._numbers)}"
        params: Json = {}
        wanted, is_quick, method = id, True, "tools/call"
        if work == "write":
            steps = chance.choice([0, 0, 1, 3])
            params = {"name": "write", "arguments": {"token": id, "steps": steps, "pause": chance.uniform(0, 0.15)}}
            params["_meta"] = {"progressToken": f"p-{id}"}
            is_quick = not steps
        elif work == "read":
            is_quick = chance.random() < 0.7
            wanted = f"soak://{id}/" + ("" if is_quick else "slow")
            params, method = {"uri": wanted}, "resources/read"
        else:
            wanted, method = "tools", "tools/list"
        call = Call(self.name, id, work, wanted, time.monotonic() + self.world.patience, is_quick)
        self.calls[id] = call
        self.judge.begin(call)
        return call, {"jsonrpc": "2.0", "id": id, "method": method, "params": params}

    async def live(self) -> None:
        """Be a client from beginning to end."""
        if not await self.begin():
            return
        self.world.sessions += 1
        for _ in range(self.world.chance.randrange(20, 120)):
            if self.world.enough.is_set():
                break
            size = self.world.chance.choice([1, 1, 1, 1, 4])
            await asyncio.gather(*(self.call() for _ in range(size)))
            await self.world.rest()
        await self.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for http in self._idle:
            http.close()

    async def begin(self) -> bool:
        """Do the handshake; whether there is a session."""
        raise NotImplementedError

    async def call(self) -> None:
        """Make a call and see what becomes of it."""
        raise NotImplementedError

    async def end(self) -> None:
        """Be done, in one way or another."""

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.get_running_loop().create_task(self._guarded(coroutine)))

    async def _guarded(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        except Exception as error:
            self.judge.fail(f"{self.name}: {error!r}")

    # -- what comes -------------------------------------------------------------------------------------------

    def take(self, message: Json, stream: str = "") -> None:
        """A message has come, on this stream."""
        if "method" in message:
            self._notified(message["method"], message.get("params") or {}, message, stream)
            return
        call = self.calls.get(str(message.get("id")))
        if call is None:
            self.judge.foreign(self.name, message)
        elif self.judge.answer(call, message):
            self.world.answered(call)

    def _notified(self, method: str, params: Json, message: Json, stream: str) -> None:
        told = (params.get("_meta") or {}).get("soak")
        if method == "notifications/progress":
            call = self.calls.get(str(params.get("progressToken"))[2:])
            if call is None:
                self.judge.foreign(self.name, message)
            else:
                self.judge.progressed(call, params["progress"], params.get("message", ""))
        elif method == "notifications/message":
            self.order.told(params["data"], stream)
        elif told:
            self.order.told(told, stream)
        elif method == "notifications/resources/updated":
            if params["uri"] not in self._uris:
                self.judge.foreign(self.name, message)
        elif not method.endswith("list_changed") or "id" in message:
            self.judge.foreign(self.name, message)

    async def _connect(self) -> Http:
        while self._idle:
            http = self._idle.pop()
            if self.world.odds(0.8):
                return http
            http.close()
        return await Http.open(self.world.port)

    def _release(self, http: Http) -> None:
        if http.is_reusable:
            self._idle.append(http)
        else:
            http.close()

    async def _post(self, path: str, fields: str, message: Json) -> tuple[int, bytes, dict[bytes, bytes]]:
        """Post a message and read the whole answer."""
        http = await self._connect()
        try:
            head = await http.ask("POST", path, f"content-type: application/json\r\n{fields}", encoded(message))
            return status(head), await http.body(), head.fields
        finally:
            self._release(http)

    def _initialize(self, version: str) -> Json:
        info = {"name": self.name, "version": "1"}
        params = {"protocolVersion": version, "capabilities": {}, "clientInfo": info}
        return {"jsonrpc": "2.0", "id": "0", "method": "initialize", "params": params}


INITIALIZED: Json = {"jsonrpc": "2.0", "method": "notifications/initialized"}


class Streamable(Client):
    """A client over Streamable HTTP with a session."""

    _fields = ""

    async def begin(self) -> bool:
        """Initialize; 503 says that the backend is away."""
        version = self.world.chance.choice(LEGACY)
        code, body, fields = await self._post("/mcp", KINDS, self._initialize(version))
        message = {}
        if fields.get(b"content-type", b"").startswith(b"application/json"):
            message = json.loads(body)
        elif code == 200:
            # It took so long that the answer became a stream.
            message = json.loads(body.rpartition(b"data: ")[2])
        if "result" not in message or message["id"] != "0":
            self.judge.outcomes["initialize: refused"] += 1
            if code != 503 and (message.get("error") or {}).get("code") != -31001:
                self.judge.fail(f"{self.name}: initialize was answered {code} {body!r:.300}")
            return False
        self.judge.outcomes["initialize: result"] += 1
        session = fields[b"mcp-session-id"].decode()
        self._fields = f"{KINDS}mcp-session-id: {session}\r\nmcp-protocol-version: {version}\r\n"
        code, body, _ = await self._post("/mcp", self._fields, INITIALIZED)
        if code != 202:
            self.judge.fail(f"{self.name}: initialized was answered {code} {body!r:.300}")
        if self.world.odds(0.8):
            self._run(self._listen())
        if self.world.odds(0.3):
            uri = f"soak://{self.name}"
            self._uris.add(uri)
            message = {"jsonrpc": "2.0", "id": "s", "method": "resources/subscribe", "params": {"uri": uri}}
            await self._post("/mcp", self._fields, message)
        return True

    async def _listen(self) -> None:
        """Read the session's own stream, over many connections."""
        last = ""
        while True:
            http = await Http.open(self.world.port)
            try:
                again = f"last-event-id: {last}\r\n" if last else ""
                head = await http.ask("GET", "/mcp", self._fields + again)
                if status(head) != 200:
                    raise AssertionError(f"its stream was answered {head.line!r} after {last!r}")
                left = self.world.chance.expovariate(1 / 20)
                async for event in http.events():
                    self._take_event(event, "GET")
                    last = event.id or last
                    left -= 1
                    if left < 0 and last:
                        break
                else:
                    self.judge.outcomes["stream: ended by the proxy"] += 1
            finally:
                http.close()
            await self.world.be_away()

    def _take_event(self, event: Event, stream: str) -> None:
        self.order.event(event.id)
        if event.data:
            self.take(json.loads(event.data), stream)

    async def call(self) -> None:
        """Post a request; come back for the rest if its stream breaks, as it may because we break it."""
        call, message = self.make()
        http = await self._connect()
        last = ""
        try:
            if self.world.odds(0.03):
                self._hang_up_early(http, call, message)
                return
            head = await http.ask("POST", "/mcp", f"content-type: application/json\r\n{self._fields}", encoded(message))
            while True:
                call.note(head.line.decode())
                if status(head) != 200:
                    raise AssertionError(f"{head.line!r} {await http.body()!r:.300}")
                if not head.fields.get(b"content-type", b"").startswith(SSE.encode()):
                    self.take(json.loads(await http.body()))
                    return
                last = await self._read(http, call, last)
                if call.outcome:
                    return
                http.close()
                await self.world.be_away()
                call.note(f"comes back for the rest after {last}")
                http = await Http.open(self.world.port)
                head = await http.ask("GET", "/mcp", f"{self._fields}last-event-id: {last}\r\n")
        except (Closed, OSError, AssertionError, ValueError) as error:
            self.judge.fail(f"cannot go on: {error!r}", call)
            self.judge.leave(call)
        finally:
            self._release(http)

    def _hang_up_early(self, http: Http, call: Call, message: Json) -> None:
        """Go before anything is answered; there is nothing to come back for."""
        call.note("leaves at once")
        self.world.drops += 1
        http.send("POST", "/mcp", f"content-type: application/json\r\n{self._fields}", encoded(message))
        http.close_soon()
        self.judge.leave(call)

    async def _read(self, http: Http, call: Call, last: str) -> str:
        """Read a reply to its end, or for a while; return the id of the last event."""
        left = self.world.chance.randrange(3) if self.world.odds(0.25) else 1 << 30
        async for event in http.events():
            self._take_event(event, call.id)
            last = event.id or last
            left -= 1
            if left < 0 and last and not call.outcome:
                call.note(f"drops the connection after {last}")
                return last
        if not call.outcome and not last:
            raise AssertionError("the stream ended without an answer")
        return last

    async def end(self) -> None:
        """Say so, or just go away."""
        if self.world.odds(0.7):
            http = await Http.open(self.world.port)
            head = await http.ask("DELETE", "/mcp", self._fields)
            if status(head) != 200:
                self.judge.fail(f"{self.name}: DELETE was answered {head.line!r}")
            http.close()
            if self.world.odds(0.1):
                code, _, _ = await self._post("/mcp", self._fields, self.make_ping())
                if code != 404:
                    self.judge.fail(f"{self.name}: a deleted session answered {code}")

    @staticmethod
    def make_ping() -> Json:
        """Return a ping."""
        return {"jsonrpc": "2.0", "id": "ping", "method": "ping"}


class HttpSse(Client):
    """A client over HTTP+SSE: one stream for everything."""

    _path = ""
    _last = ""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self._arrived: dict[str, asyncio.Future[None]] = {}
        self._stream: Http | None = None
        self._is_open = asyncio.Event()

    async def begin(self) -> bool:
        """Open the stream, wait for where messages go, and initialize."""
        self._run(self._listen())
        await self._is_open.wait()
        call = Call(self.name, "0", "initialize", self.name, time.monotonic() + self.world.patience)
        call.wanted = "soak"
        self.calls["0"] = call
        self.judge.begin(call)
        await self._send(self._initialize("2024-11-05"), call)
        if call.outcome != "result":
            self.stop()
            return False
        await self._send(INITIALIZED)
        return True

    def stop(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
        for http in self._idle:
            http.close()

    async def _listen(self) -> None:
        while True:
            http = await Http.open(self.world.port)
            try:
                again = f"last-event-id: {self._last}\r\n" if self._last else ""
                head = await http.ask("GET", "/mcp/sse", f"accept: {SSE}\r\n{again}")
                if status(head) != 200:
                    raise AssertionError(f"its stream was answered {head.line!r} after {self._last!r}")
                left = self.world.chance.expovariate(1 / 40)
                async for event in http.events():
                    self._event(event)
                    left -= 1
                    if left < 0 and self._last:
                        break
                else:
                    self.judge.outcomes["stream: ended by the proxy"] += 1
            except Closed:
                self.judge.outcomes["stream: cut by the proxy"] += 1
            finally:
                http.close()
            away = time.monotonic()
            await self.world.be_away()
            for call in self.calls.values():
                if not call.outcome:
                    call.note(f"was away for {time.monotonic() - away:.2f} s")

    def _event(self, event: Event) -> None:
        if event.kind == "endpoint":
            if self._path not in ("", event.data):
                self.judge.fail(f"{self.name}: the endpoint is another: {event.data} after {self._path}")
            self._path = event.data
            self._is_open.set()
            self._last = event.id or self._last
            return
        self.order.event(event.id)
        self._last = event.id or self._last
        message = json.loads(event.data)
        self.take(message)
        arrived = self._arrived.get(str(message.get("id")))
        if arrived is not None and not arrived.done() and "method" not in message:
            arrived.set_result(None)

    async def _send(self, message: Json, call: Call | None = None) -> None:
        """Post a message; wait for the answer if it is a call."""
        arrived: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if call:
            self._arrived[call.id] = arrived
        try:
            code, body, _ = await self._post(self._path, "", message)
            if code != 202:
                raise AssertionError(f"{code} {body!r:.300}")
            if call:
                call.note("202")
                await asyncio.wait_for(arrived, self.world.patience + 5)
        except (Closed, OSError, AssertionError, asyncio.TimeoutError) as error:
            self.judge.fail(f"{self.name} cannot go on: {error!r}", call)
            if call:
                self.judge.leave(call)

    async def call(self) -> None:
        """Post a request and wait for its answer on the stream."""
        call, message = self.make()
        await self._send(message, call)


class Modern(Client):
    """A client of revision 2026-07-28: no session; who leaves has cancelled."""

    async def begin(self) -> bool:
        """There is nothing to begin with; some listen."""
        if self.world.odds(0.6):
            self._run(self._listen())
        return True

    def _fields_of(self, message: Json) -> str:
        params = message["params"]
        own = {META + "protocolVersion": MODERN, META + "clientCapabilities": {}}
        params["_meta"] = params.get("_meta", {}) | own | {META + "clientInfo": {"name": self.name, "version": "1"}}
        named = params.get("name") or params.get("uri")
        name = f"mcp-name: {named}\r\n" if named else ""
        method = f"mcp-method: {message['method']}\r\n"
        return f"content-type: application/json\r\n{KINDS}mcp-protocol-version: {MODERN}\r\n{method}{name}"

    async def call(self) -> None:
        """Post a request; a few leave before the answer."""
        call, message = self.make()
        http = await self._connect()
        try:
            asking = self._ask(http, call, message)
            if self.world.odds(0.05):
                await asyncio.wait_for(asking, self.world.chance.uniform(0, 0.1))
            else:
                await asking
        except asyncio.TimeoutError:
            call.note("leaves")
            self.world.drops += 1
            http.close()
            self.judge.leave(call)
        except (Closed, OSError, AssertionError, ValueError) as error:
            self.judge.fail(f"cannot go on: {error!r}", call)
            self.judge.leave(call)
        finally:
            self._release(http)

    async def _ask(self, http: Http, call: Call, message: Json) -> None:
        head = await http.ask("POST", "/mcp", self._fields_of(message), encoded(message))
        call.note(head.line.decode())
        if not head.fields.get(b"content-type", b"").startswith(SSE.encode()):
            self.take(json.loads(await http.body()))
        else:
            async for event in http.events():
                if event.data:
                    self.take(json.loads(event.data))
        if not call.outcome:
            raise AssertionError("the stream ended without an answer")

    async def _listen(self) -> None:
        """Listen for changes, until it is enough, or the proxy cannot keep what was promised."""
        while True:
            # A listen begins anew with what there is then.
            self.order = Order(self.judge, self.name, is_strict=self.world.is_strict)
            id = f"{self.name}.listen{next(self._numbers)}"
            message: Json = {"jsonrpc": "2.0", "id": id, "method": "subscriptions/listen"}
            message["params"] = {"notifications": {"toolsListChanged": True}}
            http = await Http.open(self.world.port)
            try:
                await http.ask("POST", "/mcp", self._fields_of(message), encoded(message))
                await asyncio.wait_for(self._read_changes(http, id), self.world.chance.expovariate(1 / 10))
            except asyncio.TimeoutError:
                self.world.drops += 1
            except Closed:
                self.judge.outcomes["listen: cut by the proxy"] += 1
            finally:
                http.close()
            await self.world.rest()

    async def _read_changes(self, http: Http, id: str) -> None:
        acknowledged = 0
        async for event in http.events():
            if not event.data:
                continue
            message = json.loads(event.data)
            if message.get("method") == "notifications/subscriptions/acknowledged":
                acknowledged += 1
                if acknowledged > 1:
                    self.judge.fail(f"{self.name}: acknowledged again")
            elif "method" in message:
                if message["params"]["_meta"][META + "subscriptionId"] != id:
                    self.judge.foreign(self.name, message)
                self.take(message)
            elif message.get("id") == id:
                code = (message.get("error") or {}).get("code", "result")
                self.judge.outcomes[f"listen: ended, {code}"] += 1
                if code not in ("result", -31001, -31002):
                    self.judge.fail(f"{self.name}: a listen was answered {message!r:.300}")
            else:
                self.judge.foreign(self.name, message)
