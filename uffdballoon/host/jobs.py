# SPDX-License-Identifier: GPL-2.0-or-later
"""Which capabilities each job takes where the QEMU is another user's; each was tried.

Seen with Linux 6.18. For a QEMU of one's own user none is needed to inspect and to inflate private
memory, where /dev/userfaultfd may be opened and yama lets one trace what is no child.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from uffdballoon.host.privileges import Capability

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclass(frozen=True, slots=True)
class Job:
    """``needs`` are all necessary; each is met by any one of its capabilities."""

    name: str
    needs: tuple[tuple[Capability, ...], ...]

    def lacking(self, held: Collection[Capability]) -> list[str]:
        """Name what is not met, such as "CAP_BPF or CAP_SYS_ADMIN"."""
        return [" or ".join(map(str, need)) for need in self.needs if not set(need) & set(held)]


_PTRACE = (Capability.SYS_PTRACE,)
# /proc/PID/fd and pagemap, and /dev/userfaultfd, are their owner's alone.
_ATTACH = (_PTRACE, (Capability.DAC_READ_SEARCH, Capability.DAC_OVERRIDE))
# fs/proc/base.c: proc_map_files_get_link()
_SHARED = (*_ATTACH, (Capability.CHECKPOINT_RESTORE, Capability.SYS_ADMIN))

INSPECT = Job("inspect", (_PTRACE,))
ATTACH = Job("attach, and inflate private memory", _ATTACH)
JOBS = (
    INSPECT,
    ATTACH,
    Job("inflate shared memory (memfd)", _SHARED),
    Job(
        "inflate shared memory in a file of another user's (tmpfs, hugetlbfs)",
        (*_SHARED, (Capability.DAC_OVERRIDE,)),
    ),
    Job(
        "follow the guest's own balloon (observer trace)",
        (
            *_ATTACH,
            (Capability.PERFMON, Capability.SYS_ADMIN),
            (Capability.BPF, Capability.IPC_LOCK, Capability.SYS_ADMIN),
        ),
    ),
    Job("the rung kill", (*_ATTACH, (Capability.KILL,))),
)
