"""Clients of revision 2026-07-28 on an older backend: asking, answering, leaving and losing in any order.

Whatever happens, each request has one answer, none of it crosses from one principal to another, no call is made twice,
and nothing is left at the end.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session import group as groups
from mcp_proxy.session import pool as pools
from mcp_proxy.session.policy import Policy
from tests.memory.house_case import ALICE, BOB
from tests.memory.test_modern import POSTED, silent
from tests.memory.test_to_legacy import able, retry
from tests.support import messages, modern
from tests.support.memory import Connection, FakeLink, House
from tests.support.messages import Json, encoded

WHO = {"alice": ALICE, "bob": BOB}
MAX_CALLS = 12


class Asked:
    """One call of a client's, over all its POSTs."""

    def __init__(self, who: str, number: int) -> None:
        self.who = who
        self.number = number
        self.posts: list[Connection] = []
        self.left: set[Connection] = set()
        self.states: list[tuple[str, list[str]]] = []
        self.used: set[str] = set()
        self.is_over = False

    @property
    def message(self) -> Json:
        """The request, with what tells it from the others."""
        return able(identity=1, params={"name": "echo", "arguments": {"n": self.number, "who": self.who}})


class Races(RuleBasedStateMachine):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Asked] = []
        self.answered: set[tuple[FakeLink, Any]] = set()
        self.born: dict[str, float] = {}
        self.house = House(policy=Policy(hold_timeout=20.0), max_sessions=40)

    @initialize(correlates=st.booleans())
    def begin(self, correlates: bool) -> None:
        """A backend that answers calls when it is told to."""
        backend = self.house.backend
        backend.is_legacy, backend.correlates = True, correlates
        backend.answers["tools/call"] = silent

    # -- clients -----------------------------------------------------------------------------------------------

    def post(self, who: str, message: Json) -> Connection:
        """A client posts."""
        headers = (*POSTED, *modern.headers_of(message), WHO[who])
        return self.house.ask("POST", "/mcp", headers, encoded(message))

    @precondition(lambda self: len(self.calls) < MAX_CALLS)
    @rule(who=st.sampled_from(sorted(WHO)))
    def ask(self, who: str) -> None:
        """A client makes a call."""
        call = Asked(who, len(self.calls))
        self.calls.append(call)
        call.posts.append(self.post(who, call.message))

    @rule(data=st.data())
    def come_back(self, data: Any) -> None:
        """A client brings answers: all, or none."""
        ready = [(call, *state) for call in self.calls for state in call.states if state[0] not in call.used]
        if ready:
            call, state, names = data.draw(st.sampled_from(ready))
            call.used.add(state)
            given = {name: {"action": "accept", "content": {"n": call.number}} for name in names}
            post = self.post(call.who, retry(call.message, 2, state, **given))
            if post.started and post.answer.complete and not post.events and post.answer.status == 400:
                assert self.house.clock.seconds() - self.born[state] >= pools.PARKED, post.answer
            call.posts.append(post)

    @rule(data=st.data(), is_foreign=st.booleans())
    def intrude(self, data: Any, is_foreign: bool) -> None:
        """Somebody brings a state that is another's, or was used."""
        known = [(call, *state) for call in self.calls for state in call.states]
        known = known if is_foreign else [each for each in known if each[1] in each[0].used]
        if not known:
            return
        call, state, names = data.draw(st.sampled_from(known))
        who = call.who if not is_foreign else next(each for each in sorted(WHO) if each != call.who)
        before = self.delivered()
        given = {name: {"action": "accept", "content": {"n": -1}} for name in names}
        answer = self.post(who, retry(call.message, 3, state, **given)).answer
        assert (answer.status, answer.json()["error"]["code"]) == (400, -32602), answer
        assert self.delivered() == before

    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        """A client leaves a POST."""
        waiting = [(call, post) for call in self.calls for post in call.posts if not post.closed]
        if waiting:
            call, post = data.draw(st.sampled_from(waiting))
            if not (post.started and post.answer.complete):
                call.left.add(post)
                call.is_over = True
            post.hang_up()

    # -- the backend -------------------------------------------------------------------------------------------

    def delivered(self) -> int:
        """How many answers to its questions the backend has got."""
        return sum("method" not in each for link in self.house.backend.made for each in link.sent)

    def under_way(self) -> list[tuple[FakeLink, Json]]:
        """The calls that the backend has got on links that live."""
        return [
            (link, sent)
            for link in self.house.backend.made
            if not link.closed and not link.stateless
            for sent in link.sent
            if sent.get("method") == "tools/call"
        ]

    @rule(data=st.data(), is_question=st.booleans(), identity=st.integers(0, 3))
    def speak(self, data: Any, is_question: bool, identity: int) -> None:
        """The backend asks the client of a call something, or answers the call."""
        found = self.under_way()
        if not found:
            return
        link, sent = data.draw(st.sampled_from(found))
        if is_question and (link, sent["id"]) in self.answered:
            return  # a backend has no questions about what it has answered; on one stream for all, nobody could tell
        if is_question:
            params = {"message": "?", "n": sent["params"]["arguments"]["n"]}
            about = sent["id"] if link.correlates else None
            link.tell(messages.request("elicitation/create", identity, params), about)
        else:
            self.answered.add((link, sent["id"]))
            link.tell(messages.result(sent["id"], {"content": [], "n": sent["params"]["arguments"]["n"]}))

    @rule()
    def lose(self) -> None:
        """The backend dies."""
        self.house.backend.go_down()

    @rule()
    def find(self) -> None:
        """It is back."""
        if self.house.backend.is_down:
            self.house.backend.come_back()

    @rule(seconds=st.sampled_from((0.0, groups.ASK_WAIT, 1.0, 21.0, pools.PARKED)))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.house.clock.advance(seconds)

    # -- what must hold ----------------------------------------------------------------------------------------

    @invariant()
    def answers(self) -> None:
        """A POST has one answer at most, and it is that of its own call."""
        for call in self.calls:
            for post in call.posts:
                if post in call.left or not post.started or not post.answer.complete:
                    continue
                found = (
                    [each for each in post.messages if "method" not in each] if post.events else [post.answer.json()]
                )
                assert len(found) == 1, found
                result = found[0].get("result")
                if result is None:
                    assert found[0]["error"]["code"] in (-31001, -31002, -31004, -32602), found
                elif result["resultType"] == "input_required":
                    assert {each["params"]["n"] for each in result["inputRequests"].values()} == {call.number}
                    state = (result["requestState"], sorted(result["inputRequests"]))
                    if state not in call.states:
                        call.states.append(state)
                        self.born[state[0]] = self.house.clock.seconds()
                else:
                    assert result["n"] == call.number, (result, call.number)

    @invariant()
    def once(self) -> None:
        """No call was made twice, and each on a link of its own principal."""
        made: list[int] = []
        for link in self.house.backend.made:
            for sent in link.sent:
                if sent.get("method") == "tools/call" and not link.stateless:
                    made.append(sent["params"]["arguments"]["n"])
                    assert WHO[sent["params"]["arguments"]["who"]] in link.headers
        assert len(made) == len(set(made)), made

    @invariant()
    def answered_in_place(self) -> None:
        """The answers to the backend's questions come from the calls that they are about."""
        for link in self.house.backend.made:
            for sent in link.sent:
                content = sent.get("result", {}).get("content") if "method" not in sent else None
                if isinstance(content, dict):
                    numbers = {each["params"]["arguments"]["n"] for _, each in self.all_calls(link)}
                    assert content["n"] in numbers

    @staticmethod
    def all_calls(link: FakeLink) -> list[tuple[FakeLink, Json]]:
        """The calls that came on a link."""
        return [(link, sent) for sent in link.sent if sent.get("method") == "tools/call"]

    @invariant()
    def bounded(self) -> None:
        """What is kept has bounds."""
        assert self.house.pool.parked <= MAX_CALLS
        assert len(self.house.pool) <= 2 * (groups.MAX_LEASES + 1)

    def teardown(self) -> None:
        """Everybody is answered, and nothing is left."""
        backend = self.house.backend
        backend.answers["tools/call"] = lambda asked: messages.result(
            asked["id"], {"n": asked["params"]["arguments"]["n"]}
        )
        if backend.is_down:
            backend.come_back()
        for _ in range(3):
            for link, sent in self.under_way():
                link.tell(messages.result(sent["id"], {"content": [], "n": sent["params"]["arguments"]["n"]}))
            self.house.clock.advance(25)
        self.house.clock.advance(pools.PARKED)
        self.answers()
        for call in self.calls:
            for post in call.posts:
                assert post in call.left or (post.started and post.answer.complete), post.raw
        self.once()
        assert self.house.pool.parked == 0
        self.house.pool.expire(self.house.clock.seconds() + 1800)
        self.house.clock.advance(0)
        assert (len(self.house.pool), len(self.house.pool._groups), list(self.house.registry)) == (0, 0, [])
        assert [str(each) for each in self.house.clock.getDelayedCalls()] == []
        self.house.close()


class RacesTest(SynchronousTestCase):
    def test_races(self) -> None:
        """Random walks of hypothesis."""
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            Races,
            settings=settings(
                max_examples=60,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
