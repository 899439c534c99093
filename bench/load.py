"""The load: clients that compare each answer with what was asked, in one epoll loop.

Sessions are opened with blocking sockets, one after the other. A `Run` is one round of calls or events over them; every
call has an id, and a token in its answer, that no other call of this process has.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from collections.abc import Callable, Sequence
from itertools import count

import attrs
import msgspec

from .messages import INITIALIZED, VERSION, answers, call, initialize, is_same
from .wire import Events, Head, Reader

#: Ten digits each, so that all requests of a kind have one length.
numbers = count(1_000_000_000)
names = count(1)
#: Seconds after which an answer, or anything else, is given up.
PATIENCE = 20.0
SIZE = 262144


class Refused(Exception):
    """A session could not be opened, or a stream has ended."""


@attrs.define
class Tally:
    """What has come of a round: times are in seconds, latencies and moments (``time.monotonic_ns``) in nanoseconds."""

    done: int = 0
    wrong: int = 0
    lost: int = 0
    extra: int = 0
    first_problem: str = ""
    latencies: list[int] = attrs.Factory(list)
    moments: list[int] = attrs.Factory(list)
    elapsed: float = 0.0
    cpu: float = 0.0
    own_cpu: float = 0.0

    @property
    def mistakes(self) -> int:
        """Wrong, lost and superfluous answers."""
        return self.wrong + self.lost + self.extra

    def percentile(self, share: float) -> float:
        """Return a percentile of the latencies in milliseconds."""
        ordered = sorted(self.latencies) or [0]
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] / 1e6


def connect(port: int) -> socket.socket:
    """Return a blocking connection."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def exchange(sock: socket.socket, request: bytes) -> tuple[Head, bytes]:
    """Send a request over a blocking connection and return the whole answer."""
    sock.sendall(request)
    reader, pieces = Reader(), []
    while data := sock.recv(SIZE):
        for head, piece, done in reader.feed(data):
            pieces.append(piece)
            if done:
                return head, b"".join(pieces)
    raise Refused("the connection was closed without an answer")


def messages_in(head: Head, body: bytes) -> list[bytes]:
    """Return the messages in the body of an answer, be it JSON or an event stream."""
    if head.fields.get(b"content-type", b"").startswith(b"text/event-stream"):
        return Events().feed(body)
    return [body]


@attrs.frozen
class Work:
    """What a call asks for."""

    events: int = 0
    size: int = 0

    def call(self, number: int) -> bytes:
        """Return the request of that number."""
        return call(number, self.events, self.size)

    def problem(self, number: int, found: Sequence[bytes]) -> str:
        """Return what is wrong with the messages that answer the call of that number; nothing is an empty text."""
        wanted = answers(b"%d" % number, b"t%d" % number, self.events, self.size)
        if found == wanted or len(found) == len(wanted) and all(map(is_same, found, wanted)):
            return ""
        return f"call {number} was answered with {len(found)} messages, {found[-1:]!r:.300}"


@attrs.define
class Session:
    """A session over Streamable HTTP."""

    port: int
    path: bytes
    name: bytes
    fields: bytes = b""

    @classmethod
    def open(cls, port: int, path: bytes = b"/mcp") -> Session:
        """Do the handshake, over a connection that is closed afterwards."""
        session = cls(port, path, b"client-%d" % next(names))
        with connect(port) as sock:
            head, body = exchange(sock, session.post(initialize(session.name)))
            if head.line[9:12] != b"200" or b'"result"' not in body:
                raise Refused(f"initialize was answered {head.line!r} {body!r:.300}")
            session.fields = b"mcp-protocol-version: %b\r\n" % VERSION
            if id := head.fields.get(b"mcp-session-id"):
                session.fields += b"mcp-session-id: %b\r\n" % id
            exchange(sock, session.post(INITIALIZED))
        return session

    def post(self, body: bytes) -> bytes:
        """Return a POST of a message."""
        return (
            b"POST %b HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: application/json, text/event-stream\r\n"
            b"content-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
            % (self.path, self.port, self.fields, len(body), body)
        )

    def open_stream(self) -> Stream:
        """Open the session's GET stream."""
        return Stream.open(self.port, self.path, self.fields)


