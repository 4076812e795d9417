# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages of 2 MiB, reserved for a while."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from uffdballoon.errors import LabError
from uffdballoon.lab.host_state import HOST

if TYPE_CHECKING:
    from collections.abc import Iterator


class HugePagePool:
    """Adds to the host's pool, and takes away again what it added."""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        self._held = contextlib.ExitStack()
        try:
            self.free()
        except OSError as error:
            raise LabError(
                "this host has no huge pages of 2 MiB", why=error.strerror or ""
            ) from error

    def __enter__(self) -> Self:
        try:
            self._held.enter_context(HOST.huge_pages(self._pages))
        except OSError as error:
            raise LabError(
                "huge pages cannot be reserved", why=str(error), hint="run as root"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def free(self) -> int:
        return HOST.free_huge_pages()

    @contextlib.contextmanager
    def lowered(self, pages: int) -> Iterator[None]:
        """Take free pages out of the pool for a while."""
        with HOST.huge_pages(-pages):
            yield
