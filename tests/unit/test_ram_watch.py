# SPDX-License-Identifier: GPL-2.0-or-later
"""RAM that comes and goes, and what of it the balloon's `actual` counts."""

from __future__ import annotations

from typing import Any

from uffdballoon.vmm.qemu.ram_watch import RamWatch

MIB = 1 << 20


class Plugged:
    """Answers as QEMU does: ``dimm_bytes`` and ``sparse_bytes`` are plugged in."""

    def __init__(self) -> None:
        self.dimm_bytes = self.sparse_bytes = 0

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:  # noqa: ANN401 - as Answers
        assert arguments is None
        if command == "query-memory-size-summary":
            plugged = self.dimm_bytes + self.sparse_bytes
            return {"base-memory": 512 * MIB, "plugged-memory": plugged}
        assert command == "query-memory-devices"
        data = {"id": "plug0", "memdev": "/objects/plug", "memaddr": 1 << 32, "node": 0}
        data |= {"max-size": 1 << 30, "size": self.sparse_bytes}
        return [{"type": "virtio-mem", "data": data}]

    def hmp(self, command: str) -> str:
        raise NotImplementedError(command)


def test_what_virtio_mem_has_plugged_came_and_is_not_counted() -> None:
    plugged = Plugged()
    plugged.sparse_bytes = 128 * MIB
    watch = RamWatch(plugged)
    assert watch.look_at_counted() == 0
    plugged.sparse_bytes += 256 * MIB
    plugged.dimm_bytes += 64 * MIB
    assert watch.look_at_counted() == 64 * MIB
    assert watch.look() == 320 * MIB
    (told,) = watch.take_news()
    assert told.ram_change_bytes == 320 * MIB
    plugged.sparse_bytes = 0
    assert watch.look_at_counted() == 64 * MIB
    assert watch.look() == -64 * MIB


def test_nobody_to_ask_says_nothing() -> None:
    assert RamWatch(None).look_at_counted() is None
