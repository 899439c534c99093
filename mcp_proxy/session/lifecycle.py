"""The lifecycle of one session: when it has a link to the backend, and what happens when it has none.

The table below is the whole policy; what an output does is told by ``Effects``, what an input means by
``Lifecycle``. Every input is defined in every state, so callers never ask for the state before they speak.
"""

from __future__ import annotations

from enum import Enum
from typing import Protocol

from automat import TypeMachineBuilder


class Phase(Enum):
    """The states, as the rest of the program sees them."""

    DORMANT = "dormant"  # no client, no link; kept for a client that comes back
    DOWN = "down"  # no link; waiting for its turn to connect
    CONNECTING = "connecting"  # a link is being opened
    HANDSHAKING = "handshaking"  # the link is open, the session is being restored on it
    LIVE = "live"  # traffic flows
    DOUBTED = "doubted"  # the backend may be about to stop: nothing new is sent until that is known
    DRAINING = "draining"  # the backend wants to stop: nothing new is sent, answers are awaited
    PARKED = "parked"  # the budget is spent: nothing waits any more, but the backend is still watched
    CLOSED = "closed"  # over for good


class Effects(Protocol):
    """What the machine makes happen; the session does it."""

    def entered(self, phase: Phase) -> None:
        """The machine is in this phase now."""

    def seek(self) -> None:
        """Ask for a turn to connect."""

    def seek_anew(self) -> None:
        """Ask for a turn although there was reason not to."""

    def withdraw(self) -> None:
        """Ask no longer."""

    def open_link(self) -> None:
        """Open a link: the next generation begins."""

    def close_link(self) -> None:
        """Close the link, if there is one."""

    def end_link(self) -> None:
        """Close the link, if there is one; the client needs the backend's session no longer."""

    def restore(self) -> None:
        """Replay what the backend must know of the session."""

    def release(self) -> None:
        """The link is live: send what was held."""

    def settle(self) -> None:
        """The link is gone: decide what becomes of every message that was on it."""

    def drain_if_idle(self) -> None:
        """Give up the link as soon as nothing is awaited on it."""

    def answer_held(self) -> None:
        """Nothing will be delivered soon: answer whoever waits."""

    def dispose(self) -> None:
        """Free everything."""


class Lifecycle(Protocol):
    """The inputs."""

    def wake(self) -> None:
        """A client is here and needs the backend."""

    def turn(self) -> None:
        """The backend may be tried now."""

    def opened_new(self) -> None:
        """The link is open and there is nothing to restore: the client will initialize by itself."""

    def opened_known(self) -> None:
        """The link is open and the session must be restored on it."""

    def known(self) -> None:
        """What a live link needs was learned from elsewhere: restore it there."""

    def restored(self) -> None:
        """The backend knows the session again."""

    def lost(self) -> None:
        """The link broke, or could not be opened."""

    def give_up(self) -> None:
        """The budget of the outage is spent."""

    def doubted(self) -> None:
        """The backend has closed an idle connection, which may mean nothing, or that it is about to stop."""

    def ending(self) -> None:
        """The backend answers nothing new while the link lives: it waits for its streams to end."""

    def not_ending(self) -> None:
        """The backend answers, the link never broke."""

    def drained(self) -> None:
        """Nothing is awaited on the draining link any more."""

    def client_gone(self) -> None:
        """The client has been away for so long that the link is not worth keeping."""

    def close(self) -> None:
        """The session is over."""


def _build() -> TypeMachineBuilder[Lifecycle, Effects]:
    builder = TypeMachineBuilder(Lifecycle, Effects)  # type: ignore[type-abstract]
    state = {phase: builder.state(phase.value) for phase in Phase}
    inputs = {
        name: getattr(Lifecycle, name)
        for name in vars(Lifecycle)
        if not name.startswith("_") and callable(getattr(Lifecycle, name))
    }
    for phase in Phase:
        for name, method in inputs.items():
            target, *effects = TABLE.get((phase, name), (phase,))
            transition = state[phase].upon(method).to(state[target])
            if target is phase and not effects:
                transition.returns(None)
            else:
                transition(_output(name, target, tuple(effects)))
    return builder


