# SPDX-License-Identifier: GPL-2.0-or-later
"""What a session is asked to attach to, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.model.policy import DEFAULT_POLICY, Policy
from uffdballoon.model.reclaiming import DEFAULT_RATE_BYTES_PER_S, Reclaiming
from uffdballoon.model.terms import TOLD, Terms

if TYPE_CHECKING:
    from collections.abc import Callable

    from uffdballoon.core.keeper import Held, Keeping, Kept
    from uffdballoon.model.fragmentation import FragmentationLimit
    from uffdballoon.model.observing import ObserverKind
    from uffdballoon.target.obtain import Choice


@dataclass(frozen=True, slots=True)
class Holding:
    """That all is to be held when we end: by whom, or None for who holds it already."""

    hold: Callable[[Kept], Keeping] | None


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What to attach to, and how.

    ``held`` is what a keeper handed over: the session goes on with it. A touch that waited
    ``memory_patience_ns`` for a huge page of an empty pool has the target killed; 0: it waits on.
    Windows cut huge pages into ``max_huge_mappings`` mappings at most, by default a share of
    what the target may have.
    With ``always_trap`` each touch of the balloon is trapped, also where none of them matters.
    With ``trust_seccomp`` filters of the target that cannot be read are taken to harm nobody.
    ``without_monitor`` is the operator's word that what can hurt shall go without a monitor;
    The monitor at ``qmp_path`` is kept for as long as the session lasts, or, with
    ``leaves_monitor``, asked for the guest's RAM and vCPUs, and left to its owner.
    ``allowed`` are the names of findings that shall not refuse the attach.
    """

    pid: int
    qmp_path: str | None = None
    leaves_monitor: bool = False
    terms: Terms = TOLD
    policy: Policy = DEFAULT_POLICY
    max_windows: int | None = None
    always_trap: bool = False
    max_huge_mappings: int | None = None
    follow_cpu: bool = True
    uffd_method: Choice = "auto"
    trust_seccomp: bool = False
    stop_budget_ns: int | None = None
    observer: ObserverKind | None = None
    reclaiming: Reclaiming = Reclaiming.NOW
    reclaim_rate_bytes_per_s: int = DEFAULT_RATE_BYTES_PER_S
    fragmentation: FragmentationLimit | None = None
    memory_patience_ns: int = 0
    without_monitor: bool = False
    allowed: frozenset[str] = frozenset()
    held: Held | None = None
    holding: Holding | None = None

    @property
    def kept_monitor(self) -> str | None:
        """The path of a monitor that is there for as long as the session lasts."""
        return None if self.leaves_monitor else self.qmp_path

    def has_other_grace(self, than: SessionOptions) -> bool:
        """Tell whether the boot grace has other limits."""
        here, there = self.terms, than.terms
        return (here.grace_ns, here.grace_bytes) != (there.grace_ns, there.grace_bytes)
