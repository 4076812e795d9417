# SPDX-License-Identifier: GPL-2.0-or-later
"""What the C library's -errno becomes, and what an error says."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uffdballoon import errors
from uffdballoon.errors import ExitCode, UffdballoonError, UnsupportedError
from uffdballoon.host.errnos import check, check_uffd


@pytest.mark.parametrize(
    ("number", "general", "uffd"),
    [
        (errno.EPERM, "PermissionDeniedError", "PermissionDeniedError"),
        (errno.EACCES, "PermissionDeniedError", "PermissionDeniedError"),
        (errno.ENOSYS, "UnsupportedError", "UnsupportedError"),
        (errno.ESRCH, "TargetGoneError", "TargetGoneError"),
        (errno.EBUSY, "TargetBusyError", "TargetBusyError"),
        (errno.ENOMEM, "UffdballoonError", "WindowBudgetError"),
        (errno.ENOENT, "UffdballoonError", "RangeError"),
        (errno.EINVAL, "UffdballoonError", "UnsupportedError"),
        (errno.EIO, "UffdballoonError", "UffdballoonError"),
        (4095, "UffdballoonError", "UffdballoonError"),
    ],
)
def test_an_errno_becomes_a_named_error(number: int, general: str, uffd: str) -> None:
    for checked, name in ((check, general), (check_uffd, uffd)):
        with pytest.raises(UffdballoonError) as refused:
            checked(-number, "what", pid=7)
        assert type(refused.value) is getattr(errors, name)
        assert (refused.value.errno, refused.value.pid, refused.value.what) == (number, 7, "what")
        assert refused.value.why


@given(st.integers(0, 1 << 62))
def test_a_result_that_is_none_of_these_is_returned(result: int) -> None:
    assert check(result, "") == check_uffd(result, "") == result


def test_an_error_says_what_why_and_what_to_do_with_its_errno_by_name() -> None:
    error = UnsupportedError("what", why="why", hint="do", errno=errno.ENOSYS)
    assert str(error) == "what. why (ENOSYS). do"
    assert str(UffdballoonError("what", errno=errno.EPERM)) == "what. EPERM"
    assert str(UffdballoonError("what", why="w", errno=9999)) == "what. w"
    assert (error.exit_code, UffdballoonError("").exit_code) == (
        ExitCode.UNSUPPORTED,
        ExitCode.FAILED,
    )
