"""The lifecycle: what each input does in each state, held against a table of its own."""

from __future__ import annotations

from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from mcp_proxy.session.lifecycle import Effects, Lifecycle, Phase, machine

INPUTS = (
    *("wake", "turn", "opened_new", "opened_known", "known", "restored", "lost", "give_up", "doubted", "ending"),
    *("not_ending", "drained", "client_gone", "close"),
)

#: How to get into each state.
PATHS: dict[Phase, tuple[str, ...]] = {
    Phase.DORMANT: (),
    Phase.DOWN: ("wake",),
    Phase.CONNECTING: ("wake", "turn"),
    Phase.HANDSHAKING: ("wake", "turn", "opened_known"),
    Phase.LIVE: ("wake", "turn", "opened_new"),
    Phase.DOUBTED: ("wake", "turn", "opened_new", "doubted"),
    Phase.DRAINING: ("wake", "turn", "opened_new", "doubted", "ending"),
    Phase.PARKED: ("wake", "give_up"),
    Phase.CLOSED: ("close",),
}

_RECONNECT = "down close_link settle seek"
_SLEEP = "dormant withdraw end_link settle"
_END = "closed withdraw end_link settle dispose"

#: What follows: the next state, then what happens. An input that is not here changes nothing.
EXPECTED: dict[str, dict[str, str]] = {
    "dormant": {"wake": "down seek", "close": "closed dispose"},
    "down": {
        "turn": "connecting open_link",
        "give_up": "parked answer_held",
        "client_gone": "dormant withdraw",
        "close": "closed withdraw dispose",
    },
    "connecting": {
        "opened_new": "live release",
        "opened_known": "handshaking restore",
        "give_up": "connecting answer_held",
        "lost": _RECONNECT,
        "client_gone": _SLEEP,
        "close": _END,
    },
    "handshaking": {
        "restored": "live release",
        "give_up": "handshaking answer_held",
        "lost": _RECONNECT,
        "client_gone": _SLEEP,
        "close": _END,
    },
    "live": {
        "known": "handshaking restore",
        "lost": _RECONNECT,
        "doubted": "doubted",
        "client_gone": _SLEEP,
        "close": _END,
    },
    "doubted": {
        "ending": "draining drain_if_idle",
        "not_ending": "live release",
        "known": "handshaking restore",
        "lost": _RECONNECT,
        "client_gone": _SLEEP,
        "close": _END,
    },
    "draining": {
        "ending": "draining drain_if_idle",
        "not_ending": "live release",
        "known": "handshaking restore",
        "drained": _RECONNECT,
        "lost": _RECONNECT,
        "client_gone": _SLEEP,
        "close": _END,
    },
    "parked": {
        "wake": "down seek_anew",
        "turn": "connecting open_link",
        "client_gone": "dormant withdraw",
        "close": "closed withdraw dispose",
    },
    "closed": {},
}


class Recorder:
    """Effects that are written down, and may have effects of their own."""

    def __init__(self) -> None:
        self.phase = Phase.DORMANT
        self.happened: list[str] = []
        self.reactions: dict[str, Callable[[], None]] = {}

    def _record(self, what: str) -> None:
        self.happened.append(what)
        reaction = self.reactions.pop(what, None)
        if reaction is not None:
            reaction()

    def entered(self, phase: Phase) -> None:
        """Written down as the phase."""
        self.phase = phase
        self._record(phase.value)

    def seek(self) -> None:
        """Written down."""
        self._record("seek")

    def seek_anew(self) -> None:
        """Written down."""
        self._record("seek_anew")

    def withdraw(self) -> None:
        """Written down."""
        self._record("withdraw")

    def open_link(self) -> None:
        """Written down."""
        self._record("open_link")

    def close_link(self) -> None:
        """Written down."""
        self._record("close_link")

    def end_link(self) -> None:
        """Written down."""
        self._record("end_link")

    def restore(self) -> None:
        """Written down."""
        self._record("restore")

    def release(self) -> None:
        """Written down."""
        self._record("release")

    def settle(self) -> None:
        """Written down."""
        self._record("settle")

    def drain_if_idle(self) -> None:
        """Written down."""
        self._record("drain_if_idle")

    def answer_held(self) -> None:
        """Written down."""
        self._record("answer_held")

    def dispose(self) -> None:
        """Written down."""
        self._record("dispose")


def made(phase: Phase) -> tuple[Lifecycle, Recorder]:
    """A machine in this state, and its effects from now on."""
    recorder = Recorder()
    lifecycle: Lifecycle = machine(recorder)
    for name in PATHS[phase]:
        getattr(lifecycle, name)()
    recorder.happened.clear()
    return lifecycle, recorder


