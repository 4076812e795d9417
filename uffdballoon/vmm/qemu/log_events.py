# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace events by which QEMU tells its log of each page of the balloon."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from uffdballoon.errors import QmpError, UnsupportedError
from uffdballoon.vmm.qemu.asking import understanding

if TYPE_CHECKING:
    from uffdballoon.vmm.qemu.monitor import Monitor
    from uffdballoon.vmm.qemu.qmp import Pending

# QEMU, hw/virtio/trace-events: a line for each page of 4 KiB that the driver gives up or takes
# back, and one for how many it has by its own word, which it writes after each batch.
EVENTS = ("virtio_balloon_handle_output", "virtio_balloon_set_config")
_QUESTION = "trace-event-get-state"
_LOOKS_S = 1.0
_BACKEND = "trace:"  # util/log.c lists it among the items of `log` with the backend `log` only


class BalloonEvents:
    """Both events, as they were found; begin() switches them on, restore() back."""

    def __init__(self, monitor: Monitor, *, were_left_on: bool) -> None:
        """Look at them and switch nothing.

        ``were_left_on``: a manager that was killed had them on. Raises UnsupportedError for a QEMU
        that has none, or writes none to its log, and QmpError.
        """
        self._monitor = monitor
        states = {name: _state_of(monitor, name) for name in EVENTS}
        if _BACKEND not in monitor.hmp("help log"):
            raise _lacking("its trace events do not go to its log: another backend was built in")
        self._were_on = {
            name: state == "enabled" and not were_left_on for name, state in states.items()
        }

    def begin(self) -> None:
        """Switch them on; raise QmpError."""
        for name in EVENTS:
            self._set(name, enable=True)

    def restore(self) -> None:
        """Have them as they were; raise QmpError."""
        for name, was_on in self._were_on.items():
            self._set(name, enable=was_on)

    def _set(self, name: str, *, enable: bool) -> None:
        self._monitor.execute("trace-event-set-state", {"name": name, "enable": enable})


class EventsWatch:
    """Looks now and then whether they are still on; it waits for nothing."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._asked: list[Pending] = []
        self._ask_at = 0.0

    def are_off(self) -> bool:
        """Tell whether QEMU has answered that one is off, and ask anew where it has answered."""
        if not self._asked:
            self._ask()
        if not self._asked or not all(pending.wait(0.0) for pending in self._asked):
            return False
        answered, self._asked = self._asked, []
        try:
            return any(_state_in(pending.result()) == "disabled" for pending in answered)
        except QmpError:
            return False  # the connection ended

    def _ask(self) -> None:
        if time.monotonic() < self._ask_at:
            return
        self._ask_at = time.monotonic() + _LOOKS_S
        with contextlib.suppress(QmpError):  # as long as there is no connection
            self._asked = [self._monitor.submit(_QUESTION, {"name": name}) for name in EVENTS]


def _state_of(monitor: Monitor, name: str) -> str:
    try:
        told = monitor.execute(_QUESTION, {"name": name})
    except QmpError as error:
        raise _lacking(f"it has no trace event {name}: {error.why}") from error
    state = _state_in(told)
    if state == "unavailable":
        raise _lacking(f"its trace event {name} was not built in")
    return state


def _state_in(told: Any) -> str:  # noqa: ANN401 - QEMU's answer
    with understanding(_QUESTION):
        return str(told[0]["state"])


def _lacking(why: str) -> UnsupportedError:
    return UnsupportedError(
        "observer monitor cannot be had",
        why=why,
        hint="use another observer, or a QEMU that is built with --enable-trace-backends=log",
    )
