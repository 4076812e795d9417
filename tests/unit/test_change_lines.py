# SPDX-License-Identifier: GPL-2.0-or-later
"""What an inflate and a deflate say of what they did, to the letter."""

from __future__ import annotations

from uffdballoon.cli.text.changes import deflate_lines, inflate_lines
from uffdballoon.cli.text.spans import span_words
from uffdballoon.model.records.changes import ChangeReport
from uffdballoon.model.records.spans import Span

_M = 1 << 20
_TAKEN = ChangeReport(
    requested_bytes=4 * _M,
    done_bytes=4 * _M,
    freed_bytes=_M,
    left_out=(),
    ranges=(Span(gpa=0x4000000, size=4 * _M),),
)
_AGAIN = ChangeReport(
    requested_bytes=4 * _M + 512,
    done_bytes=0,
    left_out=(Span(gpa=0x4400000, size=512),),
    ranges=_TAKEN.ranges,
)


def test_what_was_taken_is_told_as_a_range_with_what_was_resident() -> None:
    assert list(inflate_lines(_TAKEN)) == [
        "inflated 4 MiB of 4 MiB: gpa 0x4000000-0x4400000",
        "of that was resident, and is not any more: 1 MiB",
    ]


def test_what_was_in_the_balloon_already_is_said() -> None:
    assert list(inflate_lines(_AGAIN)) == [
        "inflated 0 B of 4.0 MiB: gpa 0x4000000-0x4400000",
        "already in the balloon: 4 MiB",
        "left out: 512 B at gpa 0x4400000-0x4400200 (not a whole granule)",
    ]


def test_what_was_not_in_the_balloon_is_said() -> None:
    assert list(deflate_lines(_TAKEN)) == ["deflated 4 MiB of 4 MiB: gpa 0x4000000-0x4400000"]
    assert "was not in the balloon: 4 MiB" in list(deflate_lines(_AGAIN))


def test_many_ranges_are_counted_and_not_all_named() -> None:
    words = span_words([Span(gpa=n * _M, size=4096) for n in range(1000)])
    assert words.count("gpa") == 8
    assert words.endswith(" and 992 more")
    assert span_words([]) == "nothing"
