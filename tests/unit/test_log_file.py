# SPDX-License-Identifier: GPL-2.0-or-later
"""Where QEMU's log goes, by its command line and by what /proc says of its fds."""

from __future__ import annotations

import os

import pytest

from uffdballoon.host.bounded_file import open_bounded_file
from uffdballoon.vmm.qemu import log_file
from uffdballoon.vmm.qemu.log_file import is_link_of_log, log_option


@pytest.mark.parametrize(
    ("words", "path"),
    [
        ((), None),
        (("-D", "/var/log/q"), "/var/log/q"),
        (("-D", "a", "-d", "guest_errors", "-D", "b"), "b"),
        (("--D", "x"), "x"),
        (("-name", "-D"), None),
    ],
)
def test_the_last_log_of_a_command_line_counts(words: tuple[str, ...], path: str | None) -> None:
    assert log_option(("qemu-system-x86_64", *words)) == path


@pytest.mark.parametrize(
    ("link", "path", "is_it"),
    [
        ("/var/log/q.log", "/var/log/q.log", True),
        ("/var/log/q.log (deleted)", "/var/log/q.log", True),
        ("/var/log/qxlog", "/var/log/q.log", False),
        ("/var/log/q-4711.log", "/var/log/q-%d.log", True),
        ("/var/log/q-x.log", "/var/log/q-%d.log", False),
        ("/home/me/q.log", "q.log", True),
        ("/home/me/q.log", "./q.log", True),
        ("/home/me/vmq.log", "q.log", False),
        ("/home/me/logs/q\nq.log", "logs/q\nq.log", True),
        ("socket:[17]", "q.log", False),
    ],
)
def test_a_log_is_known_by_its_link(link: str, path: str, is_it: bool) -> None:  # noqa: FBT001
    assert is_link_of_log(link, path) is is_it


def test_a_file_of_ours_is_known_by_its_link_whichever_it_is() -> None:
    bounded, _ = open_bounded_file(log_file.NAME, 1 << 20)
    memfd = os.memfd_create(log_file.NAME)
    for fd in (bounded, memfd):
        link = os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115 - a string, as fds() has it
        assert log_file._is_ours(link)
        assert not log_file._is_ours("/var/log" + link)
        os.close(fd)
