"""The command line: its flags, its refusals, and the service that it makes."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from twisted.application.service import Application, MultiService
from twisted.internet.testing import MemoryReactor, MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher, jsonFileLogObserver
from twisted.python.logfile import LogFile
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy import __version__, tap
from mcp_proxy.config import VARIABLES
from mcp_proxy.logs import make_observer


class OptionsCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(tap, "_install_reactor", lambda choice: None)  # this process has its own
        # Neither the environment nor the .env file of whoever runs the tests may have a say.
        names = {variable.name for variable in VARIABLES}
        self.patch(os, "environ", {k: v for k, v in os.environ.items() if k not in names})
        folder = Path(self.mktemp())
        folder.mkdir()
        self.addCleanup(os.chdir, os.getcwd())
        os.chdir(folder)

    def parse(self, *arguments: str) -> tap.Options:
        options = tap.Options()
        options.parseOptions(arguments)
        return options

    def refuse(self, *arguments: str) -> str:
        return str(self.assertRaises(SystemExit, self.parse, *arguments).code)


class Flags(OptionsCase):
    def test_each_variable(self) -> None:
        """Each variable has a flag, whose help names the variable and its default."""
        self.patch(os, "environ", {**os.environ, "COLUMNS": "500"})
        text = str(tap.Options())
        for variable in VARIABLES:
            (line,) = (line for line in text.splitlines() if f"{variable.flag}=" in line)
            default = f"default: {variable.default}" if variable.default else "no default"
            self.assertTrue(line.endswith(f"{variable.help} [{variable.name}, {default}]"), line)

    def test_precedence(self) -> None:
        """Flags win over the environment, that over ./.env."""
        Path(".env").write_text("PROXY_PORT=1\nMAX_SESSIONS=1\nMAX_BODY_BYTES=1\n", encoding="utf-8")
        os.environ.update(PROXY_PORT="2", MAX_SESSIONS="2")
        settings = self.parse("--proxy-port", "3").settings
        self.assertEqual((settings.proxy_port, settings.max_sessions, settings.max_body_bytes), (3, 2, 1))

    def test_env_file_stays_a_file(self) -> None:
        """Reading .env does not change the environment."""
        Path(".env").write_text("PROXY_PORT=1\n", encoding="utf-8")
        self.parse()
        self.assertNotIn("PROXY_PORT", os.environ)

    def test_bad_value(self) -> None:
        """A value that is not allowed exits with one line, which Python prints with status 1."""
        message = self.refuse("--proxy-port=x")
        self.assertTrue(message.startswith("mcp-proxy: PROXY_PORT (from flag --proxy-port) is 'x'"), message)
        self.assertEqual(len(message.splitlines()), 1)

    def test_unknown_flag(self) -> None:
        """An unknown flag and a stray argument exit with one line, too."""
        for argument in ("--no-such-flag", "stray"):
            message = self.refuse(argument)
            self.assertTrue(message.startswith("mcp-proxy: "), message)
            self.assertEqual(len(message.splitlines()), 1)

    def test_version(self) -> None:
        """--version prints the proxy's version, not Twisted's."""
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        self.assertEqual(self.assertRaises(SystemExit, self.parse, "--version").code, 0)
        self.assertEqual(out.getvalue(), f"mcp-proxy {__version__}\n")


class Log(OptionsCase):
    def test_foreground(self) -> None:
        """In the foreground the log goes to stdout."""
        for twistd in ({}, {"nodaemon": 1, "logfile": None}, {"nodaemon": True, "logfile": "-"}):
            self.assertIs(tap._log_file(twistd), sys.stdout)

    def test_file(self) -> None:
        """A log file that twistd was told of, or its usual one for a daemon, gets our format."""
        for twistd, name in (
            ({"nodaemon": 1, "logfile": "x.log"}, "x.log"),
            ({"nodaemon": 0, "logfile": None}, "twistd.log"),
        ):
            file = tap._log_file(twistd)
            self.assertIsInstance(file, LogFile)
            make_observer("text", "info", file)({"log_format": "hellö", "log_time": 0, "log_namespace": "x"})
            file.close()
            self.assertIn("hellö", Path(name).read_text(encoding="utf-8"))

    def test_left_to_twistd(self) -> None:
        """Syslog, and a daemon that should log to stdout, are left to twistd."""
        self.assertIsNone(tap._log_file({"syslog": 1, "nodaemon": 1}))
        self.assertIsNone(tap._log_file({"logfile": "-", "nodaemon": 0}))

    def test_application(self) -> None:
        """The observer is set on the application, where twistd looks for it."""
        observer = make_observer("text", "info", io.StringIO())
        application = Application("x")
        tap._Root(cast(Any, MultiService()), observer, MemoryReactor()).setServiceParent(application)
        self.assertIs(application.getComponent(ILogObserver), observer)

    def test_twist(self) -> None:
        """Under ``python -m twisted`` the runner's observer is replaced by ours."""
        twist = {"fileLogObserverFactory": jsonFileLogObserver, "logLevel": LogLevel.info}
        tap._log_under_twist(twist, self.parse("--log-level=warn").settings)
        out = io.StringIO()
        observer = twist["fileLogObserverFactory"](out)
        for level in (LogLevel.info, LogLevel.warn):
            observer({"log_format": level.name, "log_level": level, "log_time": 0, "log_namespace": "x"})
        self.assertEqual(out.getvalue(), "1970-01-01T00:00:00.000Z warn x warn\n")


