"""The table of clients and servers: what it says of results, and which failures are new."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from tests.e2e import matrix

CLIENT, OTHER = list(matrix.CLIENTS)[:2]
BACKEND = next(iter(matrix.BACKENDS))


class Table(SynchronousTestCase):
    def test_counts(self) -> None:
        """A cell tells how many of the things tried work; what was not tried counts nowhere, and is listed with why."""
        cell = {"connect": "ok", "call": "failed: no", "read": f"- {matrix.NOT_OFFERED}"}
        text, failures = matrix.page({(CLIENT, BACKEND): cell})
        self.assertIn(f"| {BACKEND} | 1 of 2 | not tried |", text)
        self.assertEqual(failures, [f"- {CLIENT} with {BACKEND}: call failed: no"])
        self.assertIn(failures[0], text)
        self.assertIn(f"- {BACKEND} ({matrix.NOT_OFFERED}): read", text)

    def test_not_tried(self) -> None:
        """What a server does not do for some clients is told once, what some pair cannot do for each."""
        cell = {"sampling": f"- {matrix.WITHOUT_SESSIONS}", "read": f"- {matrix.WITHOUT_SESSIONS}", "call": "- so"}
        text, _ = matrix.page({(CLIENT, BACKEND): cell, (OTHER, BACKEND): cell})
        self.assertIn(f"- {BACKEND} ({matrix.WITHOUT_SESSIONS}): read, sampling\n", text)
        self.assertIn(f"- call (so): {CLIENT} with {BACKEND}, {OTHER} with {BACKEND}\n", text)

    def test_all_well(self) -> None:
        """Without a failure it says so."""
        text, failures = matrix.page({(CLIENT, BACKEND): {"connect": "ok"}})
        self.assertEqual(failures, [])
        self.assertIn("None.", text)

    def test_new_failures(self) -> None:
        """What has failed before, for whatever reason, is not new; the same of another client is."""
        old, _ = matrix.page({(CLIENT, BACKEND): {"call": "failed: no"}})
        for results, count in (
            ({(CLIENT, BACKEND): {"call": "failed: still not"}}, 0),
            ({(CLIENT, BACKEND): {"read": "failed: no"}}, 1),
            ({(OTHER, BACKEND): {"call": "failed: no"}}, 1),
        ):
            _, failures = matrix.page(results)
            self.assertEqual(len(matrix.new_failures(failures, old)), count)
