"""What can be set, and how a setting gets its value.

The fields of `Settings` are the one table: a field's name, default, parser and help sentence make the
environment variable, the command line flag and the check. `.env.example`, the README and
``twistd mcp-proxy --help`` follow it.
"""

import math
import re
from collections.abc import Callable, Mapping
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import attrs
from dotenv import dotenv_values
from twisted.internet.endpoints import quoteStringArgument, serverFromString

#: How many connections may wait to be accepted: after an outage many clients come at once.
BACKLOG = 1024

_KEY = "mcp_proxy.config"
_WHOLE = re.compile(r"[0-9]{1,15}")
_DECIMAL = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?|\.[0-9]{1,9}")
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f-\xa0]")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+")
_TOKEN = re.compile(r"[!-~]{16,}")
#: How the URL of an endpoint ends, and which setting its path is.
_ENDPOINTS = (("/mcp/sse", "backend_sse_path"), ("/sse", "backend_sse_path"), ("/mcp", "backend_mcp_path"))
_NAME = r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?"
_HOST = re.compile(_NAME)
_HOST_AND_PORT = re.compile(rf"({_NAME}|\[[0-9a-f:.]+\])(:[0-9]{{1,5}})?")


class ConfigError(ValueError):
    """A setting has a value that is not allowed. The message is one line and holds no credential."""


@attrs.frozen
class Kind:
    """A type of setting: `parse` makes a value of text, or raises ValueError; `allowed` says of which.

    The value of one that `is_secret` is never shown.
    """

    parse: Callable[[str], Any]
    allowed: str
    is_secret: bool = False


@attrs.frozen
class Variable:
    """One row of the table: everything there is to know about one setting."""

    name: str
    flag: str
    attribute: str
    default: str
    kind: Kind
    help: str


def _url(text: str) -> str:
    parts = urlsplit(text)
    port_is_bad = parts.port == 0 or parts.netloc.endswith(":")
    if parts.scheme not in ("http", "https") or not parts.hostname or port_is_bad:
        raise ValueError("not an http URL with a host")
    if "?" in text or "#" in text or _UNPRINTABLE.search(text):
        raise ValueError("more than scheme, host, port and path")
    return text


def _path(text: str) -> str:
    if not text.startswith("/") or text.startswith("//") or "#" in text or _UNPRINTABLE.search(text):
        raise ValueError("not a path")
    return text


def _host(text: str) -> str:
    if ":" in text:
        return str(IPv6Address(text))
    if not _HOST.fullmatch(text.lower()):
        raise ValueError("not a host")
    return text


def _endpoint(text: str) -> str:
    if text:
        # Building the endpoint checks the whole string, and opens nothing: only `listen()` uses the reactor.
        try:
            serverFromString(cast(Any, None), text)
        except Exception as error:  # each endpoint plugin has its own errors
            raise ValueError("not an endpoint") from error
    return text


