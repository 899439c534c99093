"""What is a failure: no part of it knows of sockets or processes.

A `Judge` hears of every call, of everything that clients get, and of what backends have carried out. It keeps the first
call of each outcome, for whoever wonders how it came about.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs

Json = dict[str, Any]

#: The proxy's own errors, and what each may say of the delivery.
ERRORS = {-31001: ("no",), -31002: ("maybe", "yes"), -31004: ("no",)}
#: How many steps of one call are remembered.
TOLD_AT_MOST = 40


@attrs.define(eq=False)
class Call:
    """A request of a client's: what it should bring, and what has become of it.

    :param work: `write` is what must not be carried out twice.
    :param wanted: the text that a right result has in it, and no other.
    :param is_quick: whether the backend answers at once.
    """

    client: str
    id: str
    work: str
    wanted: str
    deadline: float
    is_quick: bool = False
    sent: float = attrs.Factory(time.monotonic)
    outcome: str = ""
    progress: int = 0
    events: list[str] = attrs.Factory(list)

    def note(self, what: str) -> None:
        """Remember a step, for whoever looks for the cause of a failure."""
        if len(self.events) < TOLD_AT_MOST:
            self.events.append(f"{time.monotonic():.3f} {what}")

    def history(self) -> str:
        """Return what is known of it."""
        steps = "".join(f"\n      {event}" for event in self.events)
        return f"{self.work} {self.id} of {self.client}, sent at {self.sent:.3f}, {self.outcome or 'open'}{steps}"


class Judge:
    """Counts what has come of the calls; whatever must not be is in ``failures``."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.outcomes: Counter[str] = Counter()
        self.lost = 0
        self.doubled = 0
        self.events = 0
        self.examples: dict[str, str] = {}
        self._open: dict[int, Call] = {}
        self._carried_out: Counter[str] = Counter()
        self._never: dict[str, str] = {}
        self._later: list[Call] = []

    def fail(self, what: str, call: Call | None = None) -> None:
        """Something must not be."""
        self.failures.append(f"{time.monotonic():.3f} {what}" + (f"\n    {call.history()}" if call else ""))

    # -- calls ------------------------------------------------------------------------------------------------

    def begin(self, call: Call) -> None:
        """A client makes a call."""
        self._open[id(call)] = call

    def leave(self, call: Call) -> None:
        """The client has given up a call that cannot be resumed: it may have been carried out once, or not at all."""
        if self._open.pop(id(call), None) is not None:
            self._end(call, "left")

    def answer(self, call: Call, message: Json) -> bool:
        """A client got an answer with the id of this call; return whether it is a result."""
        if self._open.pop(id(call), None) is None:
            self.doubled += 1
            self.fail(f"answered twice, now {message!r:.300}", call)
            return False
        if "result" in message:
            call.note("result")
            self._end(call, "result")
            if call.wanted not in _texts(message["result"]):
                self.fail(f"the wrong result: {message!r:.500}", call)
            elif call.work == "write":
                self._later.append(call)
            return True
        self._judge_error(call, message.get("error") or {})
        return False

    def _judge_error(self, call: Call, error: Json) -> None:
        code, data = error.get("code"), error.get("data")
        call.note(f"error {error!r:.400}")
        self._end(call, f"error {code}")
        if code not in ERRORS or not isinstance(data, dict) or data.get("source") != "proxy":
            self.fail(f"an error that nobody should get: {error!r:.500}", call)
            return
        delivered = data.get("delivered")
        if delivered not in ERRORS[code]:
            self.fail(f"error {code} says that delivered is {delivered!r}", call)
        if data.get("retrySafe") is not (delivered == "no" or call.work != "write"):
            self.fail(f"retrySafe is {data.get('retrySafe')} of a {call.work}, delivered {delivered}", call)
        if delivered == "no":
            if self._carried_out[call.wanted]:
                self.fail("said not to be delivered, but it was carried out", call)
            self._never[call.wanted] = call.history()

    def _end(self, call: Call, outcome: str) -> None:
        call.outcome = outcome
        self.outcomes[f"{call.work}: {outcome}"] += 1
        self.examples.setdefault(f"{call.client.partition('-')[0]}, {call.work}: {outcome}", call.history())

    def overdue(self, now: float) -> None:
        """Calls without an answer until their deadline are lost."""
        for call in [call for call in self._open.values() if call.deadline < now]:
            del self._open[id(call)]
            self.lost += 1
            self._end(call, "lost")
            self.fail("no answer", call)

    @property
    def open(self) -> int:
        """How many calls wait for their answers."""
        return len(self._open)

    # -- what backends have done ------------------------------------------------------------------------------

    def carried_out(self, tokens: Iterable[str]) -> None:
        """What backends have written to the ledger since; they write before they answer."""
        for token in tokens:
            self._carried_out[token] += 1
            if self._carried_out[token] == 2:
                self.doubled += 1
                self.fail(f"{token} was carried out twice")
            if token in self._never:
                self.fail(f"said not to be delivered, but it was carried out\n    {self._never[token]}")

    def check_results(self, until: float) -> None:
        """Results of calls that were made until then need to be in the ledger, which has just been read."""
        due = [call for call in self._later if call.sent < until]
        self._later = [call for call in self._later if call.sent >= until]
        for call in due:
            if self._carried_out[call.wanted] != 1:
                self.fail(f"a result, but carried out {self._carried_out[call.wanted]} times", call)

    # -- what belongs to no call ------------------------------------------------------------------------------

    def foreign(self, client: str, message: Any) -> None:
        """A client got what it never asked for."""
        self.fail(f"{client} got what is not its own: {message!r:.500}")

    def progressed(self, call: Call, progress: float, text: str) -> None:
        """A client was told of progress with the token of this call; it has to grow, and to be its own."""
        self.events += 1
        call.note(f"progress {progress} {text}")
        if call.outcome not in ("", "left"):
            self.fail(f"progress {progress} after the answer", call)
        if text.partition(" ")[0] != call.wanted:
            # The proxy's own signs of life come before the first of the backend's, and are below 1.
            if progress >= 1:
                self.fail(f"progress of another: {text!r}", call)
            return
        if progress <= call.progress:
            self.fail(f"progress {progress} after {call.progress}", call)
        call.progress = int(progress)


