"""The command line: ``twistd mcp-proxy``, ``python -m twisted mcp-proxy`` and the script ``mcp-proxy``."""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, cast

from twisted.application.service import IService, IServiceCollection, MultiService
from twisted.internet.defer import Deferred, succeed
from twisted.logger import ILogObserver, Logger, LogLevel
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile

from . import __version__, files
from .config import VARIABLES, ConfigError, Settings, Variable, load
from .logs import make_observer

if TYPE_CHECKING:
    from .service import ProxyService

log = Logger()

#: What ``mallopt`` calls its parameters (malloc.h of glibc), and how many bytes are kept.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_MEMORY = 32 * 1024 * 1024
#: A signal that comes so soon, in seconds, after the first is the same one: `timeout` and some shells send it twice.
SAME_SIGNAL = 0.5


def _parameter(variable: Variable) -> list[str | None]:
    # The default stays None here, so that `load` can tell a flag that was given from one that was not.
    default = f"default: {variable.default}" if variable.default else "no default"
    return [variable.flag.removeprefix("--"), None, None, f"{variable.help} [{variable.name}, {default}]"]


class Options(usage.Options):
    """The flags of ``mcp-proxy``, one for each row of the table in `mcp_proxy.config`.

    After parsing, `settings` holds the checked configuration. Whatever is wrong ends the process with
    status 1 and one line on stderr.
    """

    optParameters = [_parameter(variable) for variable in VARIABLES]
    longdesc = "Each flag wins over the environment variable of that name, which wins over a .env file here."
    settings: Settings

    def opt_version(self) -> NoReturn:
        """Print the version and exit."""
        print("mcp-proxy", __version__)
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse `options`; exit with one line, not with twistd's whole help, if one is unknown."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            sys.exit(f"mcp-proxy: {error} (see mcp-proxy --help)")

    def postOptions(self) -> None:
        """Load the settings from flags, environment and ``./.env``, or exit with one line."""
        flags = {variable.name: self[variable.flag.removeprefix("--")] for variable in VARIABLES}
        try:
            self.settings = load(flags, os.environ, Path(".env"))
        except ConfigError as error:
            sys.exit(f"mcp-proxy: {error}")
        _install_reactor(self.settings.reactor)


def _install_reactor(choice: str) -> None:
    """Choose the reactor, unless ``twistd --reactor`` or whoever else has done that."""
    if choice == "twisted":
        return
    try:
        from .fast import FastReactor, install
    except ImportError:
        if choice == "uvloop":
            sys.exit("mcp-proxy: REACTOR is uvloop, which is not installed: pip install '.[fast]'")
        return
    chosen = sys.modules.get("twisted.internet.reactor")
    if chosen is None:
        install()
    elif choice == "uvloop" and not isinstance(chosen, FastReactor):
        sys.exit("mcp-proxy: REACTOR is uvloop, but another one is chosen already (twistd --reactor)")


class _Root(MultiService):
    """What runs: the proxy, with our log lines and an orderly end on SIGINT and SIGTERM."""

    def __init__(self, child: "ProxyService", observer: ILogObserver | None, reactor: Any) -> None:
        super().__init__()
        self._child = child
        self._observer = observer
        self._reactor = reactor
        self._told_at: float | None = None
        child.setServiceParent(self)

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Join `parent`; if it is the Application, twistd takes its log observer from there."""
        super().setServiceParent(parent)
        if self._observer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._observer)

    def startService(self) -> None:
        """Start, and take over the signals as soon as the reactor has set its own handlers."""
        super().startService()
        self._reactor.callWhenRunning(self._take_signals)
        self._reactor.callWhenRunning(_settle)

    def _take_signals(self) -> None:
        # Twisted's own handlers let the process die of the signal in the end: status 143, not 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._told_at is None:
            self._told_at = self._reactor.seconds()
            self._reactor.callFromThread(self._stop, signal.Signals(number).name)
        elif self._reactor.seconds() - self._told_at >= SAME_SIGNAL:
            _ignore_signals()
            self._reactor.callFromThread(self._child.hurry)  # whoever says it again does not want to wait

    async def _stopped(self) -> None:
        await (super().stopService() or succeed(None))
        if self._told_at is not None:
            _ignore_signals()

    def stopService(self) -> Deferred[None]:
        """Stop; a signal that comes when all is done must not make the exit status another."""
        return Deferred.fromCoroutine(self._stopped())

    def _stop(self, name: str) -> None:
        log.info("received {name}, stopping", name=name)
        self._reactor.stop()


def _ignore_signals() -> None:
    # The interpreter restores what it finds at its end, but for what is ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _settle() -> None:
    """Look for garbage in what links and sessions leave behind, not in the program itself; requests leave none."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 5, 5)
    _keep_memory()


