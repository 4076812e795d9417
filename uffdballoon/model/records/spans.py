# SPDX-License-Identifier: GPL-2.0-or-later
"""A range of guest-physical memory, as JSON tells of it."""

from dataclasses import dataclass
from typing import Annotated, Self

from uffdballoon.model.addresses import GpaRange
from uffdballoon.model.records.doc import doc


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A range of guest-physical memory."""

    gpa: Annotated[int, doc("guest-physical address of its first byte")]
    size: Annotated[int, doc("bytes")]

    @classmethod
    def of(cls, span: GpaRange) -> Self:
        return cls(gpa=span.start, size=span.size_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class BalloonRanges:
    """The ranges that are in the balloon, by their gpa: the first ones, and a count of the rest."""

    ranges: Annotated[tuple[Span, ...], doc("the first ones")]
    more_ranges: Annotated[int, doc("how many others there are")]
    more_bytes: Annotated[int, doc("bytes of those")]