class OpenFiles(OptionsCase):
    def test_too_few(self) -> None:
        """Who allows more sessions than the system allows files is told what to raise, or to lower."""
        told: list[str] = []

        def observe(event: LogEvent) -> None:
            if event["log_level"] is LogLevel.warn:
                told.append(formatEvent(event))

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.patch(tap.files, "allow_all", lambda: 1000)
        for sessions, count in (("300", 0), ("301", 1)):
            tap.makeService(self.parse("--max-sessions", sessions))
            self.assertEqual(len(told), count, told)
        self.assertIn("no more than 1000 files may be open; 301 sessions (MAX_SESSIONS) may need 1003", told[0])


class Signals(SynchronousTestCase):
    def test_orderly(self) -> None:
        """SIGTERM stops the reactor once; another one, later, means haste, once; none of them is deadly."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        stops: list[str] = []
        reactor = MemoryReactorClock()
        reactor.callFromThread = lambda call, *arguments: call(*arguments)
        reactor.stop = lambda: stops.append("stop")
        proxy: Any = MultiService()
        proxy.hurry = lambda: stops.append("hurry")
        root = tap._Root(proxy, None, reactor)
        root.startService()
        self.addCleanup(gc.unfreeze)
        self.addCleanup(gc.set_threshold, *gc.get_threshold())
        for hook, arguments, keywords in reactor.whenRunningHooks:
            hook(*arguments, **keywords)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        self.assertEqual(stops, ["stop"])
        reactor.advance(tap.SAME_SIGNAL)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        self.assertEqual(stops, ["stop", "hurry"])  # and after that, nothing counts any more

    def test_ignored_stays_ignored(self) -> None:
        """A signal that whoever started us had ignored stays ignored."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self.addCleanup(signal.signal, number, signal.getsignal(number))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        tap._Root(cast(Any, MultiService()), None, MemoryReactor())._take_signals()
        self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_IGN)


class Memory(SynchronousTestCase):
    """What the C library is told about large pieces of memory."""

    def told(self, library: object) -> None:
        """Tell a library."""
        self.patch(tap.ctypes, "CDLL", lambda _: library)
        tap._keep_memory()

    def test_kept(self) -> None:
        """A large answer's memory is kept for the next one."""
        asked: list[tuple[int, int]] = []
        self.patch(os, "environ", {})
        self.told(SimpleNamespace(mallopt=lambda *about: asked.append(about)))
        self.assertEqual(asked, [(tap.M_TRIM_THRESHOLD, 32 << 20), (tap.M_MMAP_THRESHOLD, 8 << 20)])

    def test_not_asked_for(self) -> None:
        """Whoever has set it knows better; a library that has no such thing is left alone."""
        self.patch(os, "environ", {"MALLOC_TRIM_THRESHOLD_": "1"})
        self.told(SimpleNamespace(mallopt=lambda *_: self.fail("told all the same")))
        self.patch(os, "environ", {})
        self.told(SimpleNamespace())