class Stream:
    """An open event stream: blocking at first, for the handshake, later part of a loop."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._reader = Reader()
        self._events = Events()
        self._waiting: list[bytes] = []

    @classmethod
    def open(cls, port: int, path: bytes, fields: bytes = b"") -> Stream:
        """Ask for a stream, and wait for its head."""
        stream = cls(connect(port))
        stream.socket.sendall(
            b"GET %b HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept: text/event-stream\r\n%b\r\n" % (path, port, fields)
        )
        while not (heads := stream._reader.feed(stream._recv())):
            pass
        for head, piece, _ in heads:
            if head.line[9:12] != b"200":
                raise Refused(f"a stream was answered {head.line!r}")
            stream._waiting += stream._events.feed(piece)
        return stream

    def _recv(self) -> bytes:
        data = self.socket.recv(SIZE)
        if not data:
            raise Refused("a stream has ended")
        return data

    def read(self) -> list[bytes]:
        """Return the events that are there; without any, a blocking stream waits for some bytes."""
        found, self._waiting = self._waiting, []
        if not found:
            for _, piece, _ in self._reader.feed(self._recv()):
                found += self._events.feed(piece)
        return found

    def wait(self) -> bytes:
        """Wait for one event, of a stream that is still blocking."""
        while not self._waiting:
            self._waiting = self.read()
        return self._waiting.pop(0)


class SseSession(Session):
    """A session over HTTP+SSE: its stream stays open, its path is where messages go."""

    stream: Stream

    @classmethod
    def open(cls, port: int, path: bytes = b"/mcp/sse") -> SseSession:
        """Open the stream and do the handshake."""
        stream = Stream.open(port, path)
        session = cls(port, stream.wait(), b"client-%d" % next(names))
        session.stream = stream
        with connect(port) as sock:
            exchange(sock, session.post(initialize(session.name)))
            if b'"result"' not in (body := stream.wait()):
                raise Refused(f"initialize was answered {body!r:.300}")
            exchange(sock, session.post(INITIALIZED))
        return session


class Run:
    """One round: how long it goes on, what is open, and what has come of it.

    :param cpu: tells the seconds that the proxy has computed so far.
    :param most: ends the round after that many calls.
    """

    def __init__(self, seconds: float, cpu: Callable[[], float] = float, most: int = 1 << 62) -> None:
        self.tally = Tally()
        self.open = 0
        self._seconds = seconds
        self._end = 0
        self._left = most
        self._cpu = cpu
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}

    def watch(self, sock: socket.socket, ready: Callable[[], None]) -> None:
        """Make a connection part of the loop: `ready` reads from it."""
        sock.setblocking(False)
        self._poll.register(sock, select.EPOLLIN)
        self._ready[sock.fileno()] = ready

    def forget(self, sock: socket.socket) -> None:
        """Take a connection out of the loop."""
        self._poll.unregister(sock)
        del self._ready[sock.fileno()]

    def begin(self, open: int = 1) -> int:
        """Return the number of the next call, 0 when there is to be none; `open` answers will be waited for."""
        if not self._left or time.monotonic_ns() >= self._end:
            return 0
        self._left -= 1
        self.open += open
        return next(numbers)

    def finish(self, began: int, problem: str = "") -> None:
        """Something that was waited for has come."""
        now = time.monotonic_ns()
        self.open -= 1
        self.tally.done += 1
        self.tally.latencies.append(now - began)
        self.tally.moments.append(now)
        if problem:
            self.tally.wrong += 1
            self.note(problem)

    def lose(self, problem: str, number: int) -> None:
        """The call of that number will not be answered any more; 0 is none."""
        self.note(problem)
        if number:
            self.open -= 1
            self.tally.lost += 1

    def note(self, problem: str) -> None:
        """Keep the first problem for the report."""
        self.tally.first_problem = self.tally.first_problem or problem

    def measure(self, start: Callable[[], None]) -> Tally:
        """Start what was prepared, and go on until nothing is open any more."""
        tally, poll, ready = self.tally, self._poll.poll, self._ready
        gc.collect()
        gc.disable()
        cpu, own, began = self._cpu(), time.process_time(), time.monotonic_ns()
        self._end = began + int(self._seconds * 1e9)
        give_up = self._end + int(PATIENCE * 1e9)
        start()
        while self.open > 0 and time.monotonic_ns() < give_up:
            for number, _ in poll(1.0):
                if number in ready:
                    ready[number]()
        tally.elapsed = (time.monotonic_ns() - began) / 1e9
        tally.cpu, tally.own_cpu = self._cpu() - cpu, time.process_time() - own
        gc.enable()
        tally.lost += max(self.open, 0)
        return tally


class Caller:
    """A client that calls again as soon as it has its answer, over one connection."""

    def __init__(self, run: Run, session: Session, work: Work) -> None:
        self._run = run
        self._session = session
        self._work = work
        self._number = 0
        self._began = 0
        self._reader = Reader()
        self._pieces: list[bytes] = []
        self.socket = connect(session.port)
        run.watch(self.socket, self._on_ready)

    def start(self) -> None:
        """Make the next call."""
        self._number = self._run.begin()
        if self._number:
            self._began = time.monotonic_ns()
            try:
                self.socket.send(self._session.post(self._work.call(self._number)))
            except ConnectionError:
                # The loop will hear of it as well.
                pass

    def _on_ready(self) -> None:
        try:
            data = self.socket.recv(SIZE)
        except ConnectionError:
            data = b""
        if not data:
            self._run.lose("a connection was closed", self._number)
            self._number = 0
            self._run.forget(self.socket)
            return
        for head, piece, done in self._reader.feed(data):
            self._pieces.append(piece)
            if done:
                body = b"".join(self._pieces)
                self._pieces.clear()
                self._on_answer(head, body)

    def _on_answer(self, head: Head, body: bytes) -> None:
        if not self._number:
            self._run.tally.extra += 1
            return
        self._run.finish(self._began, self._work.problem(self._number, messages_in(head, body)))
        self.start()


class SseCaller(Caller):
    """The same over HTTP+SSE: a call is over when it is accepted, and answered on the stream."""

    def __init__(self, run: Run, session: SseSession, work: Work) -> None:
        super().__init__(run, session, work)
        self._stream = session.stream
        self._answers: list[bytes] = []
        self._is_accepted = False
        run.watch(self._stream.socket, self._on_event)

    def _on_answer(self, head: Head, body: bytes) -> None:
        if head.line[9:12] != b"202":
            self._run.note(f"a message was answered {head.line!r} {body!r:.300}")
        self._is_accepted = True
        self._check()

    def _on_event(self) -> None:
        try:
            found = self._stream.read()
        except (Refused, ConnectionError) as problem:
            self._run.lose(str(problem), self._number)
            self._number = 0
            self._run.forget(self._stream.socket)
            return
        if not self._number:
            self._run.tally.extra += len(found)
            return
        self._answers += found
        self._check()

    def _check(self) -> None:
        if self._is_accepted and len(self._answers) > self._work.events:
            found, self._answers = self._answers, []
            self._is_accepted = False
            self._run.finish(self._began, self._work.problem(self._number, found))
            self.start()


class Listener:
    """A session's stream on which pushed events are waited for; it knows whose they are, and which is the next."""

    def __init__(self, run: Run, name: bytes, stream: Stream, seen: int, pushed: Callable[[], None]) -> None:
        self.stream = stream
        self.seen = seen
        self._run = run
        self._name = name.decode()
        self._pushed = pushed
        run.watch(stream.socket, self._on_ready)

    def _on_ready(self) -> None:
        try:
            found = self.stream.read()
        except (Refused, ConnectionError) as problem:
            self._run.note(str(problem))
            self._run.forget(self.stream.socket)
            return
        for data in found:
            try:
                name, number, moment = msgspec.json.decode(data)["params"]["data"].split()
            except (ValueError, LookupError, TypeError, AttributeError):
                self._run.tally.extra += 1
                self._run.note(f"{self._name} was told {data!r:.300}")
                continue
            self.seen += 1
            is_right = (name, int(number)) == (self._name, self.seen)
            self._run.finish(int(moment), "" if is_right else f"{self._name} was told {data!r} as {self.seen}")
        self._pushed()


