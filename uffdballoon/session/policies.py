# SPDX-License-Identifier: GPL-2.0-or-later
"""Another policy and other terms for a guest that is attached."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from uffdballoon.balloon.nodes import refuse_unknown_nodes
from uffdballoon.model.notice import notice
from uffdballoon.model.records.events import EventKind
from uffdballoon.model.records.policy import PolicyChange
from uffdballoon.observe.choice import refuse_unless_it_serves
from uffdballoon.session.keeping import in_force, note_policy
from uffdballoon.session.prerequisites import (
    refuse_blind_harm,
    refuse_pause,
    refuse_poison,
    refuse_powerless_kill,
)

if TYPE_CHECKING:
    from uffdballoon.model.policy import Policy
    from uffdballoon.model.records.events import Notice
    from uffdballoon.model.terms import TermsChange
    from uffdballoon.session.attachment import Attachment
    from uffdballoon.session.options import SessionOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyWish:
    """What is to be in force: None for a policy that stays.

    ``without_monitor`` is the operator's word that what can hurt shall go without a monitor.
    """

    policy: Policy | None
    terms: TermsChange
    without_monitor: bool = False


class Policies:
    """What the guest is held to, from now on."""

    def __init__(self, attached: Attachment) -> None:
        self._attached = attached

    def change(self, wish: PolicyWish) -> PolicyChange:
        """Judge and answer as wished from now on; return what was and is in force.

        Raises UsageError, RangeError, UnsupportedError and PermissionDeniedError for what cannot
        be; all is as before then.
        """
        attached = self._attached
        now = attached.options
        wanted = replace(
            now,
            policy=wish.policy or now.policy,
            terms=wish.terms.applied_to(now.terms).within(attached.layout.ram_bytes),
            without_monitor=now.without_monitor or wish.without_monitor,
        )
        before, after = in_force(now), in_force(wanted)
        went_on = 0
        if after != before:
            self._refuse_what_cannot_be(wanted)
            went_on = attached.hold_to(wanted)
            note_policy(attached.memory, asked=in_force(attached.asked), now=after)
        return PolicyChange(
            before=before, after=after, went_on=went_on, below_floor=self._is_below_a_floor()
        )

    def _refuse_what_cannot_be(self, wanted: SessionOptions) -> None:
        attached = self._attached
        now, machine = attached.options, attached.machine
        refuse_pause(wanted.policy, has_monitor=machine.monitor is not None)
        refuse_poison(wanted.policy, lambda: attached.known)
        refuse_powerless_kill(wanted.policy, attached.target)
        if wanted.policy != now.policy or wanted.has_other_grace(now):
            refuse_blind_harm(
                wanted,
                sees_resets=machine.relay is not None,
                vcpus=attached.vcpus.numbers,
            )
        refuse_unknown_nodes(attached.layout, wanted.terms, wanted.fragmentation)
        refuse_unless_it_serves(attached.observer.kind, attached.circumstances(wanted))

    def _is_below_a_floor(self) -> bool:
        attached = self._attached
        ledger, terms = attached.enforcer.ledger, attached.options.terms
        return ledger.ballooned_bytes < terms.floor_bytes or any(
            attached.nodes.ballooned_bytes(node) < floor for node, floor in terms.node_floors
        )


def change_notice(change: PolicyChange) -> Notice:
    """Tell of a change that was made."""
    why = f"{change.before} -> {change.after}"
    if change.below_floor:
        why += "; less than the floor is in the balloon"
    return notice(EventKind.POLICY_CHANGED, why, before=change.before, after=change.after)
