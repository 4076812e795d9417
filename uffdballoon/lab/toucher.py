# SPDX-License-Identifier: GPL-2.0-or-later
"""Drive a process that touches its memory on command (native/bench/toucher.c)."""

from __future__ import annotations

import array
import importlib.util
import mmap
import os
import subprocess
from pathlib import Path
from typing import Self

from uffdballoon.errors import LabError
from uffdballoon.model.addresses import Hva, HvaRange
from uffdballoon.model.touch import Access

_MAX_RECORDS = 1 << 20  # as in toucher.c


def _find_binary() -> Path:
    """Find it beside the binding: both are installed by the same build."""
    spec = importlib.util.find_spec("uffdballoon._native")
    binary = Path(spec.origin if spec and spec.origin else ".").parent / "lab" / "uffdb-toucher"
    if binary.exists():
        return binary
    raise LabError(
        "There is no uffdb-toucher", why=f"{binary} is missing", hint="build the package again"
    )


class Toucher:
    """A running toucher; a context manager that ends it.

    ``backing`` is anon, thp, memfd or hugetlb; each thread has a CPU to itself,
    as far as there are any. Raises LabError when it does not start or refuses.
    """

    def __init__(self, backing: str, size_bytes: int, threads: int) -> None:
        self.threads = threads
        self._process = subprocess.Popen(
            [_find_binary(), backing, str(size_bytes), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
            start_new_session=True,  # Ctrl-C is ours: it ends with its standard input
        )
        self.pid = self._process.pid
        try:
            start, size, records_fd = (int(word) for word in self._answer("ready"))
        except BaseException:
            self.close()
            raise
        self.span = HvaRange.of(Hva(start), size)
        fd = os.open(f"/proc/{self.pid}/fd/{records_fd}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._records = mmap.mmap(fd, 4 * _MAX_RECORDS * threads, prot=mmap.PROT_READ)
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def touch(self, access: Access, stride_bytes: int, count: int) -> int:
        """Touch ``count`` places a thread; return ns for the whole of it."""
        letter = "w" if access is Access.WRITE else "r"
        return int(self._command(f"touch {letter} {stride_bytes} {count}")[0])

    def records(self, count: int) -> array.array[int]:
        """Return the ns of the last ``count`` touches of each thread, one after the other."""
        samples = array.array("I")
        for thread in range(self.threads):
            at = 4 * _MAX_RECORDS * thread
            samples.frombytes(self._records[at : at + 4 * count])
        return samples

    def fill(self) -> None:
        """Write to every page."""
        self._command("fill")

    def zap(self) -> None:
        """Drop every page at once, by the process itself."""
        self._command("zap")

    def zap_by(self, how: str, size_bytes: int, stride_bytes: int) -> int:
        """Drop ``size_bytes`` at every stride by madvise or process_madvise; return ns."""
        return int(self._command(f"zap-by {how} {size_bytes} {stride_bytes}")[0])

    def _command(self, line: str) -> list[str]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer("ok")

    def _answer(self, wanted: str) -> list[str]:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        status, *words = line.split() or [""]
        if status == wanted:
            return words
        why = " ".join(words) if line else self._process.stderr.read().strip()
        raise LabError("the touching process refused", why=why)
