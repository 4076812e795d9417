# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the file under privately mapped guest memory is the target's alone.

A private mapping shows the file wherever it has no page of its own. What is zapped comes back
from the file, then, unless it is punched out there, too, and that takes it from all who have the
file: the image of a saved guest that is the template of others must never be changed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.errors import PermissionDeniedError, TargetGoneError, UnsupportedError
from uffdballoon.host.procfs import Mapping, read_mappings
from uffdballoon.model.ram import Backing
from uffdballoon.target.backing import BackingFile, open_backing_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.model.ram import RamBlock


def why_refused(pid: int, block: RamBlock) -> str:
    """Say why a RAM block would be refused at an attach; empty when it is taken.

    Raises TargetGoneError.
    """
    if block.backing is Backing.ANON or block.shared:
        return ""
    try:
        file = open_backing_file(pid, block)
    except (PermissionDeniedError, UnsupportedError) as error:
        return f"{error.what}: {error.why}"
    try:
        if not is_never_filled(block, file):
            refuse_unless_ours(pid, block, file)
    except UnsupportedError as error:
        return f"{error.what}: {error.why}"
    finally:
        os.close(file.fd)
    return ""


def is_never_filled(block: RamBlock, file: BackingFile) -> bool:
    """Tell whether private writes leave nothing in the file, and nothing is in it.

    So it is with huge pages (mm/hugetlb.c, hugetlb_no_page()).
    """
    return block.backing is Backing.HUGETLBFS and not os.fstat(file.fd).st_blocks


def refuse_unless_ours(pid: int, block: RamBlock, file: BackingFile) -> None:
    """Raise UnsupportedError when somebody else has the file of a private RAM block, or may get it.

    What is not seen is a file that is only in the queue of a socket, and what processes have
    that we may not look at: those of a pid namespace above ours, or shut off by a security module.
    """
    found = os.fstat(file.fd)
    if found.st_nlink:
        raise _refused(pid, block, "the file has a name, by which others may map it")
    if any(not _is_of(block, mapping) for mapping in _mappings_of(pid, found)):
        raise _refused(pid, block, "the process maps the file a second time")
    for other in _other_processes(pid):
        if any(_mappings_of(other, found)) or _has_open(other, found):
            raise _refused(pid, block, f"process {other} has the file, too")


def _refused(pid: int, block: RamBlock, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"RAM block {block.idstr!r} of process {pid} is a private copy of a file that may not be "
        "changed",
        why=f"{why}; a page that is dropped would show the file's contents, and not be trapped",
        hint="share=on; or memory-backend-ram, -memfd, or -file with a directory as mem-path. A "
        "file that nobody else needs may be removed while QEMU runs, and then it can be attached",
        pid=pid,
    )


def _is_of(block: RamBlock, mapping: Mapping) -> bool:
    return block.hva_range.start <= mapping.span.start < block.hva_range.end


def _mappings_of(pid: int, found: os.stat_result) -> Iterator[Mapping]:
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    with contextlib.suppress(TargetGoneError, PermissionDeniedError):
        for mapping in read_mappings(pid):
            if mapping.inode == found.st_ino and mapping.device == device:
                yield mapping


def _other_processes(pid: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) not in {pid, os.getpid()}:
            yield int(entry.name)


def _has_open(pid: int, found: os.stat_result) -> bool:
    """Look at fds of files without a name alone: to ask a dead file server would take for ever."""
    with contextlib.suppress(OSError):  # it ended, or is shut off
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(entry.readlink()).endswith(" (deleted)") and os.path.samestat(
                    entry.stat(), found
                ):
                    return True
    return False
