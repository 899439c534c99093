"""A backend that is there but says strange things."""

from __future__ import annotations

import datetime
import ipaddress
import json
from collections.abc import Callable
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet import ssl

from mcp_proxy.backend.http_sse import MAX_POSTS
from mcp_proxy.frontend import http_sse
from tests.integration.service_case import ALICE, ServiceCase
from tests.support import messages
from tests.support.messages import Json, encoded
from tests.support.scripted import ACCEPTED, STREAM_HEAD, Asked, BackendConnection, event, response

HTML = response(200, b"<html>Welcome to the gateway</html>", ("Content-Type", "text/html"))


class Streams(ServiceCase):
    """What is answered to the GET of the stream."""

    def answer_streams(self, data: bytes) -> None:
        """Answer every GET with these bytes."""
        self.backend.on_get = lambda connection, asked: connection.write(data)

    async def refused(self, reason: str, *, is_down: bool = False, **settings: Any) -> None:
        """A session that meets such a backend after a restart, and a client that meets it first; both recover."""
        strange, self.backend.on_get = self.backend.on_get, self.backend.open_stream
        self.start(max_reconnect_attempts=2, **settings)
        client = await self.connected(ALICE)
        self.backend.on_get = strange
        await self.backend.restart()
        error = (await client.call())["error"]
        self.assertEqual((error["code"], error["data"]["delivered"]), (-31001, "no"))
        self.assertIn(reason, error["message"])
        self.assertIs(self.internals()._backend.is_down, is_down)
        self.patch(http_sse, "VERDICT_WAIT", 0.1)
        newcomer = self.client(ALICE)
        await newcomer.open()
        await newcomer.begin(messages.initialize("new"))
        self.backend.on_get = self.backend.open_stream
        self.backend.is_deaf = False
        self.assertIn("result", await newcomer.answer_to("new"))
        self.assertIn("result", await client.call())
        self.assertEqual(len(self.backend.deliveries("tools/call")), 1)

    async def test_html(self) -> None:
        """A page instead of a stream is no stream."""
        self.answer_streams(HTML)
        await self.refused("text/html instead of text/event-stream")

    async def test_redirect(self) -> None:
        """A redirect is not followed."""
        self.answer_streams(response(302, b"", ("Location", f"http://127.0.0.1:{self.backend.port}/elsewhere")))
        await self.refused("redirects are not followed")
        self.assertEqual([asked.path for asked in self.backend.asked if "elsewhere" in asked.path], [])

    async def test_garbage(self) -> None:
        """Bytes that are no HTTP are a broken connection."""
        self.answer_streams(b"\x16\x03\x01\x00\xff SSH-2.0-OpenSSH\r\n\r\n\x00\xff\xfe\r\n\r\n")
        await self.refused("", is_down=True)

    async def test_silent(self) -> None:
        """A backend that accepts and says nothing is given up in time."""
        self.backend.on_get = lambda connection, asked: None
        await self.refused("did not answer in 0.2 s", is_down=True, connect_timeout=0.2)

    async def test_no_endpoint(self) -> None:
        """A stream without an endpoint event is given up in time, too."""
        self.answer_streams(STREAM_HEAD + b": hello\r\n\r\n")
        await self.refused("sent no endpoint event", is_down=True, connect_timeout=0.2)

    async def test_500(self) -> None:
        """A backend that fails is asked again."""
        self.answer_streams(response(500, b"Internal Server Error"))
        await self.refused("500")

    async def test_503(self) -> None:
        """So is a gateway, for whose backend all clients wait together."""
        self.answer_streams(response(503, b"no healthy upstream"))
        await self.refused("503", is_down=True)

    async def test_521(self) -> None:
        """The same for one that has a status of its own for that."""
        self.answer_streams(response(521, b"web server is down"))
        await self.refused("521", is_down=True)

    async def test_404(self) -> None:
        """A backend without such a path may get one."""
        self.answer_streams(response(404, b"{}"))
        await self.refused("404")

    async def test_foreign_endpoint(self) -> None:
        """An endpoint of another origin gets no message, and no credential."""
        for where in (b"http://127.0.0.2:%d/x" % self.backend.port, b"//evil.example/x", b"https://127.0.0.1/x"):
            self.answer_streams(STREAM_HEAD + event(where, b"endpoint"))
        await self.refused("another origin")

    async def test_no_url(self) -> None:
        """An endpoint that is no URL is refused."""
        self.answer_streams(STREAM_HEAD + event(b"http://[::1", b"endpoint"))
        await self.refused("")

    async def test_absolute_endpoint(self) -> None:
        """An endpoint with the origin of the backend is taken."""

        def on_get(connection: BackendConnection, asked: Asked) -> None:
            self.backend.open_stream(connection, asked)
            (name,) = [name for name, each in self.backend.streams.items() if each.connection is connection]
            url = f"http://127.0.0.1:{self.backend.port}/other?session_id={name}"
            connection.write(event(url.encode(), b"endpoint"))

        self.backend.on_get = on_get
        self.start()
        client = await self.connected(ALICE)
        await client.call()
        self.assertTrue(self.backend.asked[-1].path.startswith("/other?"))
        self.assertEqual(len([each for each in client.events if each.type == "endpoint"]), 1)

    async def test_challenge_first(self) -> None:
        """A 401 to the first stream is passed on as it came."""
        self.answer_streams(response(401, b"who?", ("WWW-Authenticate", "Bearer x=1"), ("Set-Cookie", "a=b")))
        self.start()
        answer = await self.client(ALICE).fetch("GET", "/mcp/sse")
        self.assertEqual((answer.status, answer.body), (401, b"who?"))
        self.assertEqual(answer.header(b"www-authenticate"), b"Bearer x=1")
        self.assertEqual(answer.header(b"set-cookie"), b"")

    async def test_challenge_after_restart(self) -> None:
        """A 401 to the replayed stream: the client's next message is told, and with a good answer all goes on."""
        self.start()
        client = await self.connected(ALICE)
        self.answer_streams(response(401, b"who?", ("WWW-Authenticate", "Bearer x=1")))
        await self.backend.restart()
        await self.until(lambda: self.backend.asked[-1].generation == 2)
        await self.until(lambda: _phase(self) == "parked")
        answer = await client.post(messages.call("x"))
        self.assertEqual((answer.status, answer.header(b"www-authenticate")), (401, b"Bearer x=1"))
        self.backend.on_get = self.backend.open_stream
        self.assertIn("result", await client.call())


