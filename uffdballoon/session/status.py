# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a session, as ``status`` shows it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec import UNSET

from uffdballoon.balloon.reporting import answers_of, latency_of, observed_of, touches_of
from uffdballoon.model.addresses import PAGE_BYTES
from uffdballoon.model.blockmap import Tally
from uffdballoon.model.records.counters import Stops
from uffdballoon.model.records.status import ContractStatus, Status, TargetState
from uffdballoon.model.terms import ContractKind
from uffdballoon.model.touch import Action

if TYPE_CHECKING:
    from uffdballoon.balloon.survey import Surveyed
    from uffdballoon.model.job import Job
    from uffdballoon.model.terms import Terms
    from uffdballoon.session.attachment import Attachment
    from uffdballoon.session.changes import Changes
    from uffdballoon.session.driver import Driver
    from uffdballoon.session.reactions import Reactions
    from uffdballoon.session.resets import Resets


def reporting(
    attached: Attachment, changes: Changes, resets: Resets, driver: Driver, reactions: Reactions
) -> Job[Status]:
    """Return the state of it all; QEMU is asked, too, and not waited for.

    Page tables are walked only where that is little. Where it is much, what the last survey
    found is told, and its part goes on with another.
    """
    surveyed = yield from attached.survey.renewing()
    yield from attached.machine.asking()
    attached.enforcer.loop.look()
    with attached.machine.answered():
        return _report(attached, changes, resets, driver, reactions, surveyed)


def _report(
    attached: Attachment,
    changes: Changes,
    resets: Resets,
    driver: Driver,
    reactions: Reactions,
    surveyed: Surveyed,
) -> Status:
    loop = attached.enforcer.loop
    stats = loop.stats()
    ledger = attached.enforcer.ledger
    ballooned_bytes = ledger.ballooned_bytes
    reclaimer = attached.reclaimer
    tallies = {block: ledger.tally(block) for block in attached.layout.blocks}
    tally = Tally.total(tallies.values())
    found = surveyed.total
    deflated_bytes = changes.deflated_bytes + resets.emptied_bytes
    return Status(
        pid=attached.target.pid,
        vm=attached.origin.name,
        state=TargetState.GONE if attached.target.has_exited() else TargetState.ATTACHED,
        uffd_method=attached.uffd_method,
        observer=attached.observer.kind,
        contract=_contract_state(attached, ballooned_bytes),
        policy=str(attached.options.policy),
        ram_bytes=attached.layout.ram_bytes,
        nominal_ram_bytes=attached.layout.allocated_bytes,
        ballooned_bytes=ballooned_bytes,
        reclaimed_bytes=found.free_bytes,
        reclaimed_source=reclaimer.source,
        surveyed_age_s=surveyed.age_s,
        broken_blocks=tally.broken,
        reclaim=reclaimer.report(found),
        khugepaged=reclaimer.report_khugepaged(found),
        fragmentation=attached.guard.report(tally),
        ram_blocks=attached.nodes.blocks_report(tallies),
        nodes=attached.nodes.report(surveyed.measured, tallies, attached.guard.limit_of),
        balloon=driver.account(ballooned_bytes),
        ram_change_bytes=attached.machine.ram_change_bytes(),
        guest_memory=attached.machine.guest_statistics(),
        vmas=surveyed.mappings,
        cut_huge_mappings=surveyed.cut_huge_mappings,
        held=tuple(reactions.held()),
        inflated_pages_total=changes.inflated_bytes // PAGE_BYTES + stats.observed_inflated,
        deflated_pages_total=deflated_bytes // PAGE_BYTES + stats.observed_deflated,
        windows=stats.windows,
        armed_bytes=stats.armed_bytes,
        unarmed_bytes=stats.unarmed_bytes,
        traps_always=not stats.slackens or _is_told_of_each(attached.options.terms),
        yielded=attached.yielder.is_yielded,
        touches=touches_of(stats),
        actions={a: count for a, count in stats.actions.items() if a is not Action.NONE},
        observed=observed_of(stats),
        events_dropped=stats.events_dropped,
        answers=answers_of(stats),
        latency_ns=latency_of(loop),
        latency_histogram_ns=tuple(loop.answer_histogram()),
        stopped_us=Stops(
            thread=attached.injector.thread_name,
            main_thread_stops=attached.injector.main_stops,
            attach=attached.stopped_ns // 1000,
            zap_count=len(changes.stops_ns),
            zap_max=max(changes.stops_ns, default=0) // 1000,
        ),
    )


def _is_told_of_each(terms: Terms) -> bool:
    """Tell whether the contract takes it to trap each touch."""
    return terms.kind is not ContractKind.CAP or bool(terms.node_floors)


def _contract_state(attached: Attachment, ballooned_bytes: int) -> ContractStatus:
    terms = attached.options.terms
    grace = attached.enforcer.loop.grace()
    until_ns = grace.until_ns if grace is not None else None
    left_bytes = grace.left_bytes if grace is not None else None
    now_ns = time.monotonic_ns()
    return ContractStatus(
        kind=terms.kind,
        floor_bytes=terms.floor_bytes,
        below_floor=ballooned_bytes < terms.floor_bytes,
        limit_bytes=attached.layout.ram_bytes - terms.floor_bytes if terms.floor_bytes else None,
        count_reported=terms.count_reported,
        in_grace=grace is not None,
        grace_left_s=UNSET if until_ns is None else max(0.0, (until_ns - now_ns) / 1e9),
        grace_left_bytes=UNSET if left_bytes is None else left_bytes,
    )
