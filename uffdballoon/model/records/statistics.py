# SPDX-License-Identifier: GPL-2.0-or-later
"""How fragmented a balloon is, and its runs to keep."""

from dataclasses import dataclass
from typing import Annotated

from uffdballoon.model.records.doc import doc


@dataclass(frozen=True, slots=True, kw_only=True)
class WireBytes:
    """What each encoding of a balloon's pages would send, in bytes."""

    pfn_array: Annotated[int, doc("32-bit page numbers, as virtio-balloon does; bytes")]
    bitmap: Annotated[int, doc("a bit a page, from the first to the last; bytes")]
    range_list: Annotated[int, doc("page number and length of each run; bytes")]
    order_list: Annotated[int, doc("power-of-two blocks; bytes")]


@dataclass(frozen=True, slots=True, kw_only=True)
class FragmentCounts:
    """Runs of pages, and what it would cost to tell of them."""

    pages: Annotated[int, doc("pages of 4 KiB")]
    runs: Annotated[int, doc("runs that they make")]
    run_lengths: Annotated[dict[int, int], doc("runs of so many pages up to twice that")]
    orders: Annotated[dict[int, int], doc("aligned blocks of 2^order pages that they are made of")]
    span_pages: Annotated[int, doc("pages from the first to the last")]
    wire_bytes: Annotated[WireBytes, doc("what each encoding would send")]
    messages: Annotated[int, doc("messages of Linux's driver, of 256 pages")]


@dataclass(frozen=True, slots=True, kw_only=True)
class InflateCounts(FragmentCounts):
    """What the balloon gained until it was quiet again."""

    time_ns: Annotated[int, doc("when it was quiet, ns since 1970")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """How fragmented the balloon is, and each inflate was."""

    pid: Annotated[int, doc("the target")]
    ram_bytes: Annotated[int, doc("bytes of guest memory")]
    balloon: Annotated[FragmentCounts, doc("the balloon as it is now")]
    inflates: Annotated[tuple[InflateCounts, ...], doc("the last 64 inflates")]
    arrivals: Annotated[dict[int, int], doc("inflates of so many pages up to twice that")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedChange:
    """What the balloon gained and lost until it was quiet again; a line of `stats --trace`."""

    time_ns: Annotated[int, doc("when it was quiet, ns since 1970")]
    inflated: Annotated[
        tuple[tuple[int, int], ...], doc("first page and pages of each run, sorted")
    ]
    deflated: Annotated[tuple[tuple[int, int], ...], doc("the same of what was taken back")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTrace:
    """The latest changes of the balloon, of 262,144 runs in all at most."""

    ram_bytes: Annotated[int, doc("bytes of guest memory")]
    left_out: Annotated[int, doc("changes before them that were too much to be kept")]
    changes: Annotated[tuple[RecordedChange, ...], doc("the oldest first")]


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedGuest:
    """The first line of what `stats --trace` writes; the others are changes."""

    format: Annotated[str, doc("`uffdballoon trace 1`")]
    ram_bytes: Annotated[int, doc("bytes of guest memory")]
    left_out: Annotated[int, doc("changes before them that were too much to be kept")]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedGuest:
    """A guest that is the recorded one, over and over."""

    ram_bytes: Annotated[int, doc("bytes of guest memory; the first is the recorded guest")]
    balloon: Annotated[FragmentCounts, doc("its balloon")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """Larger guests like a recorded one."""

    recorded_ram_bytes: Annotated[int, doc("bytes of memory of the recorded guest")]
    guests: Annotated[tuple[SimulatedGuest, ...], doc("the recorded one, and the larger")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedBalloon:
    """What `stats --record` keeps."""

    format: Annotated[str, doc("`uffdballoon balloon 1`")]
    ram_bytes: Annotated[int, doc("bytes of guest memory")]
    runs: Annotated[tuple[tuple[int, int], ...], doc("first page and pages of each run, sorted")]