class Pushes:
    """Sessions with a stream each, to which a stub pushes; the next push follows when all have the last."""

    def __init__(self, stub_port: int, sessions: Sequence[Session]) -> None:
        self._stub_port = stub_port
        self._streams = [(session.name, session.open_stream()) for session in sessions]
        self._seen = [0] * len(sessions)

    def run(self, seconds: float, cpu: Callable[[], float] = float, most: int = 1 << 62) -> Tally:
        """Measure one round; each event that a session gets counts as one."""
        run = Run(seconds, cpu, most)

        def drain() -> None:
            control.recv(SIZE)

        def push() -> None:
            if not run.open and run.begin(len(listeners)):
                control.send(b"POST /push HTTP/1.1\r\ncontent-length: 0\r\n\r\n")

        with connect(self._stub_port) as control:
            run.watch(control, drain)
            listeners = [
                Listener(run, name, stream, seen, push)
                for (name, stream), seen in zip(self._streams, self._seen, strict=True)
            ]
            tally = run.measure(push)
        self._seen = [listener.seen for listener in listeners]
        return tally


def call_all(
    sessions: Sequence[Session],
    work: Work,
    seconds: float,
    cpu: Callable[[], float] = float,
    most: int = 1 << 62,
) -> Tally:
    """Measure one round of calls, one at a time over each of the sessions."""
    run = Run(seconds, cpu, most)
    callers = [
        SseCaller(run, session, work) if isinstance(session, SseSession) else Caller(run, session, work)
        for session in sessions
    ]
    # Connections are accepted before the clock starts.
    time.sleep(0.05)

    def start() -> None:
        for caller in callers:
            caller.start()

    tally = run.measure(start)
    for caller in callers:
        caller.socket.close()
    return tally
