"""How many files the process may have open; each connection is one.

Shells and service managers start programs with few (1024 is usual), for the sake of those that use ``select()``.
"""

from __future__ import annotations

from contextlib import suppress

try:
    import resource
except ImportError:  # no Unix
    resource = None  # type: ignore[assignment]

#: No more are asked for; and so many where the system refuses its own limit (macOS).
MOST = 1_048_576
MODEST = 10_240
#: What a session may have open: its client's stream and requests, and the backend's stream.
OF_A_SESSION = 3
#: What else there is: connections to the backend that all share, the port, the log.
OF_ALL = 100


def allow_all() -> int:
    """Let the process open as many as the system lets it. Return how many that is, 0 if it cannot be told."""
    if resource is None:
        return 0
    now, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = MOST if hard == resource.RLIM_INFINITY else hard
    for wanted in (min(hard, MOST), min(hard, MODEST)):
        if now == resource.RLIM_INFINITY or now >= wanted:
            break
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            now = wanted
    return MOST if now == resource.RLIM_INFINITY else now


def wanted_for(sessions: int) -> int:
    """How many so many sessions need."""
    return OF_ALL + OF_A_SESSION * sessions


def for_clients(allowed: int, sessions: int) -> int:
    """How many of those that are allowed clients may have, so that enough are left for the backend; 0 is no limit."""
    return max(allowed // 2, allowed - OF_ALL - sessions)
