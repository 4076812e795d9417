# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from tests.support import side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def may_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], bool]:
    """Tell whether another process could have the host now, in that way."""
    lock = tmp_path / "lock"
    monkeypatch.setattr(side_by_side, "_LOCK", str(lock))

    def ask(how: int) -> bool:
        child = os.fork()
        if not child:
            code = 1
            try:
                fcntl.lockf(os.open(lock, os.O_RDWR | os.O_CREAT, 0o600), how | fcntl.LOCK_NB, 1, 0)
                code = 0
            finally:
                os._exit(code)
        return os.waitpid(child, 0)[1] == 0

    return ask


def test_others_may_have_it_beside_a_test_that_is_not_alone(
    may_have_it: Callable[[int], bool],
) -> None:
    host = side_by_side.Host()
    with host.had(alone=False, then_alone=True):
        assert may_have_it(fcntl.LOCK_SH)
        assert not may_have_it(fcntl.LOCK_EX)
    assert may_have_it(fcntl.LOCK_EX)


def test_one_that_is_alone_leaves_it_to_the_next(may_have_it: Callable[[int], bool]) -> None:
    host = side_by_side.Host()
    with host.had(alone=True, then_alone=True):
        assert not may_have_it(fcntl.LOCK_SH)
    assert not may_have_it(fcntl.LOCK_SH)
    with host.had(alone=True, then_alone=False):
        assert not may_have_it(fcntl.LOCK_SH)
    assert may_have_it(fcntl.LOCK_EX)


def test_the_next_one_may_turn_out_to_be_another(may_have_it: Callable[[int], bool]) -> None:
    host = side_by_side.Host()
    with host.had(alone=True, then_alone=True):
        pass
    with host.had(alone=False, then_alone=False):
        assert may_have_it(fcntl.LOCK_SH)
    assert may_have_it(fcntl.LOCK_EX)
