"""How the log looks: one event, one line, as text for people or as JSON for machines."""

import json
import re
from datetime import datetime, timezone
from typing import Any, TextIO, cast

from twisted.logger import (
    FileLogObserver,
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    LogEvent,
    LogLevel,
    PredicateResult,
    formatEvent,
)
from zope.interface import provider

FIELDS = ("session", "generation", "method", "delivery", "attempt", "outage_ms")

_ORDER = {level: number for number, level in enumerate(LogLevel.iterconstants())}
_FACTORY_NOISE = ("Starting factory {factory!r}", "Stopping factory {factory!r}")
# Control characters, line separators and lone surrogates: they would break a line, a terminal or the encoder.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def make_observer(format: str, level: str, out: TextIO) -> ILogObserver:
    """Return an observer that writes events of at least `level` to `out`, each as one line.

    `format` is ``text`` or ``json``; `level` is ``debug``, ``info``, ``warn`` or ``error``. Twisted's own
    informational events (factories that start and stop, the access log) count as ``debug``.
    """
    lowest = _ORDER[LogLevel.levelWithName(level)]

    @provider(ILogFilterPredicate)
    def loud_enough(event: LogEvent) -> Any:
        return PredicateResult.maybe if _ORDER[_level(event)] >= lowest else PredicateResult.no

    to_line = _json_line if format == "json" else _text_line
    return cast(ILogObserver, FilteringLogObserver(FileLogObserver(out, to_line), [loud_enough]))


def _level(event: LogEvent) -> Any:
    level = event.get("log_level") or LogLevel.info
    return LogLevel.debug if level is LogLevel.info and _is_noise(event) else level


def _is_noise(event: LogEvent) -> bool:
    # `log_legacy` is what Twisted gives to its old `log.msg`, which the access log uses.
    by_twisted = _namespace(event).partition(".")[0] in ("twisted", "log_legacy")
    return by_twisted or event.get("log_format") in _FACTORY_NOISE


def _namespace(event: LogEvent) -> str:
    return event.get("log_namespace") or "-"


def _time(event: LogEvent) -> str:
    when = datetime.fromtimestamp(event.get("log_time", 0.0), timezone.utc)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(event: LogEvent) -> str | None:
    failure = event.get("log_failure")
    return failure.getTraceback().rstrip() if failure is not None else None


def _text_line(event: LogEvent) -> str:
    fields = [f"{name}={_quoted(event[name])}" for name in FIELDS if event.get(name) is not None]
    traceback = _traceback(event)
    if traceback is not None:
        fields.append("traceback=" + _quoted(traceback))
    head = f"{_time(event)} {_level(event).name} {_namespace(event)} {formatEvent(event)}"
    return " ".join([_UNSAFE.sub(_escape, head), *fields]) + "\n"


def _quoted(value: object) -> str:
    text = str(value)
    if text and not re.search(r'[\s"=\\]', text):
        return _UNSAFE.sub(_escape, text)
    return _UNSAFE.sub(_escape, json.dumps(text, ensure_ascii=False))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def _json_line(event: LogEvent) -> str:
    entry: dict[str, Any] = {
        "time": _time(event),
        "level": _level(event).name,
        "namespace": _namespace(event),
        "message": formatEvent(event),
    }
    for name in FIELDS:
        if (value := event.get(name)) is not None:
            entry[name] = value if isinstance(value, int | float) else str(value)
    traceback = _traceback(event)
    if traceback is not None:
        entry["traceback"] = traceback
    return json.dumps(entry) + "\n"
