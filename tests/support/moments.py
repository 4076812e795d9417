# SPDX-License-Identifier: GPL-2.0-or-later
"""Bring a manager and its guest to a random moment of a phase, where something then happens."""

from __future__ import annotations

import enum
import time
from typing import TYPE_CHECKING

from tests.support.forked import ForkedManager, Phase
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange

if TYPE_CHECKING:
    import random

    from uffdballoon.lab.microguest import PendingAnswer
    from uffdballoon.lab.qemu import Qemu

OWNED = GpaRange.of(32 << 20, 2 << 20)
SEED = 7
"""Of the pattern that is in OWNED."""
DIRECT = GpaRange.of(40 << 20, 4 << 20)
"""What the operator inflates."""
OWN = GpaRange.of(48 << 20, 1 << 20)
"""What the guest gives up by its own balloon."""


class Moment(enum.Enum):
    """A phase, and how long it takes about: what happens, happens within that time."""

    ATTACH = 30
    INJECT = 3
    ARM = 2
    ZAP = 4
    TRAP = 5
    FREEZE = 6
    FOLLOW = 20
    DETACH = 8


_POLICIES = {Moment.FREEZE: "freeze"}
_TOUCHED = f"{DIRECT.start:x} {DIRECT.size_bytes:x} {PAGE_BYTES:x} w"
_GIVEN = f"{OWN.start:x} {OWN.size_bytes // PAGE_BYTES:x} {PAGE_BYTES:x}"


def start_manager(
    qemu: Qemu, moment: Moment, chance: random.Random, *more: object
) -> ForkedManager:
    """Attach, with a monitor or without, in either way."""
    monitor = ["--qmp", qemu.qmp_path] if chance.random() < 0.5 else []
    method = chance.choice(["direct", "passed"])
    policy = _POLICIES.get(moment, "zero-read,observe")
    monitor += [] if monitor else ["--without-monitor"]
    return ForkedManager(qemu.pid, *monitor, "--uffd", method, "--policy", policy, *more)


def bring_to(
    manager: ForkedManager, qemu: Qemu, moment: Moment, chance: random.Random
) -> PendingAnswer | None:
    """Return within a phase, with what the guest is doing meanwhile."""
    pending = None
    if moment is Moment.ATTACH:
        manager.reach(Phase.ATTACH)
    elif moment is Moment.INJECT:
        manager.reach(Phase.INJECT)
    else:
        assert manager.reach(Phase.SERVE), manager.said
        pending = _go_on(manager, qemu, moment)
    time.sleep(chance.uniform(0, moment.value / 1000))
    return pending


def _go_on(manager: ForkedManager, qemu: Qemu, moment: Moment) -> PendingAnswer | None:
    if moment is Moment.FOLLOW:
        return qemu.guest.start(f"balloon inflate {_GIVEN}")
    if moment in {Moment.ARM, Moment.ZAP}:
        manager.ask_to_inflate(DIRECT).close()  # a client that does not wait for its answer
        manager.reach(Phase.ARM if moment is Moment.ARM else Phase.ZAP)
        return None
    manager.inflate(DIRECT)
    if moment is Moment.DETACH:
        manager.ask("detach").close()
        manager.reach(Phase.DETACH)
        return None
    return qemu.guest.start(f"touch {_TOUCHED}")


def take_back(qemu: Qemu, moment: Moment) -> None:
    """Have the guest as it was before the moment."""
    if moment is Moment.FOLLOW:
        qemu.guest.command(f"balloon deflate {_GIVEN}")