def _phase(case: ServiceCase) -> str:
    (session,) = case.internals()._registry
    return str(session.phase.value)


class Events(ServiceCase):
    """What comes on a stream that is live."""

    async def oversized(self, answer: Callable[[Json], bytes]) -> None:
        self.start(max_event_bytes=4000)
        client = await self.connected(ALICE)
        self.backend.answers["tools/call"] = lambda stream, asked: (
            stream.send_raw(event(answer(asked))) if asked["id"] == "big" else None
        )
        await client.begin(messages.call("other"))
        await self.until(lambda: self.backend.deliveries("tools/call"))
        error = (await client.ask(messages.call("big")))["error"]
        self.assertEqual((error["code"], error["data"]["delivered"]), (-31002, "yes"))
        self.assertIn("MAX_EVENT_BYTES", error["message"])
        self.backend.stream.send(messages.result("other", {"fine": True}))
        self.assertEqual((await client.answer_to("other"))["result"], {"fine": True})
        self.assertEqual(len(self.backend.deliveries("initialize")), 1)

    async def test_oversized(self) -> None:
        """An answer over MAX_EVENT_BYTES is told to who waits for it; the stream and the others are unharmed."""
        await self.oversized(lambda asked: encoded(messages.result(asked["id"], {"x": "y" * 100_000})))

    async def test_oversized_id_last(self) -> None:
        """The same if the id stands at the end."""
        await self.oversized(lambda asked: b'{"result":{"x":"%b"},"jsonrpc":"2.0","id":"big"}' % (b"y" * 100_000))

    async def test_oversized_notification(self) -> None:
        """A notification over the bound is dropped, and nothing else."""
        self.start(max_event_bytes=4000)
        client = await self.connected(ALICE)
        self.backend.stream.send(messages.notification("notifications/big", {"x": "y" * 100_000}))
        self.backend.stream.send(messages.notification("notifications/small"))
        await self.until(lambda: client.notifications("notifications/small"))
        self.assertEqual(client.notifications("notifications/big"), [])
        self.assertIn("result", await client.call())

    async def nonsense(self, *events: bytes) -> None:
        """None of these harms the stream or reaches the client."""
        self.start()
        client = await self.connected(ALICE)
        for data in events:
            self.backend.stream.send_raw(data)
        self.assertIn("result", await client.call())
        self.assertEqual(len(self.backend.deliveries("initialize")), 1)
        self.assertEqual([each.get("id") for each in client.messages], ["hello", "call-1"])
        self.assertEqual(self.flushLoggedErrors(), [])

    async def test_invalid_json(self) -> None:
        """An event that is no JSON-RPC message is dropped."""
        await self.nonsense(
            *(event(data) for data in (b"{", b"hello", b"", b"[]", b"null", b"{}", b'{"jsonrpc":"2.0"}', b"[" * 5000))
        )

    async def test_invalid_utf8(self) -> None:
        """An event that is no UTF-8 is dropped."""
        await self.nonsense(
            event(b'{"jsonrpc":"2.0","method":"x\xff\xfe"}'), event(b"\xff"), b"event: \xff\r\ndata: \xfe\r\n\r\n"
        )

    async def test_strange_fields(self) -> None:
        """Fields, events and comments that mean nothing to us mean nothing."""
        await self.nonsense(
            b": comment\r\n\r\n",
            b"retry: 99999\r\n\r\n",
            b"id: 7\r\ndata\r\n\r\n",
            b"foo: bar\r\n\r\n",
            event(b"{}", b"other"),
        )

    async def test_strange_ids(self) -> None:
        """Answers under ids that nobody has used, or that are no ids, are dropped."""
        texts = (b"1e400", b"-1e999", b"null", b"1.5", b"{}", b'"nobody"', b"9" * 5000, b"true", b'"hello"')
        await self.nonsense(*(event(b'{"jsonrpc":"2.0","id":%b,"result":{}}' % text) for text in texts))

    async def test_huge_numbers(self) -> None:
        """A result with a number that fits in no double passes as it is, also where the proxy looks inside."""
        self.start()
        client = await self.connected(ALICE)
        text = b'{"jsonrpc":"2.0","id":"%b","result":{"tools":[{"name":"x","n":1e400}]}}'

        def send(stream: Any, asked: Json) -> None:
            stream.send_raw(event(text % asked["id"].encode()))

        for method in ("tools/call", "tools/list", "resources/read"):
            self.backend.answers[method] = send
            self.assertIn("result", await client.ask(messages.request(method, method, {"name": "x"})))
        self.assertEqual(len(self.backend.deliveries("initialize")), 1)
        self.assertEqual(self.flushLoggedErrors(), [])
        self.assertIn(b"1e400", b"" if client.stream is None else bytes(client.stream.data))

    async def test_strange_initialize(self) -> None:
        """An initialize result of the wrong shape is the client's to judge; the proxy survives it."""
        for value in ("[]", '"x"', "null", '{"capabilities":[]}', '{"capabilities":{"tools":7},"protocolVersion":[1]}'):
            client = await self.strange_client(value)
            client.hang_up()

    async def strange_client(self, value: str) -> Any:
        """A client whose initialize was answered with this."""
        if self.service is None:
            self.start()
        text = '{"jsonrpc":"2.0","id":0,"result":' + value + "}"
        self.backend.answers["initialize"] = lambda stream, asked: stream.send_raw(event(text.encode()))
        client = self.client(ALICE)
        await client.open()
        self.assertEqual((await client.ask(messages.initialize(0)))["result"], json.loads(value))
        self.assertEqual(self.flushLoggedErrors(), [])
        return client

    async def test_second_endpoint(self) -> None:
        """A second endpoint event moves where messages go; one of another origin ends the link."""
        self.start()
        client = await self.connected(ALICE)
        name = self.backend.stream.name
        self.backend.stream.send_raw(event(f"/moved?session_id={name}".encode(), b"endpoint"))
        await client.call()
        self.assertTrue(self.backend.asked[-1].path.startswith("/moved"))
        self.backend.stream.send_raw(event(b"http://evil.example/x", b"endpoint"))
        await self.until(lambda: len(self.backend.deliveries("initialize")) == 2)
        self.assertIn("result", await client.call())

    async def test_duplicate_answer(self) -> None:
        """Of two answers to one request the first is passed on."""
        self.start()
        client = await self.connected(ALICE)

        def twice(stream: Any, asked: Json) -> Json:
            stream.send(messages.result(asked["id"], {"first": True}))
            return messages.result(asked["id"], {"first": False})

        self.backend.answers["tools/call"] = twice
        self.assertEqual((await client.call())["result"], {"first": True})
        self.assertIn("result", await client.ask(messages.request("tools/list", "list")))

    async def test_byte_by_byte(self) -> None:
        """However the stream is cut into segments, the client gets whole events."""
        self.start()
        client = await self.connected(ALICE)
        stream = self.backend.stream
        for byte in event('{"jsonrpc":"2.0","method":"notifications/ä"}'.encode()):
            stream.connection.budget = None
            transport: Any = stream.connection.transport
            transport.getHandle().send(bytes((byte,)))
        await self.until(lambda: client.notifications("notifications/ä"))


