# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest on huge pages that gives up every second 4k page, as a fragmented one does."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uffdballoon.lab.host_memory import huge_bytes
from uffdballoon.lab.qemu import Accel, Memory, Qemu, QemuOptions
from uffdballoon.model.addresses import PAGE_BYTES, GpaRange

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEED = 0xF4A6
_BELOW_BYTES = 64 << 20
_STRIDE_BYTES = 2 * PAGE_BYTES


@dataclass(frozen=True, slots=True)
class FragmentedGuest:
    """``arena`` is full of the guest's data, in huge pages of the host."""

    qemu: Qemu
    arena: GpaRange
    huge_bytes: int

    @property
    def ballooned_bytes(self) -> int:
        return self.arena.size_bytes // 2

    def give_up_half(self) -> None:
        """Give up the second of each two pages, by the guest's own balloon queue."""
        span = GpaRange.of(self.arena.start + PAGE_BYTES, self.ballooned_bytes)
        self.qemu.guest.balloon_inflate(span, stride_bytes=_STRIDE_BYTES)

    def take_half_back(self) -> None:
        """Deflate what was given up."""
        span = GpaRange.of(self.arena.start + PAGE_BYTES, self.ballooned_bytes)
        self.qemu.guest.balloon_deflate(span, stride_bytes=_STRIDE_BYTES)

    def bad_lines(self) -> int:
        """Count what was lost or changed of the pages that the guest keeps."""
        return self.qemu.guest.verify(self.arena, _SEED, stride_bytes=_STRIDE_BYTES).bad_lines

    def refill(self) -> None:
        """Write to every page."""
        self.qemu.guest.fill(self.arena, _SEED, stride_bytes=PAGE_BYTES)


@contextlib.contextmanager
def fragmented_guest(
    size_bytes: int, *, accel: Accel | None = None, watcher: object = None
) -> Iterator[FragmentedGuest]:
    """Start a guest with so much memory to fragment; ``watcher.add`` is told its pid first."""
    chosen = accel or (Accel.KVM if Path("/dev/kvm").exists() else Accel.TCG)
    memory = Memory(size_bytes=size_bytes + 2 * _BELOW_BYTES)
    arena = GpaRange.of(_BELOW_BYTES, size_bytes)
    with Qemu(QemuOptions(accel=chosen, memory=memory)) as qemu:
        add = getattr(watcher, "add", None)
        if add is not None:
            add(qemu.pid)
        qemu.guest.fill(arena, _SEED, stride_bytes=PAGE_BYTES)
        yield FragmentedGuest(qemu, arena, huge_bytes(qemu.pid))
