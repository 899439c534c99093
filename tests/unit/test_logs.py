"""The log: events in, lines out."""

from __future__ import annotations

import io
import json
from typing import Any

from twisted.internet.protocol import Factory
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from mcp_proxy.logs import make_observer


class LogCase(SynchronousTestCase):
    def lines(self, format: str, level: str, *events: dict[str, Any]) -> list[str]:
        out = io.StringIO()
        observer = make_observer(format, level, out)
        for event in events:
            observer({"log_time": 1.5, "log_namespace": "mcp_proxy.x", "log_level": LogLevel.info, **event})
        text = out.getvalue()
        self.assertTrue(text == "" or text.endswith("\n"))
        return text.split("\n")[:-1]

    def failure(self) -> Failure:
        try:
            raise ValueError("two\nlines")
        except ValueError:
            return Failure()


class Text(LogCase):
    def test_line(self) -> None:
        """A line has time in UTC, level, namespace, message and the known fields that are present."""
        event = {
            "log_format": "session {session} lost",
            "session": "abc",
            "generation": 2,
            "outage_ms": 0,
            "method": None,
            "secret": "x",
        }
        (line,) = self.lines("text", "info", event)
        self.assertEqual(
            line,
            "1970-01-01T00:00:01.500Z info mcp_proxy.x session abc lost session=abc generation=2 outage_ms=0",
        )

    def test_quoting(self) -> None:
        """A field with blanks, quotes or line breaks is quoted, so that it cannot look like another field."""
        (line,) = self.lines("text", "info", {"log_format": "m", "method": 'a b="c"\nd', "delivery": ""})
        self.assertTrue(line.endswith(r' m method="a b=\"c\"\nd" delivery=""'), line)

    def test_one_line(self) -> None:
        """Line breaks, terminal escapes and lone surrogates in a message are escaped."""
        (line,) = self.lines("text", "info", {"log_format": "{text}", "text": "a\nb\r\x1b[31m\x85\u2028\udc80é"})
        self.assertTrue(line.endswith(r" a\nb\r\x1b[31m\x85\u2028\udc80é"), line)
        self.assertEqual(len(line.splitlines()), 1)

    def test_failure(self) -> None:
        """A traceback stays on the line of its event."""
        (line,) = self.lines("text", "info", {"log_format": "failed", "log_failure": self.failure()})
        self.assertIn(" failed traceback=", line)
        self.assertIn("ValueError: two\\nlines", line)

    def test_bad_format(self) -> None:
        """An event that cannot be formatted is a line that says so, not an exception."""
        (line,) = self.lines("text", "info", {"log_format": "{missing}"})
        self.assertIn("Unable to format event", line)


class Json(LogCase):
    def test_object(self) -> None:
        """A line is one object with time, level, namespace, message and the known fields."""
        event = {"log_format": "lost\n{generation}", "generation": 2, "delivery": LogCase, "outage_ms": 1.5}
        (line,) = self.lines("json", "info", event)
        self.assertEqual(
            json.loads(line),
            {
                "time": "1970-01-01T00:00:01.500Z",
                "level": "info",
                "namespace": "mcp_proxy.x",
                "message": "lost\n2",
                "generation": 2,
                "delivery": str(LogCase),
                "outage_ms": 1.5,
            },
        )

    def test_failure(self) -> None:
        """A traceback is a field of the object."""
        (line,) = self.lines("json", "info", {"log_format": "failed", "log_failure": self.failure()})
        self.assertIn("ValueError: two\nlines", json.loads(line)["traceback"])


class Levels(LogCase):
    def test_threshold(self) -> None:
        """Each level lets through itself and what is worse."""
        events = [{"log_format": level.name, "log_level": level} for level in LogLevel.iterconstants()]
        for number, level in enumerate(("debug", "info", "warn", "error")):
            self.assertEqual(len(self.lines("text", level, *events)), len(events) - number)

    def test_twisted_is_quiet(self) -> None:
        """Twisted's informational events count as debug, its warnings do not."""
        for namespace in ("twisted.web.server.Site", "log_legacy", "twisted"):
            event = {"log_format": "x", "log_namespace": namespace}
            self.assertEqual(self.lines("text", "info", event), [])
            self.assertEqual(len(self.lines("text", "debug", event)), 1)
            self.assertEqual(len(self.lines("text", "info", {**event, "log_level": LogLevel.warn})), 1)

    def test_factories_are_quiet(self) -> None:
        """A factory of our own that starts or stops is no news at info."""
        out = io.StringIO()
        publisher = LogPublisher(make_observer("text", "info", out))

        class Ours(Factory):
            log = Logger(namespace="mcp_proxy.frontend", observer=publisher)

        Ours.log.info("Starting factory {factory!r}", factory=Ours())
        Ours.log.info("Stopping factory {factory!r}", factory=Ours())
        self.assertEqual(out.getvalue(), "")

    def test_access_log_is_quiet(self) -> None:
        """Twisted's access log does not show at info, and does at debug."""
        from twisted.logger import globalLogPublisher

        shown = {}
        for level in ("info", "debug"):
            out = io.StringIO()
            observer = make_observer("text", level, out)
            globalLogPublisher.addObserver(observer)
            self.addCleanup(globalLogPublisher.removeObserver, observer)
            shown[level] = out
        site = Site(Resource())
        site.startFactory()
        self.addCleanup(site.stopFactory)
        site.logFile.write("GET /health\n")
        self.assertEqual(shown["info"].getvalue(), "")
        self.assertIn("GET /health", shown["debug"].getvalue())
