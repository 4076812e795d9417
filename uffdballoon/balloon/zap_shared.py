# SPDX-License-Identifier: GPL-2.0-or-later
"""Zap shared memory: a hole in the file behind it, punched from outside.

Nothing is stopped, and all mappings of the file lose those pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.balloon.report import ZapReport
from uffdballoon.host.process import punch_hole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uffdballoon.model.addresses import HvaRange


def zap_shared(fd: int, ranges: Sequence[HvaRange], *, file_start: int) -> ZapReport:
    """Punch the ranges out of a file; ``file_start`` is the hva of its first byte.

    Raises the named error of fallocate(2) where the file cannot have holes.
    """
    for span in ranges:
        punch_hole(fd, span.start - file_start, span.size_bytes)
    return ZapReport(sum(span.size_bytes for span in ranges))
