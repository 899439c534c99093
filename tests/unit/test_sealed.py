"""What a client brings back: only what we have made, for whom we have made it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.bridge.sealed import PREFIX, BadState, Seal, is_sealed
from tests.support.fuzz import examples

MANY = examples(100)


class Sealed(SynchronousTestCase):
    @MANY
    @given(st.binary(max_size=32), st.floats(0, 1e12), st.binary(max_size=64))
    def test_opened(self, name: bytes, expires: float, bound: bytes) -> None:
        """What was sealed is opened, and no two seals are alike."""
        seal = Seal()
        text = seal.close(name, expires, bound)
        self.assertEqual(seal.open(text, bound), (name, expires))
        self.assertTrue(is_sealed(text))
        self.assertNotEqual(seal.close(name, expires, bound), text)

    @MANY
    @given(st.data())
    def test_changed(self, data: st.DataObject) -> None:
        """One changed character, another binding or another key opens nothing."""
        seal = Seal()
        text = seal.close(b"name", 1.0, b"bound")
        place = data.draw(st.integers(0, len(text) - 2))  # the last character has bits that say nothing
        other = "A" if text[place] != "A" else "B"
        for changed in (text[:place] + other + text[place + 1 :], text[:place], data.draw(st.text()), PREFIX):
            self.assertRaises(BadState, seal.open, changed, b"bound")
        self.assertRaises(BadState, seal.open, text, b"other")
        self.assertRaises(BadState, Seal().open, text, b"bound")

    def test_strange(self) -> None:
        """Nothing that a client may bring is an error of ours."""
        seal = Seal()
        for text in (PREFIX + "é", PREFIX + "A" * 1000, PREFIX + "====", PREFIX + "AAAA", "", "\udc80"):
            self.assertRaises(BadState, seal.open, text, b"")
        self.assertFalse(is_sealed(None) or is_sealed(7) or is_sealed("eyJ"))
