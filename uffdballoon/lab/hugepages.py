# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages of 2 MiB, reserved for a while."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Self

from uffdballoon.errors import LabError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

_POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")


class HugePagePool:
    """Adds to the host's pool, and puts it back as it was."""

    def __init__(self, pages: int) -> None:
        self._pages = pages
        try:
            self._before = _read("nr_hugepages")
        except OSError as error:
            raise LabError(
                "this host has no huge pages of 2 MiB", why=error.strerror or ""
            ) from error

    def __enter__(self) -> Self:
        wanted = self._before + self._pages
        try:
            (_POOL / "nr_hugepages").write_text(str(wanted))
        except OSError as error:
            raise LabError(
                "huge pages cannot be reserved", why=error.strerror or "", hint="run as root"
            ) from error
        if _read("nr_hugepages") < wanted:
            self._restore()
            raise LabError(
                f"the host has no room for {self._pages} huge pages",
                why=f"{_POOL}/nr_hugepages did not reach {wanted}",
                hint="free memory, or reserve huge pages at boot",
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def free(self) -> int:
        return _read("free_hugepages")

    @contextlib.contextmanager
    def lowered(self, pages: int) -> Iterator[None]:
        """Take free pages out of the pool for a while."""
        total = _read("nr_hugepages")
        try:
            (_POOL / "nr_hugepages").write_text(str(total - pages))
            yield
        finally:
            (_POOL / "nr_hugepages").write_text(str(total))

    def _restore(self) -> None:
        (_POOL / "nr_hugepages").write_text(str(self._before))


def _read(name: str) -> int:
    return int((_POOL / name).read_text())