class Order:
    """What one session was told: each event once, those of one backend in the order in which it told them.

    An event's text is ``CLIENT ORIGIN NUMBER``; the numbers of an origin, which is one session at one backend, count
    from 1 without a gap. A new origin ends the one before.

    :param is_strict: all of them come on one stream. Where a backend does not tell what belongs to a request
        (HTTP+SSE), a client over Streamable HTTP gets them on several; then each must come once at most, on each
        stream in order.
    """

    def __init__(self, judge: Judge, client: str, *, is_strict: bool = True) -> None:
        self._judge = judge
        self._client = client
        self._is_strict = is_strict
        self._seen: set[tuple[str, int]] = set()
        self._last: dict[tuple[str, str], int] = {}
        self._ids: set[str] = set()
        self._origin = ""
        self._past: set[str] = set()
        self._number = 0

    def event(self, id: str) -> None:
        """An event with this id has come; the empty one says nothing."""
        if id and id in self._ids:
            self._judge.doubled += 1
            self._judge.fail(f"{self._client} got event {id} twice")
        self._ids.add(id)

    def told(self, text: str, stream: str = "") -> None:
        """An event with this text has come on this stream."""
        self._judge.events += 1
        client, origin, number = text.split(" ")
        if client != self._client:
            self._judge.foreign(self._client, text)
            return
        if not self._is_strict:
            self._told_loosely(origin, int(number), stream, text)
            return
        if origin != self._origin:
            self._past.add(self._origin)
            self._origin, self._number = origin, 0
        if origin in self._past:
            self._judge.fail(f"{self._client} got {text!r} after another backend's events")
        elif int(number) != self._number + 1:
            self._judge.fail(f"{self._client} got {text!r} after number {self._number}")
        self._number = int(number)

    def _told_loosely(self, origin: str, number: int, stream: str, text: str) -> None:
        if (origin, number) in self._seen:
            self._judge.doubled += 1
            self._judge.fail(f"{self._client} got {text!r} twice")
        elif number <= self._last.get((origin, stream), 0):
            self._judge.fail(f"{self._client} got {text!r} late on one stream")
        self._seen.add((origin, number))
        self._last[origin, stream] = max(number, self._last.get((origin, stream), 0))


def _texts(value: Any) -> set[str]:
    """Return all texts in a result."""
    if isinstance(value, Mapping):
        return set().union(*map(_texts, value.values()))
    if isinstance(value, list):
        return set().union(*map(_texts, value))
    return {value} if isinstance(value, str) else set()


# -- growth ----------------------------------------------------------------------------------------------------


@attrs.frozen
class Tolerance:
    """How much more there may be in the end than in the beginning."""

    share: float
    slack: float

    def allows(self, first: float, last: float) -> bool:
        """Whether that is no growth."""
        return last <= first * (1 + self.share) + self.slack


def windows(values: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the first and of the last third."""
    third = max(len(values) // 3, 1)
    return statistics.median(values[:third]), statistics.median(values[-third:])


def growth(samples: Sequence[Mapping[str, float]], tolerances: Mapping[str, Tolerance]) -> list[str]:
    """Return a line for each figure that has grown.

    Figures go up and down with the outages, so single samples say nothing, but a median of many does.
    """
    found = []
    for name, tolerance in tolerances.items():
        first, last = windows([sample[name] for sample in samples])
        if not tolerance.allows(first, last):
            found.append(f"{name} grew from {first:g} to {last:g}")
    return found
