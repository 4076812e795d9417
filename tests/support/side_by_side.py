# SPDX-License-Identifier: GPL-2.0-or-later
"""Which tests may run beside each other, in several processes and in several runs.

Most may. Those that take huge pages count those of the host's pool, and share one worker. Those
marked ``alone`` tune the host or measure all of it, and have it for themselves: one after the
other, since every change of hands waits for the longest test that runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK = f"{tempfile.gettempdir()}/uffdballoon-tests-{os.getuid()}.lock"
_HOST, _DOOR = 0, 1  # bytes of that file


def assign_workers(items: list[pytest.Item]) -> None:
    """Say which tests have to share a worker; the others go wherever there is room."""
    for item in items:
        if is_alone(item):
            item.add_marker(pytest.mark.xdist_group("alone"))
        elif _takes_huge_pages(item):
            item.add_marker(pytest.mark.xdist_group("huge pages"))
        elif _shares_a_fixture(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None


def _fixtures(item: pytest.Item) -> tuple[str, ...]:
    return tuple(item.fixturenames) if isinstance(item, pytest.Function) else ()


def _takes_huge_pages(item: pytest.Item) -> bool:
    marked = item.get_closest_marker("takes_huge_pages") is not None
    return marked or "huge_pages" in _fixtures(item)


def _shares_a_fixture(item: pytest.Item) -> bool:
    """Tell whether a fixture is made once for all tests of a module: it would be made anew."""
    manager = item.session._fixturemanager
    return any(
        definition.scope in ("class", "module")
        for name in _fixtures(item)
        for definition in manager.getfixturedefs(name, item) or ()
    )


class Host:
    """The host, had together with others, or for oneself.

    The lock goes with the process that holds it, however that ends.
    """

    def __init__(self) -> None:
        self._kept: int | None = None

    @contextlib.contextmanager
    def had(self, *, alone: bool, then_alone: bool) -> Iterator[None]:
        """Have it for a test; one that is alone leaves it to the next if that is alone, too."""
        fd, self._kept = self._kept, None
        if fd is not None and not alone:
            os.close(fd)
            fd = None
        if fd is None:
            fd = _wait_for_host(alone=alone)
        try:
            yield
        finally:
            if alone and then_alone:
                self._kept = fd
            else:
                os.close(fd)


def _wait_for_host(*, alone: bool) -> int:
    fd = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Whoever wants the host for itself waits at the door, so that no others come before it.
        with _locked(fd, fcntl.LOCK_EX, _DOOR):
            fcntl.lockf(fd, fcntl.LOCK_EX if alone else fcntl.LOCK_SH, 1, _HOST)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextlib.contextmanager
def _locked(fd: int, how: int, byte: int) -> Iterator[None]:
    fcntl.lockf(fd, how, 1, byte)
    try:
        yield
    finally:
        fcntl.lockf(fd, fcntl.LOCK_UN, 1, byte)
