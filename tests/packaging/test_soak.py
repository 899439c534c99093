"""The judge of the soak notices what must not be; nothing here is about time."""

from __future__ import annotations

from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from soak import __main__ as program
from soak.judge import Call, Json, Judge, Order, Tolerance, growth
from soak.wire import Event, read_event


def result(text: str) -> Json:
    """A result with this text in it."""
    return {"jsonrpc": "2.0", "id": "c.1", "result": {"content": [{"type": "text", "text": text}]}}


def error(code: int, **data: object) -> Json:
    """An error of the proxy's."""
    about = {"source": "proxy", **data}
    return {"jsonrpc": "2.0", "id": "c.1", "error": {"code": code, "message": "no", "data": about}}


class Calls(SynchronousTestCase):
    """One call each, and what may come of it."""

    def setUp(self) -> None:
        self.judge = Judge()
        self.call = self.make("write")

    def make(self, work: str) -> Call:
        call = Call("c", "c.1", work, "c.1", deadline=100.0, sent=90.0)
        self.judge.begin(call)
        return call

    def assert_found(self, *wanted: str) -> None:
        """These are the failures."""
        self.assertEqual(len(self.judge.failures), len(wanted), self.judge.failures)
        for failure, text in zip(self.judge.failures, wanted, strict=True):
            self.assertIn(text, failure)

    def test_right(self) -> None:
        """A call that was carried out once and answered once is right."""
        self.judge.carried_out(["c.1"])
        self.judge.answer(self.call, result("c.1"))
        self.judge.check_results(95.0)
        self.judge.overdue(200.0)
        self.assert_found()
        self.assertEqual(self.judge.outcomes, {"write: result": 1})

    def test_lost(self) -> None:
        """A call without an answer is lost at its deadline, and not before."""
        self.judge.overdue(99.0)
        self.assert_found()
        self.judge.overdue(101.0)
        self.assert_found("no answer")
        self.assertEqual(self.judge.lost, 1)

    def test_doubled(self) -> None:
        """A second answer is one too many, also after an error."""
        self.judge.answer(self.call, error(-31002, delivered="maybe", retrySafe=False))
        self.judge.answer(self.call, result("c.1"))
        self.assert_found("answered twice")
        self.assertEqual(self.judge.doubled, 1)

    def test_foreign_text(self) -> None:
        """Another's text in an answer is noticed."""
        self.judge.answer(self.call, result("d.1"))
        self.assert_found("the wrong result")

    def test_carried_out_twice(self) -> None:
        """What the ledger has twice is noticed, even if its client was told that the outcome is unknown."""
        self.judge.answer(self.call, error(-31002, delivered="maybe", retrySafe=False))
        self.judge.carried_out(["c.1", "d.1"])
        self.assert_found()
        self.judge.carried_out(["c.1"])
        self.assert_found("c.1 was carried out twice")

    def test_result_of_nothing(self) -> None:
        """A result of a call that was never carried out is noticed when the ledger has been read."""
        self.judge.answer(self.call, result("c.1"))
        self.judge.check_results(89.0)
        self.assert_found()
        self.judge.check_results(91.0)
        self.assert_found("carried out 0 times")

    def test_delivered_after_all(self) -> None:
        """Who says that a call was not delivered must not deliver it, before or after."""
        self.judge.answer(self.call, error(-31001, delivered="no", retrySafe=True))
        self.judge.carried_out(["c.1"])
        self.assert_found("said not to be delivered")

    def test_delivered_before(self) -> None:
        """The same when it is known at the answer."""
        self.judge.carried_out(["c.1"])
        self.judge.answer(self.call, error(-31001, delivered="no", retrySafe=True))
        self.assert_found("said not to be delivered")

    def test_lies_about_repeating(self) -> None:
        """A change that may have been carried out is not safe to repeat; a read is."""
        self.judge.answer(self.call, error(-31002, delivered="maybe", retrySafe=True))
        self.assert_found("retrySafe")
        self.judge.answer(self.make("read"), error(-31002, delivered="maybe", retrySafe=True))
        self.assert_found("retrySafe")

    def test_other_errors(self) -> None:
        """An error that the backend never gives, or one of a code that should not be, is noticed."""
        self.judge.answer(self.call, error(-32603))
        self.assert_found("nobody should get")

    def test_left(self) -> None:
        """A call that its client has left needs no answer, but counts as carried out once at most."""
        self.judge.leave(self.call)
        self.judge.overdue(200.0)
        self.judge.carried_out(["c.1"])
        self.assert_found()

    def test_progress(self) -> None:
        """Progress grows, is the call's own, and does not come after the answer; the proxy's own comes first."""
        self.judge.progressed(self.call, 0.000001, "the backend is away")
        self.judge.progressed(self.call, 1, "c.1 1")
        self.judge.progressed(self.call, 2, "c.1 2")
        self.assert_found()
        self.judge.progressed(self.call, 2, "c.1 2")
        self.judge.progressed(self.call, 3, "d.1 3")
        self.judge.answer(self.call, result("c.1"))
        self.judge.progressed(self.call, 4, "c.1 4")
        self.assert_found("progress 2 after 2", "progress of another", "after the answer")

    def test_progress_within_a_longer_name(self) -> None:
        """The call c.10 is another than c.1."""
        self.judge.progressed(self.call, 1, "c.10 1")
        self.assert_found("progress of another")


