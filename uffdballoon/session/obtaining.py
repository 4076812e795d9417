# SPDX-License-Identifier: GPL-2.0-or-later
"""A userfaultfd of the target: what its seccomp filters allow is looked at before."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.errors import UffdballoonError
from uffdballoon.host.uffd import Userfaultfd
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import obtain_userfaultfd
from uffdballoon.target.seccomp import ZAPS, Permits, look_at_filters
from uffdballoon.vmm.qemu.threads import find_rcu_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from uffdballoon.model.ram import RamBlock
    from uffdballoon.model.records.status import UffdMethod
    from uffdballoon.session.options import SessionOptions
    from uffdballoon.target.process import Target


class Obtained(NamedTuple):
    """A userfaultfd, how we came by it, and for how long the target was stopped for it."""

    uffd: Userfaultfd
    method: UffdMethod
    stopped_ns: int
    zaps_at_once: bool


def borrow_a_thread(target: Target, progress: Callable[[str], None]) -> Injector:
    """Take the RCU thread to run calls in; say so where there is only the main thread."""
    found = find_rcu_thread(target)
    if found.thread is None:
        progress(f"its main thread is stopped for zaps, a little at a time: {found.why}")
    return Injector(target, found.thread)


def obtain(
    injector: Injector,
    blocks: Iterable[RamBlock],
    options: SessionOptions,
    progress: Callable[[str], None],
) -> Obtained:
    """Obtain a userfaultfd, or go on with the one that is held."""
    permits = _look_at_filters(injector, blocks, options, progress)
    if options.held is not None:
        progress("userfaultfd and ledger taken over from who held them")
        return Obtained(Userfaultfd(options.held.uffd), "kept", 0, permits.zaps_at_once)
    obtained = obtain_userfaultfd(injector, options.uffd_method, permits=permits)
    if obtained.refused_direct:
        progress(f"userfaultfd not by `direct`: {obtained.refused_direct}")
    progress(
        f"userfaultfd obtained: {obtained.method}, "
        f"{injector.thread_name} stopped {obtained.stopped_ns // 1000} us"
    )
    return Obtained(obtained.uffd, obtained.method, obtained.stopped_ns, permits.zaps_at_once)


def _look_at_filters(
    injector: Injector,
    blocks: Iterable[RamBlock],
    options: SessionOptions,
    progress: Callable[[str], None],
) -> Permits:
    """Ask what may be injected; whoever attached before a takeover has asked already."""
    try:
        permits = look_at_filters(
            options.pid,
            injector.target.pidfd,
            injector.tids,
            trusted=options.trust_seccomp,
        )
    except UffdballoonError:
        if options.held is None:
            raise
        return Permits(zaps_at_once=False)
    if permits.unread:
        progress(f"not known: what its seccomp filters allow: {permits.unread}")
    if options.held is None and not all(block.shared for block in blocks):
        permits.refuse(ZAPS, options.pid)
    return permits