class Table(SynchronousTestCase):
    def test_complete(self) -> None:
        """The tests know every state, every input and every effect."""
        self.assertEqual({phase.value for phase in Phase}, set(EXPECTED))
        self.assertEqual({name for name in vars(Lifecycle) if not name.startswith("_")}, set(INPUTS))
        effects = {name for name in vars(Effects) if not name.startswith("_")} - {"entered"}
        used = {effect for row in EXPECTED.values() for cell in row.values() for effect in cell.split()[1:]}
        self.assertEqual(effects, used)

    def test_paths(self) -> None:
        """Each state is reached the way that the tests think."""
        for phase in Phase:
            self.assertIs(made(phase)[1].phase, phase)

    def test_every_pair(self) -> None:
        """Every input in every state leads to the state, and makes the effects happen in the order, of the table."""
        for phase in Phase:
            for name in INPUTS:
                lifecycle, recorder = made(phase)
                self.assertIsNone(getattr(lifecycle, name)(), "an input tells nothing")
                wanted = EXPECTED[phase.value].get(name, "")
                self.assertEqual(" ".join(recorder.happened), wanted, f"{name} in {phase}")
                self.assertEqual(recorder.phase.value, (wanted or phase.value).split()[0], f"{name} in {phase}")

    def test_state_is_what_was_told(self) -> None:
        """After every input in every state the machine behaves as in the state that it told."""
        for phase in Phase:
            for first in INPUTS:
                for second in INPUTS:
                    lifecycle, recorder = made(phase)
                    getattr(lifecycle, first)()
                    row = EXPECTED[recorder.phase.value]
                    recorder.happened.clear()
                    getattr(lifecycle, second)()
                    self.assertEqual(" ".join(recorder.happened), row.get(second, ""), f"{first}, {second} in {phase}")

    def test_closed(self) -> None:
        """Every state can be closed, disposes once, and nothing happens ever after."""
        for phase in Phase:
            lifecycle, recorder = made(phase)
            lifecycle.close()
            self.assertEqual(recorder.happened.count("dispose"), int(phase is not Phase.CLOSED), phase)
            recorder.happened.clear()
            for name in INPUTS * 2:
                getattr(lifecycle, name)()
            self.assertEqual((recorder.happened, recorder.phase), ([], Phase.CLOSED), phase)

    def test_no_link_without_close(self) -> None:
        """A state with a link is left for one without only by closing the link and settling what was on it."""
        linked = {"connecting", "handshaking", "live", "doubted", "draining"}
        for phase, row in EXPECTED.items():
            for cell in row.values():
                target, *effects = cell.split()
                if phase in linked and target not in linked:
                    self.assertRegex(" ".join(effects), "(close|end)_link settle")


class Reentrant(SynchronousTestCase):
    def test_effect_gives_input(self) -> None:
        """An effect may give the next input: a backend that grants a turn, opens and loses the link at once."""
        lifecycle, recorder = made(Phase.DORMANT)
        recorder.reactions = {"seek": lifecycle.turn, "open_link": lifecycle.opened_new, "release": lifecycle.lost}
        lifecycle.wake()
        self.assertEqual(
            " ".join(recorder.happened),
            "down seek connecting open_link live release down close_link settle seek",
        )
        self.assertIs(recorder.phase, Phase.DOWN)
        lifecycle.turn()
        self.assertIs(recorder.phase, Phase.CONNECTING)

    def test_close_from_within(self) -> None:
        """A session may be closed by any effect of any input; the rest of that input happens, and nothing after."""
        for phase in Phase:
            for name, cell in EXPECTED[phase.value].items():
                for effect in cell.split()[1:]:
                    lifecycle, recorder = made(phase)
                    recorder.reactions = {effect: lifecycle.close}
                    getattr(lifecycle, name)()
                    self.assertIs(recorder.phase, Phase.CLOSED, (phase, name, effect))
                    self.assertEqual(recorder.happened.count("dispose"), 1, (phase, name, effect))
                    recorder.happened.clear()
                    lifecycle.wake()
                    self.assertEqual(recorder.happened, [])

    def test_input_on_entry(self) -> None:
        """An input given on entry to a state waits for the rest of what the entry makes happen."""
        lifecycle, recorder = made(Phase.DORMANT)
        recorder.reactions = {"down": lifecycle.give_up}
        lifecycle.wake()
        self.assertIs(recorder.phase, Phase.PARKED)
        self.assertEqual(" ".join(recorder.happened), "down seek parked answer_held")