class Events(SynchronousTestCase):
    """What one session is told."""

    def setUp(self) -> None:
        self.judge = Judge()
        self.order = Order(self.judge, "c")

    def tell(self, *texts: str) -> list[str]:
        """Tell these, and return the failures."""
        for text in texts:
            self.order.told(text)
        return self.judge.failures

    def test_right(self) -> None:
        """The next backend counts from 1 again."""
        self.assertEqual(self.tell("c a 1", "c a 2", "c b 1"), [])

    def test_wrong(self) -> None:
        """Twice, a gap, out of order, another's, and one of a backend that has gone."""
        for texts in (
            ("c a 1", "c a 1"),
            ("c a 1", "c a 3"),
            ("c a 2",),
            ("d a 1",),
            ("c a 1", "c b 1", "c a 2"),
        ):
            self.setUp()
            self.assertEqual(len(self.tell(*texts)), 1, texts)

    def test_several_streams(self) -> None:
        """On several streams only the order on each of them counts, and that nothing comes twice."""
        self.order = Order(self.judge, "c", is_strict=False)
        for text, stream in (("c a 1", "x"), ("c a 4", "x"), ("c a 2", "y"), ("c b 1", "x"), ("c a 5", "y")):
            self.order.told(text, stream)
        self.assertEqual(self.judge.failures, [])
        self.order.told("c a 4", "z")
        self.order.told("c a 3", "y")
        self.assertEqual(len(self.judge.failures), 2)

    def test_ids(self) -> None:
        """No id comes twice; events without one say nothing."""
        for id in ("1", "2", "", ""):
            self.order.event(id)
        self.assertEqual(self.judge.doubled, 0)
        self.order.event("1")
        self.assertEqual(self.judge.doubled, 1)

    def test_reading(self) -> None:
        """Events have ids, with and without data; comments are none."""
        self.assertEqual(read_event("event: message\nid: 7\ndata: {}"), Event("7", "message", "{}"))
        self.assertEqual(read_event("retry: 1000\nid: 8\ndata"), Event("8", "message", ""))
        self.assertIsNone(read_event(": keepalive"))


class Growth(SynchronousTestCase):
    def found(self, values: list[float]) -> list[str]:
        return growth([{"fds": value} for value in values], {"fds": Tolerance(0.1, 5)})

    def test_growth(self) -> None:
        """A steady rise is growth; peaks and a fall are not."""
        self.assertEqual(self.found([50.0 + each for each in range(30)]), ["fds grew from 54.5 to 74.5"])
        self.assertEqual(self.found([50.0, 52.0, 900.0] * 10), [])
        self.assertEqual(self.found([50.0 - each for each in range(30)]), [])

    def test_tolerance(self) -> None:
        """A tenth and five more are allowed here."""
        self.assertEqual(self.found([100.0] * 20 + [115.0] * 10), [])
        self.assertEqual(len(self.found([100.0] * 20 + [116.0] * 10)), 1)


class Page(SynchronousTestCase):
    def test_written(self) -> None:
        """The figures of each way to run it have a place of their own on the page, where they replace the last ones."""
        page = Path(self.mktemp())
        page.write_text(program.PAGE.read_text("utf-8"), "utf-8")
        self.patch(program, "PAGE", page)
        for figures, backends in (("old", ["dual"]), ("one", ["dual"]), ("several", ["dual", "sse"])):
            program.write(f"figures of {figures}", backends)
        text = page.read_text("utf-8")
        self.assertEqual([text.count(f"figures of {name}") for name in ("old", "one", "several")], [0, 1, 1])
        self.assertLess(text.index("figures of one"), text.index("figures of several"))
