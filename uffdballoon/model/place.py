# SPDX-License-Identifier: GPL-2.0-or-later
"""Where a range of the guest's memory lies in the target, in whole granules."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from uffdballoon.errors import RangeError, UsageError
from uffdballoon.model.granule import Granule, round_inward
from uffdballoon.model.ram import Backing
from uffdballoon.model.sizes import format_size

if TYPE_CHECKING:
    from uffdballoon.model.addresses import GpaRange, HvaRange
    from uffdballoon.model.ram import Layout, RamBlock


class Placed(NamedTuple):
    """A range of whole granules, as the guest and as the target see it, and what was left out."""

    block: RamBlock
    gpa: GpaRange
    hva: HvaRange
    left_out: tuple[GpaRange, ...]


def place(layout: Layout, span: GpaRange, granule: Granule) -> Placed:
    """Round a guest range inward, to whole granules of the host's memory.

    Raises RangeError when it is empty, leaves RAM or holds no whole granule, UsageError for
    granules that its RAM block has not.
    """
    if span.size_bytes <= 0:
        raise RangeError(f"{span} is empty", why="its size is 0", hint="give a --size above 0")
    hva, block = layout.to_hva(span)
    if block.backing is Backing.HUGETLBFS and granule is not Granule.HUGE2M:
        raise UsageError(
            f"RAM block {block.idstr!r} has no pages of {granule.value}",
            why="it is hugetlbfs memory, which comes and goes in pages of 2 MiB",
            hint="use --granule huge2m",
        )
    whole, left_out = round_inward(hva, granule, block.file_start)
    if whole is None:
        raise RangeError(
            f"{span} holds no whole {granule.value} granule",
            why=f"granules are {format_size(granule.size_bytes)}, aligned in the host's memory, "
            "or in its file",
            hint=_enough(granule, block),
        )
    return Placed(
        block,
        layout.to_gpa_range(whole),
        whole,
        tuple(layout.to_gpa_range(piece) for piece in left_out),
    )


def _enough(granule: Granule, block: RamBlock) -> str:
    """Say which range holds a whole granule, wherever those of the host begin."""
    if granule is Granule.SMALL:
        return "give whole pages: --gpa and --size as multiples of 4 KiB"
    enough = f"give a --size of at least {format_size(2 * granule.size_bytes)}"
    return enough if block.backing is Backing.HUGETLBFS else f"{enough}, or --granule 4k"
