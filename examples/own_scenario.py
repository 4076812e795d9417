# SPDX-License-Identifier: GPL-2.0-or-later
"""A scenario of one's own: a guest that takes back a quarter of what it gave up.

Run it as root: .venv/bin/python -m examples.own_scenario
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from uffdballoon.model.addresses import GpaRange
from uffdballoon.model.terms import ContractKind, Terms
from uffdballoon.model.touch import Access
from uffdballoon.scenarios.catalogue import Scenario, play
from uffdballoon.scenarios.stage import BALLOON, default_accel

if TYPE_CHECKING:
    from uffdballoon.scenarios.stage import Stage


def modest_guest(stage: Stage) -> None:
    """Stay within the contract: nothing is held, nothing is called a violation."""
    quarter = GpaRange.of(BALLOON.start, BALLOON.size_bytes // 4)
    terms = Terms(kind=ContractKind.CAP, floor_bytes=BALLOON.size_bytes // 2)
    qemu = stage.start()
    with stage.attach(qemu, "kill", terms) as session:
        stage.inflate(session)
        qemu.guest.touch(quarter, Access.WRITE)
        stage.guest("took a quarter of it back")
        touches = session.status().touches
        stage.promise("all of it was granted", holds=touches.violations == 0)
    stage.check_owned(qemu.guest)


def main() -> None:
    scenario = Scenario("modest-guest", "a guest that keeps its word", modest_guest)
    why = play(scenario, default_accel(), print)
    if why:
        sys.exit(f"FAIL {scenario.name}: {why}")


if __name__ == "__main__":
    main()
