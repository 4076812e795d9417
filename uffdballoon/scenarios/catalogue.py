# SPDX-License-Identifier: GPL-2.0-or-later
"""The scenarios by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.errors import UffdballoonError, UsageError
from uffdballoon.scenarios.pressure import greedy_guest, two_vcpus_one_page, violation_storm
from uffdballoon.scenarios.stage import BrokenPromiseError, Stage
from uffdballoon.scenarios.touches import read_then_write, touch_after_inflate

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.lab.qemu import Accel

_MICROGUEST_NEEDS = ("root", "userfaultfd", "qemu-system-x86_64")


@dataclass(frozen=True, slots=True)
class Scenario:
    """``play`` raises BrokenPromiseError when the policy does not keep what it promises."""

    name: str
    summary: str
    play: Callable[[Stage], None]
    needs: tuple[str, ...] = _MICROGUEST_NEEDS


SCENARIOS = (
    Scenario(
        "touch-after-inflate",
        "a guest touches what it gave up, under each rung of the ladder",
        touch_after_inflate,
    ),
    Scenario(
        "read-then-write",
        "pages that gave zeros to a reader are trapped when they are written to",
        read_then_write,
    ),
    Scenario(
        "violation-storm",
        "100,000 violations in a row: none is lost, and the manager stays small",
        violation_storm,
    ),
    Scenario(
        "greedy-guest",
        "under `cap` a guest takes back what it may, and no more",
        greedy_guest,
    ),
    Scenario(
        "two-vcpus-one-page",
        "two vCPUs touch the same page at the same moment, 10,000 times",
        two_vcpus_one_page,
    ),
)


def find(name: str) -> Scenario:
    """Find a scenario; raise UsageError when there is none of that name."""
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    raise UsageError(
        f"there is no scenario {name!r}",
        why=f"there are {', '.join(s.name for s in SCENARIOS)}",
        hint="see `uffdballoon scenario list`",
    )


def play(scenario: Scenario, accel: Accel, say: Callable[[str], None]) -> str | None:
    """Run a scenario; return why it failed, or None."""
    try:
        with Stage(say, accel) as stage:
            scenario.play(stage)
    except BrokenPromiseError as broken:
        return str(broken)
    except UffdballoonError as error:
        return str(error)
    return None
