# SPDX-License-Identifier: GPL-2.0-or-later
"""What is told of a target that has ended, in the words that are meant for that."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.support.marks import REAL_QEMU
from uffdballoon.errors import TargetGoneError
from uffdballoon.host.uffd import Feature, RegisterMode
from uffdballoon.lab.toucher import Toucher
from uffdballoon.target.injector import Injector
from uffdballoon.target.obtain import obtain_userfaultfd
from uffdballoon.target.process import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uffdballoon.host.uffd import Userfaultfd

pytestmark = REAL_QEMU

_SIZE_BYTES = 4 << 20


@pytest.fixture
def toucher() -> Iterator[Toucher]:
    with Toucher("anon", _SIZE_BYTES, 1) as toucher:
        yield toucher


@pytest.fixture
def uffd(toucher: Toucher) -> Iterator[Userfaultfd]:
    """A userfaultfd of the toucher's, with all of its memory registered."""
    with Target.open(toucher.pid, any_process=True) as target, Injector(target) as injector:
        uffd = obtain_userfaultfd(injector).uffd
    with contextlib.closing(uffd):
        uffd.api(Feature(0))
        uffd.register(toucher.span, RegisterMode.MISSING)
        yield uffd


def test_a_target_that_ended_is_not_taken_for_one_without_room_for_mappings(
    toucher: Toucher, uffd: Userfaultfd
) -> None:
    toucher.close()
    with pytest.raises(TargetGoneError):
        uffd.register(toucher.span, RegisterMode.MISSING)
    with pytest.raises(TargetGoneError):
        uffd.unregister(toucher.span)


def test_a_target_that_runs_keeps_what_it_has(toucher: Toucher, uffd: Userfaultfd) -> None:
    uffd.unregister(toucher.span)
    toucher.fill()