def _keep_memory() -> None:
    """Have the C library (glibc) keep what a large answer has used for the next one; the system's pages cost more."""
    if "MALLOC_TRIM_THRESHOLD_" in os.environ:
        return  # somebody knows better
    with suppress(AttributeError, OSError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT_MEMORY)
        mallopt(M_MMAP_THRESHOLD, KEPT_MEMORY // 4)


def makeService(options: Options) -> IService:
    """Return the whole proxy as one service, configured by `options`; twistd and `main` start it."""
    from twisted.internet import reactor

    from .direct import quicken
    from .service import make_service

    quicken(reactor)
    settings = options.settings
    out = _log_file(options.parent or {})
    observer = make_observer(settings.log_format, settings.log_level, out) if out is not None else None
    _log_under_twist(options.parent or {}, settings)
    shown = " ".join(f"{name}={value}" for name, value in settings.describe().items())
    log.info("mcp-proxy {version} starts with {settings}", version=__version__, settings=shown)
    service = make_service(settings, reactor, max_connections=_allow_files(settings.max_sessions))
    return cast(IService, _Root(service, observer, reactor))


def _allow_files(sessions: int) -> int:
    """Return how many of the files that may be open clients may have; each session needs some."""
    allowed, wanted = files.allow_all(), files.wanted_for(sessions)
    if 0 < allowed < wanted:
        log.warn(
            "no more than {allowed} files may be open; {sessions} sessions (MAX_SESSIONS) may need {wanted}: "
            "raise the limit (ulimit -Hn, LimitNOFILE) or lower MAX_SESSIONS",
            allowed=allowed,
            sessions=sessions,
            wanted=wanted,
        )
    return files.for_clients(allowed, sessions)


def _log_file(twistd: Mapping[str, Any]) -> TextIO | None:
    """Return where twistd's own options send the log, None where they leave no room for our format."""
    name = twistd.get("logfile")
    in_foreground = twistd.get("nodaemon", True)
    if twistd.get("syslog") or (name == "-" and not in_foreground):
        return None
    if name == "-" or (in_foreground and not name):
        return sys.stdout
    return cast(TextIO, LogFile.fromFullPath(name or "twistd.log"))


def _log_under_twist(twist: MutableMapping[str, Any], settings: Settings) -> None:
    # `python -m twisted` asks no Application for an observer, but takes a factory from its own options.
    if "fileLogObserverFactory" in twist:
        format, level = settings.log_format, settings.log_level
        twist["fileLogObserverFactory"] = lambda out: make_observer(format, level, out)
        twist["logLevel"] = LogLevel.debug


def main() -> None:
    """Run the proxy in the foreground, without a pid file, with the flags of the command line."""
    from twisted.scripts.twistd import ServerOptions, runApp  # type: ignore[attr-defined]

    config = ServerOptions()
    config.synopsis = "Usage:"
    config.parseOptions(["--nodaemon", "--pidfile=", "mcp-proxy", *sys.argv[1:]])
    runApp(config)
