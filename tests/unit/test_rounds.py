"""Questions within a request, for clients that expect them as requests: one answer, one retry, nothing twice."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.bridge.rounds import MAX_ROUNDS, Again, Ended, Rounds, Unanswerable
from mcp_proxy.wire import jsonrpc
from tests.support import messages
from tests.support.messages import Json, encoded

ELICIT, SAMPLE, ROOTS = "elicitation/create", "sampling/createMessage", "roots/list"


def rounds() -> Rounds:
    """The rounds of a request that has had none."""
    numbers = count(1)
    return Rounds(lambda: b'"q.%d"' % next(numbers))


def asks(state: Any = None, **methods: str) -> bytes:
    """A result that asks for these."""
    result: Json = {"resultType": "input_required"}
    if methods:
        result["inputRequests"] = {key: {"method": method, "params": {}} for key, method in methods.items()}
    if state is not None:
        result["requestState"] = state
    return encoded(result)


def begun(result: bytes) -> tuple[Rounds, list[Json]]:
    """The questions of a first round."""
    machine = rounds()
    questions = machine.begin(result)
    assert not isinstance(questions, Again)
    return machine, [json.loads(each) for each in questions]


def answered(machine: Rounds, question: Json, result: Json | None = None) -> Again | Ended | None:
    """The client answers a question, with an error unless there is a result."""
    identity = question["id"]
    answer = messages.error(identity, -32000) if result is None else messages.result(identity, result)
    return machine.answer(jsonrpc.parse(encoded(answer)))


def members(step: object) -> Json:
    """What goes with the next try."""
    assert isinstance(step, Again)
    return {name: json.loads(bytes(value)) for name, value in step.members.items()}


class One(SynchronousTestCase):
    def test_exact_state(self) -> None:
        """The state comes back byte by byte, as do answers."""
        machine = rounds()
        step = machine.begin(b'{"inputRequests": {}, "requestState": "\\u00e4 \\/ 1.0"}')
        assert isinstance(step, Again)
        self.assertEqual(bytes(step.members["requestState"]), b'"\\u00e4 \\/ 1.0"')
        machine, (question,) = begun(asks(a=SAMPLE))
        raw = b'{"jsonrpc":"2.0","id":"%b","result":{"n": 1.00, "m": 12345678901234567890123}}'
        step = machine.answer(jsonrpc.parse(raw % question["id"].encode()))
        assert isinstance(step, Again)
        self.assertIn(b'{"n": 1.00, "m": 12345678901234567890123}', bytes(step.members["inputResponses"]))

    def test_errors(self) -> None:
        """An error cancels a form, and ends the request everywhere else."""
        machine, (question,) = begun(asks("s", a=ELICIT))
        self.assertEqual(
            members(answered(machine, question)), {"inputResponses": {"a": {"action": "cancel"}}, "requestState": "s"}
        )
        for method in (SAMPLE, ROOTS):
            machine, (question, _) = begun(asks(a=method, b=ELICIT))
            self.assertIsInstance(answered(machine, question), Ended)
            self.assertEqual(machine.end(), [b'"q.2"'])

    def test_states_do_not_last(self) -> None:
        """A round has its own state and answers, and nothing of the one before."""
        machine, (question,) = begun(asks("s", a=ROOTS))
        answered(machine, question, {"roots": []})
        questions = machine.begin(asks(b=ROOTS))
        assert not isinstance(questions, Again)
        step = answered(machine, json.loads(questions[0]), {"roots": [1]})
        self.assertEqual(members(step), {"inputResponses": {"b": {"roots": [1]}}})

    def test_url(self) -> None:
        """Only a question that sends the user to a page gets an id, and only one that has none."""
        for params, expected in (
            ({"mode": "url", "url": "x"}, "q.1"),
            ({"mode": "url", "elicitationId": "own"}, "own"),
            ({"mode": "form", "message": '"url"'}, None),
            ({"message": "url"}, None),
        ):
            result = encoded({"inputRequests": {"a": {"method": ELICIT, "params": params}}})
            _, (question,) = begun(result)
            self.assertEqual(question["params"].get("elicitationId"), expected)

    def test_nonsense(self) -> None:
        """What cannot be asked is said to be so."""
        many = {str(number): ROOTS for number in range(101)}
        for wrong in (
            b"{}",
            b"[]",
            b'{"inputRequests":[]}',
            asks(a="ping"),
            asks(**many),
            b'{"inputRequests":{"a":1}}',
        ):
            self.assertRaises(Unanswerable, rounds().begin, wrong)

    def test_bounded(self) -> None:
        """There is an end to it."""
        machine = rounds()
        for number in range(MAX_ROUNDS):
            self.assertEqual(members(machine.begin(asks(str(number)))), {"requestState": str(number)})
        self.assertRaises(Unanswerable, machine.begin, asks("more"))


#: What a client does: answers one of the open questions (well, or with an error), or one that is answered already.
ACTIONS = st.lists(st.tuples(st.sampled_from(["answer", "refuse", "repeat", "next"]), st.integers(0, 9)), max_size=40)
ROUNDS = st.lists(st.lists(st.sampled_from([ELICIT, SAMPLE, ROOTS]), max_size=4), min_size=1, max_size=6)


class AnyOrder(SynchronousTestCase):
    @given(ROUNDS, ACTIONS)
    @settings(max_examples=300, deadline=None)
    def test_once(self, wanted: list[list[str]], actions: list[tuple[str, int]]) -> None:
        """In whatever order answers come: one retry for each round, with each answer once, and none after the end."""
        machine, rest, done = rounds(), [*wanted], False
        used: set[str] = set()
        answered_ids: list[Json] = []
        open_: dict[str, Json] = {}
        given_: dict[str, Json] = {}

        def ask() -> None:
            nonlocal open_, given_
            methods = rest.pop(0)
            step = machine.begin(asks("s", **{f"k{number}": method for number, method in enumerate(methods)}))
            if isinstance(step, Again):
                self.assertEqual((methods, members(step)), ([], {"requestState": "s"}))
                return
            questions = [json.loads(each) for each in step]
            self.assertTrue(all(each["id"] not in used for each in questions))
            used.update(each["id"] for each in questions)
            open_ = {f"k{number}": each for number, each in enumerate(questions)}
            given_ = {}

        ask()
        for action, number in actions:
            if action == "next":
                if not open_ and rest and not done:
                    ask()
            elif action == "repeat" and answered_ids:
                late = answered_ids[number % len(answered_ids)]
                self.assertIsNone(answered(machine, late, {"late": True}), "an answer counts once")
            elif open_ and not done:
                key = sorted(open_)[number % len(open_)]
                question = open_.pop(key)
                answered_ids.append(question)
                is_error = action == "refuse"
                result = None if is_error else {"n": number}
                step = answered(machine, question, result)
                if is_error and question["method"] != ELICIT:
                    self.assertIsInstance(step, Ended)
                    self.assertEqual({*machine.end()}, {json.dumps(each["id"]).encode() for each in open_.values()})
                    answered_ids += open_.values()
                    open_, done = {}, True
                    continue
                given_[key] = {"action": "cancel"} if result is None else result
                if open_:
                    self.assertIsNone(step, "not before the last answer")
                else:
                    self.assertEqual(members(step), {"inputResponses": given_, "requestState": "s"})
