# SPDX-License-Identifier: GPL-2.0-or-later
"""What an attach asks for and cannot have, or must not have without a monitor: refused."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from uffdballoon.errors import (
    PermissionDeniedError,
    TargetGoneError,
    UnsupportedError,
    UsageError,
)
from uffdballoon.host.uffd import Feature, query_features
from uffdballoon.model.ladder import RungKind
from uffdballoon.model.observing import ObserverKind
from uffdballoon.observe.choice import no_monitor_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uffdballoon.model.policy import Policy
    from uffdballoon.session.options import SessionOptions
    from uffdballoon.target.process import Target


def refuse_what_cannot_be(options: SessionOptions) -> None:
    """Raise UsageError or UnsupportedError for options that need what is not there."""
    refuse_pause(options.policy, has_monitor=options.kept_monitor is not None)
    refuse_poison(options.policy, query_features)
    if options.observer is ObserverKind.MONITOR and options.kept_monitor is None:
        raise no_monitor_error(options.pid)
    if options.fragmentation is not None and options.kept_monitor is None:
        raise UsageError(
            "a limit of broken blocks needs the monitor",
            why="an inflate is stopped by setting the balloon's target, and no socket was given",
            hint="give --qmp PATH, or leave the limit out",
        )


def refuse_pause(policy: Policy, *, has_monitor: bool) -> None:
    """Raise UsageError for a policy that pauses where there is no monitor to do it by."""
    if policy.has(RungKind.PAUSE) and not has_monitor:
        raise UsageError(
            "the rung pause needs the monitor",
            why="QEMU is stopped by QMP, and no socket of it was given, or another client has it",
            hint="attach with --qmp PATH, or use another rung",
        )


def refuse_poison(policy: Policy, features: Callable[[], Feature]) -> None:
    """Raise UnsupportedError for a policy that poisons where the kernel cannot."""
    if policy.has(RungKind.POISON) and not features() & Feature.POISON:
        raise UnsupportedError(
            "the rung poison cannot be performed",
            why="this kernel has no UFFDIO_POISON (Linux 6.6)",
            hint="use kill, or another rung",
        )


def refuse_powerless_kill(policy: Policy, target: Target) -> None:
    """Raise PermissionDeniedError for a policy that kills where we may not, any more.

    The kernel is asked, by the signal 0: our own uid, CAP_KILL or neither may be what counts.
    """
    if not policy.has(RungKind.KILL):
        return
    try:
        signal.pidfd_send_signal(target.pidfd, 0)
    except PermissionError as error:
        raise PermissionDeniedError(
            "the rung kill cannot be performed",
            why="QEMU runs as another user, and the manager gave CAP_KILL up after the attach, "
            "as its policy had no kill",
            hint=f"detach, and attach with --policy {policy}; a manager that is attached with "
            "kill, or with --no-sandbox, can be given it again at any time",
            pid=target.pid,
            errno=error.errno,
        ) from error
    except ProcessLookupError as error:
        raise TargetGoneError.of(target.pid) from error


def needs_monitor(options: SessionOptions) -> bool:
    """Tell whether an attach is to be refused when another client holds the monitor."""
    if options.policy.has(RungKind.PAUSE) or options.fragmentation is not None:
        return True
    if options.observer is ObserverKind.MONITOR:
        return True
    # A QEMU that waits for a touch does not answer whoever takes over.
    asked = options.kept_monitor is not None and options.held is None
    return asked and not options.without_monitor and bool(_blind_harm(options))


def refuse_blind_harm(
    options: SessionOptions, *, sees_resets: bool, vcpus: Mapping[int, int]
) -> None:
    """Refuse to hurt a guest for what it did not do; raise UsageError.

    A reset that nobody sees makes what the firmware touches a violation. Where nobody can tell
    the vCPUs, a migration that reads the guest's memory would be taken for the guest.
    """
    if options.without_monitor:
        return
    harm, why = _blind_harm(options), ""
    if harm and not sees_resets:
        why = "a reset of the guest, which empties its balloon, is not seen without QEMU's monitor"
    elif options.policy.holds and not vcpus and not sees_resets:
        harm = f"the policy {options.policy}"
        why = "nothing tells which threads are vCPUs: a migration would be held as the guest is"
    if why:
        raise UsageError(
            f"{harm} needs the monitor",
            why=why,
            hint="give --qmp PATH, or take the risk with --without-monitor",
            pid=options.pid,
        )


def _blind_harm(options: SessionOptions) -> str:
    """Name what may not be done by who does not see the guest's resets; empty: nothing."""
    if options.policy.harms:
        return f"the policy {options.policy}"
    if options.terms.grace_ns or options.terms.grace_bytes:
        return "a boot grace"
    return ""
