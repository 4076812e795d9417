# SPDX-License-Identifier: GPL-2.0-or-later
"""The scenarios by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.errors import UffdballoonError, UsageError
from uffdballoon.lab.qemu_options import Accel
from uffdballoon.scenarios.confined import confined_qemu
from uffdballoon.scenarios.drivers import guest_oom, honest_guest, kexec
from uffdballoon.scenarios.endings import manager_dies
from uffdballoon.scenarios.files import hugetlbfs_2m, tmpfs_shared
from uffdballoon.scenarios.fragmentation import thp_fragmentation_limit
from uffdballoon.scenarios.huge_balloon import hugetlbfs_balloon
from uffdballoon.scenarios.huge_pages import khugepaged_reinflation
from uffdballoon.scenarios.limits import (
    greedy_guest_at_its_limit,
    limit_by_reporting,
    limit_by_reporting_hugetlbfs,
)
from uffdballoon.scenarios.nodes import two_node
from uffdballoon.scenarios.performance import keep_guest_performance
from uffdballoon.scenarios.pressure import greedy_guest, two_vcpus_one_page, violation_storm
from uffdballoon.scenarios.promises import (
    dishonest_guest,
    migrate_enforced,
    reboot_while_ballooned,
)
from uffdballoon.scenarios.stage import BrokenPromiseError, Stage
from uffdballoon.scenarios.touches import read_then_write, touch_after_inflate

if TYPE_CHECKING:
    from collections.abc import Callable


_MICROGUEST_NEEDS = ("root", "userfaultfd", "qemu-system-x86_64")
_LINUX_NEEDS = (*_MICROGUEST_NEEDS, "Debian's kernel and busybox, by apt-get download")


@dataclass(frozen=True, slots=True)
class Scenario:
    """``play`` raises BrokenPromiseError when the policy does not keep what it promises."""

    name: str
    summary: str
    play: Callable[[Stage], None]
    needs: tuple[str, ...] = _MICROGUEST_NEEDS
    accel: Accel | None = None  # that it is run under when nobody says; None: KVM where there is


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
        "100,000 violations in a row: all are counted, and the manager stays small",
        violation_storm,
    ),
    Scenario(
        "greedy-guest",
        "under `cap` a guest takes back what it may, and no more",
        greedy_guest,
    ),
    Scenario(
        "greedy-guest-limit",
        "a guest that wants more than its limit is slowed down, and not killed",
        greedy_guest_at_its_limit,
    ),
    Scenario(
        "two-vcpus-one-page",
        "two vCPUs touch the same page at the same moment, 10,000 times",
        two_vcpus_one_page,
    ),
    Scenario(
        "dishonest-guest",
        "a guest touches 1,000 pages that its own balloon gave up, under `told` and `cap`",
        dishonest_guest,
    ),
    Scenario(
        "reboot-while-ballooned",
        "a reset empties the balloon, and the contract holds again afterwards",
        reboot_while_ballooned,
    ),
    Scenario(
        "migrate-enforced",
        "an enforced guest is migrated to a file and started again from it",
        migrate_enforced,
    ),
    Scenario(
        "honest-guest",
        "a busy Linux guest inflates and deflates by half of its memory, twenty times",
        honest_guest,
        _LINUX_NEEDS,
        Accel.TCG,
    ),
    Scenario(
        "guest-oom",
        "a ballooned Linux guest runs out of memory, with and without deflate-on-oom",
        guest_oom,
        _LINUX_NEEDS,
        Accel.TCG,
    ),
    Scenario(
        "kexec",
        "a Linux guest starts another kernel, which knows nothing of the balloon",
        kexec,
        _LINUX_NEEDS,
        Accel.TCG,
    ),
    Scenario(
        "limit-by-reporting",
        "a Linux guest that only reports what is free is held to a limit, and given more",
        limit_by_reporting,
        _LINUX_NEEDS,
        Accel.TCG,
    ),
    Scenario(
        "limit-by-reporting-hugetlbfs",
        "the same on huge pages, which go back to the pool",
        limit_by_reporting_hugetlbfs,
        (*_LINUX_NEEDS, "huge pages of 2 MiB"),
        Accel.TCG,
    ),
    Scenario(
        "khugepaged-reinflation",
        "khugepaged fills a balloon of 4k pieces again, and not the one that is held to it",
        khugepaged_reinflation,
        (*_MICROGUEST_NEEDS, "transparent huge pages"),
    ),
    Scenario(
        "thp-fragmentation-limit",
        "a guest whose balloon breaks more huge pages than it may is stopped there",
        thp_fragmentation_limit,
    ),
    Scenario(
        "keep-guest-performance",
        "the reach of a fragmented Linux guest's balloon, and its speed, with the flag and without",
        keep_guest_performance,
        (*_LINUX_NEEDS, "transparent huge pages"),
        Accel.TCG,
    ),
    Scenario(
        "two-node",
        "memory of two NUMA nodes of a guest is taken, counted and given back for each",
        two_node,
    ),
    Scenario(
        "hugetlbfs-2m",
        "huge pages return to the pool; with the pool empty a touch waits, and the guest lives",
        hugetlbfs_2m,
        (*_MICROGUEST_NEEDS, "huge pages of 2 MiB"),
    ),
    Scenario(
        "hugetlbfs-balloon",
        "a Linux guest's driver returns huge pages to the pool, where QEMU alone returns none",
        hugetlbfs_balloon,
        (*_LINUX_NEEDS, "huge pages of 2 MiB"),
        Accel.TCG,
    ),
    Scenario(
        "tmpfs-shared",
        "holes in shared memory are trapped, and so is what another process writes there",
        tmpfs_shared,
    ),
    Scenario(
        "confined-qemu",
        "a QEMU without privileges, in namespaces and a cgroup of its own, is enforced",
        confined_qemu,
    ),
    Scenario(
        "manager-dies",
        "the manager is killed: the guest goes on, or waits for the next manager",
        manager_dies,
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


def play(
    scenario: Scenario, accel: Accel, say: Callable[[str], None], *, quick: bool = False
) -> str | None:
    """Run a scenario; return why it failed, or None."""
    try:
        with Stage(say, accel, quick=quick) as stage:
            scenario.play(stage)
    except BrokenPromiseError as broken:
        return str(broken)
    except UffdballoonError as error:
        return str(error)
    return None