def _whole(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not _WHOLE.fullmatch(text):
            raise ValueError("not a whole number")
        number = int(text)
        if number < lowest or (highest is not None and number > highest):
            raise ValueError("out of range")
        return number

    return parse


def _number(text: str) -> float:
    if not _DECIMAL.fullmatch(text):
        raise ValueError("not a number")
    return float(text)


def _seconds(text: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise ValueError("out of range")
    return number


def _token(text: str) -> str:
    if text and not _TOKEN.fullmatch(text):
        raise ValueError("not a token")
    return text


def _file(text: str) -> str:
    if text and not Path(text).is_file():
        raise ValueError("not a file")
    return text


def _choice(*words: str) -> Kind:
    def parse(text: str) -> str:
        if text.lower() not in words:
            raise ValueError("not one of the words")
        return text.lower()

    return Kind(parse, "one of " + ", ".join(words))


def _list_of(item: re.Pattern[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        items = tuple(part.strip().lower() for part in text.split(",")) if text else ()
        if items != ("*",) and not all(map(item.fullmatch, items)):
            raise ValueError("not such a list")
        return items

    return parse


_URL = Kind(_url, "an http:// or https:// URL with a host, without query or fragment")
_PATH = Kind(_path, "a path that starts with one /")
_FILE = Kind(_file, "empty, or the path of a file")
_SECONDS = Kind(_seconds, "a number above 0, such as 2 or 0.5")
_COUNT = Kind(_whole(1), "a whole number from 1 up")
_COUNT_OR_0 = Kind(_whole(0), "a whole number from 0 up")


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return str(int(value)) if isinstance(value, float) and value.is_integer() else _redact_valid(str(value))


def _hidden(value: object) -> str:
    return "***" if value else ""


def _redact_valid(text: str) -> str:
    return re.sub(r"^(https?://)[^/]*@", r"\1***@", text.partition("?")[0]) + ("?***" if "?" in text else "")


def _variable(default: str, kind: Kind, help: str) -> Any:
    row = (default, kind, help)
    return attrs.field(default=kind.parse(default), metadata={_KEY: row}, repr=_hidden if kind.is_secret else _shown)


@attrs.frozen(kw_only=True)
class Settings:
    """The effective configuration. Times are seconds, sizes are bytes."""

    backend_url: str = _variable(
        "http://localhost:3000",
        _URL,
        "Where the MCP server is, or the URL of its endpoint if that ends in /mcp or /sse.",
    )
    backend_transport: Literal["auto", "sse", "streamable"] = _variable(
        "auto",
        _choice("auto", "sse", "streamable"),
        "What the backend speaks: HTTP+SSE, Streamable HTTP, or whichever it turns out to be.",
    )
    backend_mcp_path: str = _variable("/mcp", _PATH, "The backend's Streamable HTTP endpoint.")
    backend_sse_path: str = _variable("/mcp/sse", _PATH, "The backend's HTTP+SSE endpoint.")
    backend_health_path: str = _variable("/health", _PATH, "The path that tells whether the backend is up.")
    backend_ca_file: str = _variable(
        "", _FILE, "PEM certificates that vouch for an https backend, instead of those of the system."
    )
    backend_client_cert: str = _variable(
        "", _FILE, "The PEM certificate, with its chain, that the proxy shows to an https backend."
    )
    backend_client_key: str = _variable("", _FILE, "The PEM key of it; empty: in the same file.")
    proxy_host: str = _variable(
        "127.0.0.1", Kind(_host, "a host name or an IP address"), "The address that clients connect to."
    )
    proxy_port: int = _variable(
        "8001",
        Kind(_whole(0, 65535), "a whole number from 0 to 65535"),
        "The port that clients connect to; 0 takes any free one.",
    )
    listen: str = _variable(
        "",
        Kind(_endpoint, "empty, or a Twisted endpoint such as tcp:8001:interface=127.0.0.1"),
        "A Twisted server endpoint to use instead of PROXY_HOST and PROXY_PORT.",
    )
    max_reconnect_attempts: int = _variable(
        "10", _COUNT_OR_0, "Attempts to reach a lost backend before held requests are answered; 0: no limit."
    )
    reconnect_delay: float = _variable("2", _SECONDS, "Seconds between two such attempts.")
    hold_timeout: float = _variable("45", _SECONDS, "Seconds that a request waits for a lost backend.")
    keepalive_interval: float = _variable("15", _SECONDS, "Seconds between two comments on a silent stream.")
    connect_timeout: float = _variable("10", _SECONDS, "Seconds for each step of connecting to the backend.")
    stall_timeout: float = _variable("30", _SECONDS, "Seconds until a client that reads nothing is dropped.")
    drain_timeout: float = _variable(
        "10", _SECONDS, "Seconds that requests in flight may take to be answered when the proxy is told to stop."
    )
    health_interval: float = _variable("10", _SECONDS, "Seconds between two checks of the backend's health.")
    session_idle_timeout: float = _variable("1800", _SECONDS, "Seconds until an unused session is closed.")
    max_sessions: int = _variable("1000", _COUNT, "The most sessions at the same time.")
    max_sessions_per_credential: int = _variable(
        "0", _COUNT_OR_0, "The most sessions of one credential; 0: no limit of their own."
    )
    max_streams: int = _variable("20000", _COUNT_OR_0, "The most event streams that clients may open; 0: no limit.")
    max_request_rate: float = _variable(
        "0", Kind(_number, "a number from 0 up"), "Requests a second that one credential may make; 0: no limit."
    )
    max_request_burst: int = _variable("100", _COUNT, "How many of them may come at once.")
    max_batch: int = _variable("100", _COUNT, "The most messages in one array (revision 2025-03-26).")
    max_body_bytes: int = _variable("4194304", _COUNT, "The largest request body taken from a client.")
    max_event_bytes: int = _variable("16777216", _COUNT, "The largest single event taken from the backend.")
    hold_max_requests: int = _variable("100", _COUNT_OR_0, "Requests that a session may hold in an outage.")
    hold_max_bytes: int = _variable("8388608", _COUNT_OR_0, "Bytes that a session may hold in an outage.")
    hold_max_total_bytes: int = _variable(
        "268435456", _COUNT_OR_0, "Bytes that all sessions together may hold; 0: no limit."
    )
    retry_tool_calls: Literal["never", "annotated"] = _variable(
        "never",
        _choice("never", "annotated"),
        "Whether a tool call that may have run is sent again: never, or when the tool is annotated as safe.",
    )
    allowed_origins: tuple[str, ...] = _variable(
        "",
        Kind(_list_of(_ORIGIN), "a comma-separated list of origins such as https://app.example.com, or *"),
        "Origins that browsers may call from; empty means loopback origins only.",
    )
    allowed_hosts: tuple[str, ...] = _variable(
        "",
        Kind(_list_of(_HOST_AND_PORT), "a comma-separated list of host names, with or without a port, or *"),
        "Host names served beside loopback names; empty: none on a loopback address, else any.",
    )
    admin_token: str = _variable(
        "",
        Kind(_token, "empty, or at least 16 visible ASCII characters", is_secret=True),
        "Who shows this as Bearer token may read /metrics; empty: who asks on this machine.",
    )
    proxy_api_keys_file: str = _variable(
        "", _FILE, "A file with keys, one a line, of which clients must show one as X-Proxy-Key; empty: none is needed."
    )
    http_stack: Literal["lean", "klein"] = _variable(
        "lean", _choice("lean", "klein"), "What reads requests for the MCP endpoints: code made for it, or Klein."
    )
    reactor: Literal["auto", "twisted", "uvloop"] = _variable(
        "auto",
        _choice("auto", "twisted", "uvloop"),
        "What waits for the network: uvloop if it is installed (the extra fast), or always the one or the other.",
    )
    log_level: Literal["debug", "info", "warn", "error"] = _variable(
        "info", _choice("debug", "info", "warn", "error"), "The least severe events that are logged."
    )
    log_format: Literal["text", "json"] = _variable(
        "text", _choice("text", "json"), "Whether an event is logged as plain text or as a JSON object."
    )

    @property
    def backend_url_redacted(self) -> str:
        """`backend_url` without its user name and password, for logs and messages."""
        return _redact_valid(self.backend_url)

    @property
    def endpoint(self) -> str:
        """The Twisted server endpoint to listen on: LISTEN, or else PROXY_HOST and PROXY_PORT."""
        host = quoteStringArgument(self.proxy_host)
        return self.listen or f"tcp:{self.proxy_port}:interface={host}:backlog={BACKLOG}"

    def describe(self) -> dict[str, str]:
        """Return each variable's name and effective value as text, without credentials."""
        return {v.name: (_hidden if v.kind.is_secret else _shown)(getattr(self, v.attribute)) for v in VARIABLES}


def _redact_any(text: str) -> str:
    # The text is no valid value, so nobody knows where its user info ends: rather hide too much.
    text = re.sub(r"\?.*", "?***", text, flags=re.DOTALL)
    return re.sub(r"^([A-Za-z][A-Za-z0-9+.-]*:/{1,2})?.*@", r"\1***@", text, flags=re.DOTALL)


VARIABLES: tuple[Variable, ...] = tuple(
    Variable(field.name.upper(), "--" + field.name.replace("_", "-"), field.name, *field.metadata[_KEY])
    for field in attrs.fields(Settings)
)


def load(flags: Mapping[str, str | None], environ: Mapping[str, str], env_file: Path | None) -> Settings:
    """Return the settings: flags win over the environment, that over the .env file, that over the defaults.

    `flags` maps variable names to what the command line gave, None for a flag that was not given. An empty
    variable in `environ` or `env_file` counts as not set; names that are not in the table are ignored, and so
    is a file that does not exist. Raises `ConfigError` for a value that is not allowed or a file that cannot
    be read.
    """
    file = _read(env_file)
    values = {}
    for variable in VARIABLES:
        name = variable.name
        if (given := flags.get(name)) is not None:
            values[variable.attribute] = _parse(variable, given, f"flag {variable.flag}")
        elif given := environ.get(name, "").strip():
            values[variable.attribute] = _parse(variable, given, "the environment")
        elif given := (file.get(name) or "").strip():
            values[variable.attribute] = _parse(variable, given, str(env_file))
    return Settings(**_located(values))


def _located(values: dict[str, Any]) -> dict[str, Any]:
    """A BACKEND_URL that is the whole URL of an endpoint, as clients are given it, tells that path as well."""
    if "backend_url" not in values:
        return values
    given: str = values["backend_url"]
    url = given.rstrip("/")
    for ending, path in _ENDPOINTS:
        if path not in values and urlsplit(url).path.endswith(ending):
            base = url.removesuffix(ending)
            return {**values, "backend_url": base, path: given[len(base) :]}
    return {**values, "backend_url": url}


def read_keys(name: str) -> tuple[bytes, ...]:
    """Return the keys in a file: one a line, of at least 16 visible ASCII characters; # begins a comment.

    Raises `ConfigError` if it cannot be read, or if there is no key or something else in it.
    """
    try:
        lines = Path(name).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{name} cannot be read: {reason}") from error
    keys = []
    for number, line in enumerate(lines, 1):
        key = line.strip()
        if key and not key.startswith("#"):
            if not _TOKEN.fullmatch(key):
                raise ConfigError(f"{name}, line {number}: a key has at least 16 visible ASCII characters")
            keys.append(key.encode())
    if not keys:
        raise ConfigError(f"{name} holds no key")
    return tuple(keys)


def _read(env_file: Path | None) -> Mapping[str, str | None]:
    if env_file is None:
        return {}
    try:
        # No interpolation: a `$` in a password means itself. `utf-8-sig` also reads what Windows writes.
        return dotenv_values(env_file, interpolate=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"{env_file} cannot be read: {reason}") from error


def _parse(variable: Variable, text: str, source: str) -> Any:
    try:
        return variable.kind.parse(text.strip())
    except ValueError as error:
        shown = "***" if variable.kind.is_secret else _redact_any(text)
        shown = shown if len(shown) <= 100 else shown[:100] + "..."
        message = f"{variable.name} (from {source}) is {shown!r}, but must be {variable.kind.allowed}"
        raise ConfigError(message) from error