def _output(name: str, target: Phase, effects: tuple[str, ...]):  # type: ignore[no-untyped-def]
    def output(lifecycle: Lifecycle, core: Effects) -> None:
        core.entered(target)
        for effect in effects:
            getattr(core, effect)()

    output.__name__ = name
    return output


_P = Phase

#: (state, input) -> next state and what happens, in order. A pair that is not here changes nothing.
TABLE: dict[tuple[Phase, str], tuple] = {  # type: ignore[type-arg]
    (_P.DORMANT, "wake"): (_P.DOWN, "seek"),
    (_P.DORMANT, "close"): (_P.CLOSED, "dispose"),
    #
    (_P.DOWN, "turn"): (_P.CONNECTING, "open_link"),
    (_P.DOWN, "give_up"): (_P.PARKED, "answer_held"),
    (_P.DOWN, "client_gone"): (_P.DORMANT, "withdraw"),
    (_P.DOWN, "close"): (_P.CLOSED, "withdraw", "dispose"),
    #
    (_P.CONNECTING, "opened_new"): (_P.LIVE, "release"),
    (_P.CONNECTING, "opened_known"): (_P.HANDSHAKING, "restore"),
    (_P.CONNECTING, "give_up"): (_P.CONNECTING, "answer_held"),
    (_P.CONNECTING, "lost"): (_P.DOWN, "close_link", "settle", "seek"),
    (_P.CONNECTING, "client_gone"): (_P.DORMANT, "withdraw", "end_link", "settle"),
    (_P.CONNECTING, "close"): (_P.CLOSED, "withdraw", "end_link", "settle", "dispose"),
    #
    (_P.HANDSHAKING, "restored"): (_P.LIVE, "release"),
    (_P.HANDSHAKING, "give_up"): (_P.HANDSHAKING, "answer_held"),
    (_P.HANDSHAKING, "lost"): (_P.DOWN, "close_link", "settle", "seek"),
    (_P.HANDSHAKING, "client_gone"): (_P.DORMANT, "withdraw", "end_link", "settle"),
    (_P.HANDSHAKING, "close"): (_P.CLOSED, "withdraw", "end_link", "settle", "dispose"),
    #
    (_P.LIVE, "known"): (_P.HANDSHAKING, "restore"),
    (_P.LIVE, "lost"): (_P.DOWN, "close_link", "settle", "seek"),
    (_P.LIVE, "doubted"): (_P.DOUBTED,),
    (_P.LIVE, "client_gone"): (_P.DORMANT, "withdraw", "end_link", "settle"),
    (_P.LIVE, "close"): (_P.CLOSED, "withdraw", "end_link", "settle", "dispose"),
    #
    (_P.DOUBTED, "ending"): (_P.DRAINING, "drain_if_idle"),
    (_P.DOUBTED, "not_ending"): (_P.LIVE, "release"),
    (_P.DOUBTED, "known"): (_P.HANDSHAKING, "restore"),
    (_P.DOUBTED, "lost"): (_P.DOWN, "close_link", "settle", "seek"),
    (_P.DOUBTED, "client_gone"): (_P.DORMANT, "withdraw", "end_link", "settle"),
    (_P.DOUBTED, "close"): (_P.CLOSED, "withdraw", "end_link", "settle", "dispose"),
    #
    (_P.DRAINING, "ending"): (_P.DRAINING, "drain_if_idle"),
    (_P.DRAINING, "not_ending"): (_P.LIVE, "release"),
    (_P.DRAINING, "known"): (_P.HANDSHAKING, "restore"),
    (_P.DRAINING, "drained"): (_P.DOWN, "close_link", "settle", "seek"),
    (_P.DRAINING, "lost"): (_P.DOWN, "close_link", "settle", "seek"),
    (_P.DRAINING, "client_gone"): (_P.DORMANT, "withdraw", "end_link", "settle"),
    (_P.DRAINING, "close"): (_P.CLOSED, "withdraw", "end_link", "settle", "dispose"),
    #
    (_P.PARKED, "wake"): (_P.DOWN, "seek_anew"),
    (_P.PARKED, "turn"): (_P.CONNECTING, "open_link"),
    (_P.PARKED, "client_gone"): (_P.DORMANT, "withdraw"),
    (_P.PARKED, "close"): (_P.CLOSED, "withdraw", "dispose"),
}

#: Makes a machine: ``machine(effects)``; it starts dormant.
machine = _build().build()
