"""Errors: each has a sentence for a person, a status for HTTP, and a code for JSON-RPC."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.wire import errors
from mcp_proxy.wire.errors import ProxyError


def tree(root: type[ProxyError]) -> Iterator[type[ProxyError]]:
    """A class and all that derive from it, of those that the module defines."""
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child)


class Errors(SynchronousTestCase):
    def test_every_class_has_an_answer(self) -> None:
        """Every class answers with the row of its nearest ancestor in the table."""
        classes = set(tree(ProxyError))
        self.assertGreater(len(classes), 20)
        for kind in classes:
            answer = kind().answer
            ancestor = next(each for each in kind.__mro__ if each in errors.ANSWERS)
            self.assertIs(answer, errors.ANSWERS[ancestor], kind)
            self.assertIsInstance(answer.status, HTTPStatus)
        self.assertEqual(set(errors.ANSWERS) - classes, set(), "a row that no class of the module reaches")

    def test_own_class(self) -> None:
        """A class that is defined elsewhere answers as its base does."""

        class Elsewhere(errors.BatchRefused):
            """Elsewhere."""

        self.assertEqual(Elsewhere().answer, errors.ANSWERS[errors.NotJSONRPC])
        self.assertEqual(Elsewhere().message, "Elsewhere.")

    def test_nearest(self) -> None:
        """A class in the table has its own row although its base has one too."""
        self.assertEqual(errors.NotDelivered().answer.code, -31001)
        self.assertEqual(errors.NotJSON().answer.code, -32700)
        self.assertEqual(errors.EmptyBody().answer.code, -32600)

    def test_message(self) -> None:
        """Without a text of its own an error says what its class says; a text of its own wins."""
        for kind in tree(ProxyError):
            self.assertTrue(kind.__doc__, kind)
            self.assertEqual(kind().message, (kind.__doc__ or "").strip())
            self.assertNotIn("\n", kind().message)
            self.assertEqual(kind("mine").message, "mine")
            self.assertEqual(str(kind("mine")), "mine")

    def test_data(self) -> None:
        """What a program may want to know goes along, each error with its own."""
        self.assertEqual(ProxyError("x", status=503, b=[1]).data, {"status": 503, "b": [1]})
        self.assertEqual(ProxyError().data, {})

    def test_own_codes(self) -> None:
        """The proxy's own four codes are outside of what JSON-RPC reserves, and are told at HTTP 200, 429 or 503."""
        own = {
            errors.NotDelivered: (-31001, 503),
            errors.BackendUnavailable: (-31001, 503),
            errors.ShuttingDown: (-31001, 503),
            errors.OutcomeUnknown: (-31002, 200),
            errors.NotRestorable: (-31003, 200),
            errors.Overloaded: (-31004, 200),
            errors.TooManySessions: (-31004, 503),
            errors.TooManyOfYours: (-31004, 503),
            errors.TooManyConnections: (-31004, 503),
            errors.TooManyStreams: (-31004, 503),
            errors.TooManyRequests: (-31004, 429),
        }
        for kind, (code, status) in own.items():
            self.assertEqual((kind().answer.code, kind().answer.status), (code, status), kind)
            self.assertFalse(-32768 <= code <= -32000)
        others = {kind().answer.code for kind in tree(ProxyError) if not issubclass(kind, tuple(own))}
        self.assertEqual(others, {-32700, -32600, -32601, -32602, -32603, -32020, -32022})

    def test_statuses(self) -> None:
        """Each fault of a request has the status that HTTP has for it."""
        for kind, status in {
            ProxyError: 500,
            errors.NotJSON: 400,
            errors.NotJSONRPC: 400,
            errors.BatchRefused: 400,
            errors.EmptyBody: 400,
            errors.NoSuchPath: 404,
            errors.UnknownSession: 404,
            errors.MethodRefused: 405,
            errors.NotAcceptable: 406,
            errors.LengthRequired: 411,
            errors.BodyTooLarge: 413,
            errors.BatchTooLong: 413,
            errors.TooSlow: 408,
            errors.UnsupportedMediaType: 415,
            errors.HostRefused: 421,
            errors.OriginRefused: 403,
            errors.BackendRefused: 502,
        }.items():
            self.assertEqual(kind().answer.status, status, kind)

    def test_retry_after(self) -> None:
        """Whoever is told 429 or 503 is told when to come back, in seconds."""
        for kind in tree(ProxyError):
            answer = kind().answer
            self.assertEqual(answer.status in (429, 503), "Retry-After" in answer.headers, kind)
            waits = [value for name, value in answer.headers.items() if name == "Retry-After"]
            self.assertTrue(all(value.isdigit() for value in waits), kind)
