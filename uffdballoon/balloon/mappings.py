# SPDX-License-Identifier: GPL-2.0-or-later
"""What windows cost the target: mappings, of which it may have vm.max_map_count.

Those of huge pages that a window has cut are never joined again, after a detach neither. They
lie at few places, which do not depend on the attach (native/src/windows.c): however often one
attaches, there are no more than their share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uffdballoon.model.ram import Backing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from uffdballoon.host.procfs import Mapping
    from uffdballoon.model.addresses import HvaRange
    from uffdballoon.model.ram import RamBlock

_HUGE_SHARE = 4
_WINDOW_MAPPINGS = 2  # a window alone in its RAM block is one, and cuts one in two


def most_huge_mappings(limit: int) -> int:
    """Return how many mappings of huge pages there may ever be, of ``limit`` in all."""
    return max(1, limit // _HUGE_SHARE)


def cut_huge_mappings(mappings: Iterable[Mapping], blocks: Sequence[RamBlock]) -> int:
    """Count the mappings of huge pages beyond one for each RAM block."""
    huge = huge_spans(blocks)
    pieces = sum(
        any(span.start <= mapping.span.start < span.end for span in huge) for mapping in mappings
    )
    return cut_of(pieces, huge)


def huge_spans(blocks: Sequence[RamBlock]) -> list[HvaRange]:
    """List the ranges of RAM blocks that are made of huge pages."""
    return [block.hva_range for block in blocks if block.backing is Backing.HUGETLBFS]


def cut_of(pieces: int, huge: Sequence[HvaRange]) -> int:
    """Return how many of the mappings in ``huge`` windows have cut."""
    return max(0, pieces - len(huge))


def window_budget(mappings: Sequence[Mapping], blocks: Sequence[RamBlock], limit: int) -> int:
    """Return how many windows there may be: for half of the mappings that are left.

    What earlier attaches have cut of huge pages is there to be used again, and not counted.
    """
    left = limit - len(mappings) + cut_huge_mappings(mappings, blocks)
    return max(1, left // 2 // _WINDOW_MAPPINGS)