class Posts(ServiceCase):
    """How a message is refused."""

    def refuse(self, status: int, *methods: str, once: bool = False, body: bytes = b"", headers: Any = ()) -> None:
        """Refuse messages of these methods (all, if none is given)."""

        def on_post(connection: BackendConnection, asked: Asked) -> None:
            if not methods or json.loads(asked.body).get("method") in methods:
                if once:
                    self.backend.on_post = self.backend.take_post
                connection.write(response(status, body, *headers))
            else:
                self.backend.take_post(connection, asked)

        self.backend.on_post = on_post

    def posts(self, method: str) -> int:
        """How many POSTs with this method there were, whatever became of them."""
        return sum(
            asked.method == "POST" and json.loads(asked.body).get("method") == method for asked in self.backend.asked
        )

    async def test_404(self) -> None:
        """A session that the backend has forgotten is restored, and the message that found out sent once more."""
        self.start()
        client = await self.connected(ALICE)
        self.refuse(404, "tools/call", once=True)
        self.assertIn("result", await client.call())
        self.assertEqual((self.posts("tools/call"), self.posts("initialize")), (2, 2))

    async def test_404_for_ever(self) -> None:
        """A message that is always answered 404 ends in an error, not in a loop."""
        self.start()
        client = await self.connected(ALICE)
        self.refuse(404, "tools/call")
        error = (await client.call())["error"]
        self.assertIn(error["code"], (-31001, -31003, -32603))
        self.assertEqual(self.posts("tools/call"), 2)
        self.assertIn("result", await client.ask(messages.request("tools/list", "list")))

    async def test_404_notification(self) -> None:
        """A notification that finds the session forgotten makes it be restored, too."""
        self.start()
        client = await self.connected(ALICE)
        self.refuse(404, "notifications/x", once=True)
        await client.begin(messages.notification("notifications/x"))
        await self.until(lambda: self.posts("initialize") == 2)
        self.assertIn("result", await client.call())

    async def test_400_genuine(self) -> None:
        """A 400 to a message of a session that still answers a ping is about the message."""
        self.start()
        client = await self.connected(ALICE)
        self.refuse(400, "tools/call", body=b"bad arguments")
        error = (await client.call())["error"]
        self.assertEqual(error["data"]["status"], 400)
        self.assertEqual((error["data"]["delivered"], error["data"]["source"]), ("no", "proxy"))
        self.assertEqual((self.posts("tools/call"), self.posts("initialize")), (1, 1))
        self.backend.on_post = self.backend.take_post
        self.assertIn("result", await client.call())

    async def test_400_session(self) -> None:
        """A 400 to everything means that the session is lost: it is restored and the message sent again."""
        self.start()
        client = await self.connected(ALICE)
        lost = self.backend.stream.name

        def on_post(connection: BackendConnection, asked: Asked) -> None:
            if asked.path.endswith("=" + lost):
                connection.write(response(400, b"Invalid session"))
            else:
                self.backend.take_post(connection, asked)

        self.backend.on_post = on_post
        self.assertIn("result", await client.call())
        self.assertEqual((self.posts("tools/call"), self.posts("initialize")), (2, 2))

    async def challenged(self, status: int) -> None:
        self.start()
        client = await self.connected(ALICE)
        headers = (("WWW-Authenticate", 'Bearer error="invalid_token"'), ("X-Secret", "no"))
        self.refuse(status, "tools/call", once=True, body=b"expired", headers=headers)
        error = (await client.call())["error"]
        self.assertEqual((error["data"]["status"], error["data"]["delivered"]), (status, "no"))
        answer = await client.post(messages.call("next"))
        self.assertEqual((answer.status, answer.body), (status, b"expired"))
        self.assertEqual(answer.header(b"www-authenticate"), b'Bearer error="invalid_token"')
        self.assertEqual(answer.header(b"x-secret"), b"")
        self.assertIn("result", await client.ask(messages.call("next")))
        self.assertEqual((self.posts("tools/call"), self.posts("initialize")), (2, 1))

    async def test_401(self) -> None:
        """A 401 is told on the stream, and the next message is answered with it, once; nothing is repeated."""
        await self.challenged(401)

    async def test_403(self) -> None:
        """The same for a 403."""
        await self.challenged(403)

    async def test_503(self) -> None:
        """A 503 is an outage of one message: what is safe is sent again, a call is not."""
        self.start()
        client = await self.connected(ALICE)
        self.refuse(503, "tools/list", once=True)
        self.assertIn("result", await client.ask(messages.request("tools/list", "list")))
        self.refuse(503, "tools/call", once=True)
        error = (await client.call())["error"]
        self.assertEqual(error["code"], -31002)
        self.assertEqual((self.posts("tools/list"), self.posts("tools/call"), self.posts("initialize")), (2, 1, 1))

    async def test_500(self) -> None:
        """A 500 is passed on as an error, once, without a retry."""
        self.start()
        client = await self.connected(ALICE)
        self.refuse(500, "tools/list", "tools/call")
        for method in ("tools/list", "tools/call"):
            error = (await client.ask(messages.request(method, method)))["error"]
            self.assertEqual(error["data"]["status"], 500)
            self.assertEqual(self.posts(method), 1)
        self.assertEqual(self.posts("initialize"), 1)

    async def test_redirect(self) -> None:
        """A redirected POST is an error, and not followed."""
        self.start()
        client = await self.connected(ALICE)
        self.refuse(307, "tools/call", headers=(("Location", f"http://127.0.0.1:{self.backend.port}/elsewhere"),))
        self.assertIn("error", await client.call())
        self.assertEqual([asked.path for asked in self.backend.asked if "elsewhere" in asked.path], [])

    async def test_initialize_refused(self) -> None:
        """A refused initialize is told on the stream, and the client may try again."""
        self.start()
        client = self.client(ALICE)
        await client.open()
        self.refuse(415, "initialize", once=True)
        self.assertEqual((await client.ask(messages.initialize("first")))["error"]["data"]["status"], 415)
        self.assertIn("result", await client.initialize())

    async def test_unanswered(self) -> None:
        """A backend that reads messages and never acknowledges them can still answer them."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.on_message = lambda connection, stream, message: self.backend.handle(stream, message)
        for _ in range(3):
            self.assertIn("result", await client.call())
        self.assertIn("result", await client.ask(messages.request("tools/list", "list")))

    async def test_never_acknowledged(self) -> None:
        """However many messages are never acknowledged, the next one is still delivered."""
        self.start()
        client = await self.connected(ALICE)
        self.backend.on_message = lambda connection, stream, message: self.backend.handle(stream, message)
        for number in range(MAX_POSTS + 6):
            self.assertEqual((await client.call(n=number))["result"], {"echo": {"n": number}})

    async def test_answer_before_202(self) -> None:
        """An answer that comes before the acknowledgement is as good as one after it."""
        self.start()
        client = await self.connected(ALICE)

        def on_message(connection: BackendConnection, stream: Any, message: Json) -> None:
            self.backend.handle(stream, message)
            connection.write(ACCEPTED)

        self.backend.on_message = on_message
        self.assertIn("result", await client.call())
        self.assertIn("result", await client.ask(messages.request("tools/list", "list")))


class TLS(ServiceCase):
    async def test_self_signed(self) -> None:
        """A backend whose certificate nobody vouches for is refused, with a clear reason, and gets no credential."""
        self.backend.die("fin")
        await self.backend._stopping
        self.backend.ssl = _self_signed()
        self.backend.start()
        self.start(
            backend_url=f"https://127.0.0.1:{self.backend.port}",
            max_reconnect_attempts=1,
            hold_timeout=0.4,
            health_interval=0.1,
        )
        client = self.client(ALICE)
        await client.open()
        error = (await client.ask(messages.initialize(0)))["error"]
        self.assertEqual(error["code"], -31001)
        self.assertIn("certificate could not be verified", error["message"])
        page = await self.health()
        self.assertEqual(page["status"], "degraded")
        self.assertIn("certificate could not be verified", page["backend"]["problem"])
        self.assertEqual(self.backend.asked, [])


def _self_signed() -> Any:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return ssl.PrivateCertificate.loadPEM(pem).options()
