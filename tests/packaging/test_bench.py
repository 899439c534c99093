"""The parts of the bench agree with each other; nothing here is about time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from bench import load, messages, report, wire
from bench.processes import DIRECT, Rig
from bench.scenarios import SCENARIOS, Outage, Weight

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
WORK = load.Work(events=2, size=10)


def right(number: int) -> list[bytes]:
    """What answers a call of that number."""
    return messages.answers(b"%d" % number, b"t%d" % number, WORK.events, WORK.size)


class Other(load.Work):
    """Work that is answered otherwise than it is asked for."""

    def call(self, number: int) -> bytes:
        return messages.call(number + 1, self.events, self.size)


class StubAndLoad(SynchronousTestCase):
    def start_stub(self) -> Rig:
        """Start a stub without a proxy."""
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        rig = DIRECT.start(folder)
        self.addCleanup(rig.close)
        return rig

    def test_scenarios(self) -> None:
        """In each scenario the stub answers what the load expects, as often as it was asked."""
        for scenario in SCENARIOS:
            run = scenario.prepare(self.start_stub())
            assert run is not None
            run(60.0, 3)
            tally = run(60.0, 40)
            self.assertEqual((tally.mistakes, tally.first_problem), (0, ""), scenario.title)
            self.assertEqual(tally.done, 40 if scenario.unit == "calls" else 40 * 50, scenario.title)
            self.assertEqual(len(tally.latencies), tally.done)

    def test_wrong(self) -> None:
        """Whatever transport they come over, answers to other calls are counted as wrong."""
        rig = self.start_stub()
        for session in (load.Session.open(rig.port), load.SseSession.open(rig.port)):
            tally = load.call_all([session], Other(), 60.0, most=10)
            self.assertEqual((tally.done, tally.wrong), (10, 10))
            self.assertIn("was answered with", tally.first_problem)

    def test_lost(self) -> None:
        """Calls that are never answered are counted as lost."""
        for kind in (load.Session, load.SseSession):
            rig = self.start_stub()
            sessions = [kind.open(rig.port) for _ in range(3)]

            def kill_first(rig: Rig = rig) -> float:
                rig.close()
                return 0.0

            tally = load.call_all(sessions, load.Work(), 60.0, kill_first, most=3)
            self.assertEqual((tally.done, tally.lost), (0, 3))


class Mistakes(SynchronousTestCase):
    def test_right(self) -> None:
        """An answer may be written anew by a proxy, and come with spaces."""
        self.assertEqual(WORK.problem(5, right(5)), "")
        self.assertEqual(WORK.problem(5, [each.replace(b":", b": ") for each in right(5)]), "")

    def test_wrong(self) -> None:
        """Another's answer, a part of one, one too many, and another order are noticed."""
        mine = right(5)
        wrong: list[Sequence[bytes]] = [right(6), mine[:2], [*mine, mine[-1]], [mine[1], mine[0], mine[2]], []]
        wrong.append([*mine[:2], mine[2].replace(b'"id":5', b'"id":6')])
        for found in wrong:
            self.assertNotEqual(WORK.problem(5, found), "", found)


class Wire(SynchronousTestCase):
    def test_any_pieces(self) -> None:
        """A stream says the same in whatever pieces it arrives."""
        events = [wire.chunk(b"id: 1\r\ndata: %b\r\n\r\n" % each) for each in right(5)]
        text = ANSWER + wire.chunk(b": hello\n\n") + b"".join(events) + b"0\r\n\r\n"
        text += b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok"
        for size in range(1, len(text)):
            reader = wire.Reader()
            bodies: list[list[bytes]] = [[]]
            for at in range(0, len(text), size):
                for _, piece, done in reader.feed(text[at : at + size]):
                    bodies[-1].append(piece)
                    if done:
                        bodies.append([])
            first, second, rest = (b"".join(pieces) for pieces in bodies)
            self.assertEqual((wire.Events().feed(first), second, rest), (right(5), b"ok", b""), size)


class Report(SynchronousTestCase):
    def test_tables(self) -> None:
        """Each kind of table has a row for each subject, with ratios to the reference."""
        quick, slow = load.Tally(done=10, latencies=[1], elapsed=1.0, cpu=0.1), load.Tally(elapsed=1.0)
        slow = load.Tally(done=10, latencies=[1], elapsed=1.0, cpu=0.4, lost=3)
        text = report.rounds_table("calls", {"nginx": [quick], "ours": [slow], "other": [quick]}, ["nginx", "other"])
        row = [cell.strip() for cell in text.splitlines()[3].split("|")]
        self.assertEqual([row[1], row[5], row[7], row[8]], ["ours", "40 (4)", "3", "4.00"])
        weights = {"nginx": Weight({0: 0, 100: 100_000, 1000: 1_000_000}), "ours": Weight({0: 0, 100: 200_000})}
        self.assertIn("| 2 (2)", report.weight_table(weights, "nginx"))
        self.assertIn("1 of 2", report.outage_table({"ours": Outage([50.0], refused=1, sessions=2)}))

    def test_page(self) -> None:
        """The tables come between the markers of the page, as often as they are written."""
        page = Path(self.mktemp())
        page.write_text((Path(__file__).parents[2] / "docs/performance.md").read_text("utf-8"), "utf-8")
        report.write(page, "an old table\n")
        report.write(page, "a new table\n")
        text = page.read_text("utf-8")
        self.assertEqual((text.count("old table"), text.count("new table"), text.count("# Performance")), (0, 1, 1))
