"""All sessions: who may have which, how many there may be, and when one is forgotten."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator

from mcp_proxy.session.handshake import Memory
from mcp_proxy.session.interfaces import IOutlet
from mcp_proxy.session.session import Session
from mcp_proxy.wire.errors import ShuttingDown, TooManyOfYours, TooManySessions, UnknownSession
from mcp_proxy.wire.headers import Headers, credential

#: How many handshakes are kept for clients that come back without one; a client that names its kind takes two.
MAX_REMEMBERED = 2000


class Registry:
    """The sessions of this proxy.

    A session belongs to the credential that made it, of which only a keyed digest is kept; whoever shows another one
    learns no more than that there is no such session.

    :param make: makes a session from its id, the digest of its owner, its standing headers and its outlet.
    :param max_sessions: how many sessions there may be.
    :param idle_timeout: for how many seconds a session without a client is kept.
    :param max_of_one: how many of them one credential may have; 0 is no limit.
    """

    def __init__(
        self,
        make: Callable[[str, bytes, Headers, IOutlet], Session],
        max_sessions: int,
        idle_timeout: float,
        max_of_one: int = 0,
    ) -> None:
        self._make = make
        self._max_sessions = max_sessions
        self._max_of_one = max_of_one
        self._idle_timeout = idle_timeout
        self._key = secrets.token_bytes(32)
        self.is_closing = False
        self._sessions: dict[str, Session] = {}
        self._passing: set[Session] = set()  # those that no client knows of
        self._remembered: OrderedDict[tuple[bytes, bytes], Memory] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def __iter__(self) -> Iterator[Session]:
        return iter([*self._sessions.values(), *self._passing])

    @property
    def connected(self) -> int:
        """How many sessions have a client."""
        return sum(session.attached for session in self._sessions.values())

    def create(self, headers: Headers, make_outlet: Callable[[str], IOutlet]) -> Session:
        """A new session for the client with these headers.

        :param make_outlet: makes the client's side of it from the session's id.
        :raises TooManySessions: there is no room, and none can be made.
        """
        if self.is_closing:
            raise ShuttingDown()
        owner = self._digest(headers)
        if self._max_of_one:
            own = [session for session in self._sessions.values() if session.owner == owner]
            if len(own) >= self._max_of_one:
                _make_room(own, TooManyOfYours)
        if len(self._sessions) >= self._max_sessions:
            _make_room(self._sessions.values(), TooManySessions)
        nonce = secrets.token_bytes(16)
        token = urlsafe_b64encode(nonce + self._mac(b"session", nonce + owner)).rstrip(b"=").decode()
        session = self._make(token, owner, headers, make_outlet(token))
        self._sessions[token] = session
        return session

    def once(self, headers: Headers, outlet: IOutlet) -> Session:
        """A session that nobody can find: for one request, or for those of a client that knows of no sessions.

        :raises TooManySessions: there is no room.
        """
        if self.is_closing:
            raise ShuttingDown()
        if len(self._passing) >= self._max_sessions:
            raise TooManySessions()
        session = self._make(secrets.token_hex(8), self.owner_of(headers), headers, outlet)
        self._passing.add(session)
        return session

    def find(self, token: str, headers: Headers) -> Session:
        """The session with this id, if it belongs to whoever sent these headers.

        :raises UnknownSession: there is none, or it is another's.
        """
        session = self._sessions.get(token)
        if session is None or not session.credentials.is_own(headers):
            raise UnknownSession()
        return session

    def find_renewing(self, token: str, headers: Headers) -> Session | None:
        """The session whose client may be the sender of these headers, with a new token that nobody has judged yet."""
        session = self._sessions.get(token)
        if session is None or not session.credentials.may_renew(headers):
            return None
        session.credentials.renew(self._digest(headers), headers)
        return session

    def find_for_message(self, token: str, headers: Headers) -> Session:
        """The same for one that brings a message, which may come with a renewed token.

        The session is given to it only for the backend to judge: until that has accepted the token, who has it can
        send, but not listen.

        :raises UnknownSession: there is none, or it is another's.
        """
        session = self._sessions.get(token)
        if session is None or not session.credentials.is_own(headers):
            session = self.find_renewing(token, headers)
            if session is None:
                raise UnknownSession()
        return session

    def forget(self, session: Session) -> None:
        """The session is over."""
        self._sessions.pop(session.id, None)
        self._passing.discard(session)

    def remember(self, session: Session) -> None:
        """A client has initialized: keep that for a later stream of its that does not."""
        if session in self._passing:
            return
        for key in self._keys(session):
            self._remembered[key] = session.memory.borrowed()
            self._remembered.move_to_end(key)
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def recall(self, session: Session) -> Memory | None:
        """The last handshake under the same credential, of the same kind of client if there is one."""
        for key in self._keys(session):
            memory = self._remembered.get(key)
            if memory is not None:
                return memory.borrowed()
        return None

    def expire(self, now: float) -> None:
        """Forget the sessions that were without a client for too long."""
        for session in list(self._sessions.values()):
            if session.idle_since is not None and now - session.idle_since >= self._idle_timeout:
                session.close()

    @staticmethod
    def _keys(session: Session) -> tuple[tuple[bytes, bytes], ...]:
        agent = next((value for name, value in session.headers if name.lower() == b"user-agent"), b"")
        return (session.owner, agent), (session.owner, b"")

    def owner_of(self, headers: Headers) -> bytes:
        """A digest of whoever sends these headers."""
        return self._digest(headers)

    def _digest(self, headers: Headers) -> bytes:
        return self._mac(b"owner", credential(headers))

    def _mac(self, purpose: bytes, data: bytes) -> bytes:
        return hmac.digest(self._key, purpose + b"\0" + data, hashlib.sha256)[:16]


def _make_room(sessions: Iterable[Session], refusal: type[TooManySessions]) -> None:
    """Close that which has been without a client for longest."""
    idle = [session for session in sessions if session.idle_since is not None]
    if not idle:
        raise refusal()
    min(idle, key=lambda session: session.idle_since or 0.0).close()
